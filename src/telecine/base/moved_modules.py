"""Modules that moved: what dotted paths in settings of older runs begin with, and what they begin with now."""

from collections.abc import Mapping

MOVED_MODULES: Mapping[str, str] = {
    "telecine.autoencoders.": "telecine.models.",
    "telecine.perceptual.": "telecine.losses.perceptual.",
    "telecine.training.distillation.": "telecine.tools.distill.",
    "telecine.tools.distill.run.": "telecine.tools.distill.distillation.",
    "telecine.losses.additional_terms.": "telecine.objective.term_functions.",
    "telecine.discriminators.base.GradientCheckpointing": (
        "telecine.discriminators.gradient_checkpointing.GradientCheckpointing"
    ),
    "telecine.discriminators.base.frozen": "telecine.discriminators.gradient_checkpointing.frozen",
    "telecine.discriminators.base.": "telecine.discriminators.output.",
    "telecine.discriminators.checkpointing.": "telecine.discriminators.gradient_checkpointing.",
    "telecine.runs.settings.": "telecine.runs.saved_settings.",
    "telecine.runs.validation.": "telecine.runs.saved_clips.",
    "telecine.report.run.": "telecine.report.reported_run.",
    "telecine.evaluation.flat.": "telecine.evaluation.metrics.flat.",
    "telecine.evaluation.flow.": "telecine.evaluation.metrics.flow.",
    "telecine.evaluation.frechet.": "telecine.evaluation.metrics.frechet.",
    "telecine.evaluation.latent_measures.": "telecine.evaluation.latent_statistics.",
    "telecine.evaluation.lpips.": "telecine.evaluation.metrics.lpips.",
    "telecine.evaluation.measure.": "telecine.evaluation.measure_clips.",
    "telecine.evaluation.metric.": "telecine.evaluation.metrics.metric.",
    "telecine.evaluation.metrics.registry.": "telecine.evaluation.metrics.metric.",
    "telecine.evaluation.metrics.tiling.": "telecine.evaluation.metrics.seams.",
    "telecine.evaluation.pixel_metrics.": "telecine.evaluation.metrics.pixels.",
    "telecine.evaluation.protocol.": "telecine.evaluation.evaluation_record.",
    "telecine.evaluation.published.": "telecine.evaluation.protocols.published.",
    "telecine.evaluation.published_metrics.": "telecine.evaluation.metrics.published_pixels.",
    "telecine.evaluation.source.": "telecine.evaluation.reconstructors.",
    "telecine.evaluation.reconstruction_sources.": "telecine.evaluation.reconstructors.",
}
