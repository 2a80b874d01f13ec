"""Distillation: a run that trains a small autoencoder for the latent space of another one, its teacher."""

from dataclasses import replace

from rich.console import Console

from telecine.base.checks import argument_error, check_type
from telecine.base.files import absolute_if_exists
from telecine.models import VideoAutoencoder
from telecine.settings import DistillConfig, Term
from telecine.tools.distill.start import (
    FEATURES_TERM,
    PROJECTED_FEATURES,
    StudentStart,
    start_of,
)
from telecine.tools.distill.teacher import generates, load_teacher
from telecine.training import TrainResult, train

LATENT_TERM = "teacher_latent"
RECONSTRUCTION_TERM = "teacher_reconstruction"
DECODING_TERM = "teacher_decoding"


def distill(
    config: DistillConfig,
    *,
    console: Console | None = None,
    steal_lock: bool = False,
    change_data: bool = False,
) -> TrainResult:
    """Train a student of a teacher, as `train` does, with the same objective, checkpoints and report.

    By default the student is the teacher's encoder and a small decoder; the teacher is frozen and in no checkpoint.
    With its own encoder it is a `CausalVAE`, which needs the teacher in training only. With `init` it is a pruned
    model, see `telecine.tools.prune`, which starts with weights of its teacher.

    Args:
        config: The settings of the run.
        console: See `train`, as the next two.
        steal_lock: Start although another process seems to use the run's folder.
        change_data: Resume although the data changed.

    Raises:
        ValueError: A setting or the data is wrong, or the student cannot have the teacher's compression.
        TrainingError: See `train`.
        Interrupted: See `train`.
    """
    check_type("config", config, DistillConfig, 'Use `DistillConfig(teacher="runs/mine")`.')
    if config.teacher is None:
        raise argument_error("teacher", "a model or a run", "nothing", "Add `--teacher MODEL`.")
    teacher_name = absolute_if_exists(config.teacher)
    teacher = load_teacher(teacher_name, config.teacher_decode_steps)
    start = start_of(config, teacher_name, teacher)
    terms = _terms_of_teacher(config, teacher, teacher_name, start)
    # The terms of settings that a run has saved are replaced.
    others = dict(config.objective.terms)
    for term in (LATENT_TERM, RECONSTRUCTION_TERM, FEATURES_TERM, DECODING_TERM):
        others.pop(term, None)
    objective = replace(config.objective, terms=others | terms)
    run_config = replace(start.config, teacher=teacher_name, objective=objective)
    nested = run_config.causal_vae.nested_channels
    learns_from_teacher = bool(terms) or start.learns_samples
    if learns_from_teacher and not set(nested) <= set(teacher.nested_channels):
        contract = f"those of the teacher, {list(teacher.nested_channels)}"
        remedy = "Use a teacher with them, or leave out what learns from it."
        raise argument_error("nested_channels", contract, str(list(nested)), remedy)
    return train(
        run_config,
        autoencoder=start.student,
        teacher=teacher,
        console=console,
        steal_lock=steal_lock,
        change_data=change_data,
    )


def _terms_of_teacher(
    config: DistillConfig, teacher: VideoAutoencoder, teacher_name: str, start: StudentStart
) -> dict[str, Term]:
    """Return the terms of the objective that look at the teacher.

    Args:
        config: The settings of the run.
        teacher: The teacher.
        teacher_name: Its name.
        start: What the run trains.
    """
    terms: dict[str, Term] = {}
    params: dict[str, object]
    if config.train_encoder and config.latent_weight > 0:
        terms[LATENT_TERM] = Term(
            "telecine.tools.distill.TeacherLatent", config.latent_weight, {"teacher": teacher_name}
        )
    if config.train_encoder and config.decoding_weight > 0:
        params = {"teacher": teacher_name, "perceptual_weight": config.decoding_perceptual_weight}
        if generates(teacher):
            params["decode_steps"] = config.teacher_decode_steps
        terms[DECODING_TERM] = Term(
            "telecine.tools.distill.TeacherDecoding", config.decoding_weight, params
        )
    if config.teacher_weight > 0:
        params = {"teacher": teacher_name}
        if generates(teacher):
            params["decode_steps"] = config.teacher_decode_steps
        terms[RECONSTRUCTION_TERM] = Term(
            "telecine.tools.distill.TeacherReconstruction", config.teacher_weight, params
        )
    if config.feature_weight > 0:
        params = {"teacher": teacher_name, "layers": list(config.feature_layers)}
        if start.report is not None:
            params["pruned"] = str(start.report)
            target = "telecine.tools.distill.PrunedFeatures"
        else:
            params["channels"] = list(start.channels)
            target = PROJECTED_FEATURES
        terms[FEATURES_TERM] = Term(target, config.feature_weight, params)
    return terms
