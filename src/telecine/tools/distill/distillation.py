"""Distillation: a run that trains a small autoencoder for the latent space of another one, its teacher."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from rich.console import Console

from telecine.base.checks import argument_error, check_type
from telecine.base.files import absolute_if_exists
from telecine.models import VideoAutoencoder, load_autoencoder
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.pretrained import digest_of_encoder
from telecine.models.student import StudentAutoencoder
from telecine.models.student_config import student_config
from telecine.runs import Run
from telecine.runs.saved_settings import read_saved_settings
from telecine.settings import CausalVAEConfig, DistillConfig, ObjectiveConfig, Term
from telecine.tools.distill.teacher import generates, load_teacher
from telecine.training import TrainResult, train

LATENT_TERM = "teacher_latent"
RECONSTRUCTION_TERM = "teacher_reconstruction"
FEATURES_TERM = "teacher_features"
DECODING_TERM = "teacher_decoding"
REPORT_FILE = "prune.json"
_PROJECTED_FEATURES = "telecine.tools.distill.TeacherFeatures"


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
    if config.train_encoder:
        start = _new_autoencoder(config, teacher_name, teacher)
    elif config.init is not None:
        start = _pruned_model(config, teacher_name, teacher)
    else:
        start = _new_decoder(config, teacher_name, teacher)
    terms = _terms_of_teacher(config, teacher, teacher_name, start)
    # The terms of settings that a run has saved are replaced.
    others = dict(config.objective.terms)
    for term in (LATENT_TERM, RECONSTRUCTION_TERM, FEATURES_TERM, DECODING_TERM):
        others.pop(term, None)
    run_config = start.apply(config, replace(config.objective, terms=others | terms))
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


@dataclass(frozen=True, kw_only=True)
class StudentStart:
    """What a run trains, and what its settings follow from."""

    student: VideoAutoencoder | None = None
    """The autoencoder, or None if `train` builds it from the settings."""
    encoder_name: str
    """The model that has the encoder of the student, or with an encoder of its own, the teacher."""
    base_model: str | None = None
    """The model whose class the student has, or whose decoder the student's replaces. None for a `CausalVAE`."""
    architecture: CausalVAEConfig | None = None
    """The settings of the parts of `CausalVAE`; None without any."""
    pruned_model: str | None = None
    """The model of `telecine prune` whose weights the student has."""
    report: Path | None = None
    """The file of `telecine prune` with the channels of the pruned model that stayed."""
    channels: Sequence[int] = ()
    """Channels of the levels of the student's decoder, see `CausalVAEConfig.channels`; empty for other decoders."""
    may_start_linear: bool = True
    """Whether `linear_start` applies. Weights that come from another model stay as they are."""
    trains_decoder_only: bool = False
    """Whether `train` has to freeze the encoder, which the student has inside."""
    learns_samples: bool = False
    """Whether the student learns the samples of its teacher instead of the videos."""

    def apply(self, config: DistillConfig, objective: ObjectiveConfig) -> DistillConfig:
        """Return the settings of the run, as it saves them.

        Saved, `teacher` is the model with the student's encoder, and `student` the absolute path of a pruned model.

        Args:
            config: The settings as they were typed.
            objective: The objective with the terms that look at the teacher.
        """
        changes: dict[str, Any] = {"teacher": self.encoder_name, "model": self.base_model}
        if self.architecture is not None:
            changes["causal_vae"] = self.architecture
        if self.pruned_model is not None:
            changes["student"] = self.pruned_model
            changes["init"] = None
        if not self.may_start_linear:
            changes["linear_start"] = False
        if self.trains_decoder_only:
            changes["trainable"] = replace(config.trainable, weights="decoder")
        return replace(config, objective=objective, **changes)


def _new_autoencoder(
    config: DistillConfig, teacher_name: str, teacher: VideoAutoencoder
) -> StudentStart:
    """Return the start of a run that trains a new encoder and decoder.

    Raises:
        ValueError: The student cannot have the teacher's compression.
    """
    architecture = student_config(config.student, teacher, config.clips.val_bucket.shape)
    return StudentStart(
        encoder_name=teacher_name, architecture=architecture, channels=architecture.channels
    )


def _new_decoder(
    config: DistillConfig, teacher_name: str, teacher: VideoAutoencoder
) -> StudentStart:
    """Return the start of a run that trains a new decoder for the teacher's latents.

    A decoder that generates learns the samples of a teacher that generates, in one step.

    Raises:
        ValueError: The student cannot have the teacher's compression.
    """
    architecture = student_config(config.student, teacher, config.clips.val_bucket.shape)
    learns_samples = generates(teacher) and architecture.decoder == "flow"
    if learns_samples:
        architecture = replace(architecture, flow=replace(architecture.flow, one_step=True))
    set_seed(config.seed)
    student = StudentAutoencoder.of(teacher, teacher_name, load_autoencoder, architecture)
    has_weights_of_teacher = False
    if learns_samples and generates(teacher):  # the second one tells the type of `teacher`
        has_weights_of_teacher = student.imitate(teacher)
    return StudentStart(
        student=student,
        # If the teacher is a student itself, the new student has the encoder of that one's teacher.
        encoder_name=absolute_if_exists(student.teacher),
        base_model=teacher_name,
        architecture=architecture,
        channels=architecture.channels,
        may_start_linear=not has_weights_of_teacher,
        learns_samples=learns_samples,
    )


def _pruned_model(
    config: DistillConfig, teacher_name: str, teacher: VideoAutoencoder
) -> StudentStart:
    """Return the start of a run that trains the decoder of a pruned model.

    Raises:
        ValueError: Its encoder is not that of the teacher, or features of a model that `telecine prune` did not make
            are compared.
    """
    pruned = load_autoencoder(str(config.init))
    latent_model = pruned.latent_model if isinstance(pruned, StudentAutoencoder) else pruned
    if digest_of_encoder(latent_model) != digest_of_encoder(teacher.latent_model):
        contract = "a model with the encoder of `teacher`"
        remedy = "Prune the decoder of that model: `telecine prune TEACHER`."
        raise argument_error("init", contract, f"{config.init}, whose encoder differs", remedy)
    pruned_name = absolute_if_exists(str(config.init))
    report = None if _trains_projections(config) else _find_report(Path(pruned_name))
    if config.feature_weight > 0 and report is None and not isinstance(pruned, CausalAutoencoder):
        contract = "0 for a student of diffusers without the file of `telecine prune`"
        remedy = (
            "Use the folder that it wrote, or `teacher_weight`, which compares the reconstructions."
        )
        raise argument_error("feature_weight", contract, config.feature_weight, remedy)
    channels = pruned.config.channels if isinstance(pruned, CausalAutoencoder) else []
    if isinstance(pruned, StudentAutoencoder):
        return StudentStart(
            student=pruned,
            encoder_name=teacher_name,
            base_model=teacher_name,
            architecture=pruned.config,
            pruned_model=pruned_name,
            report=report,
            channels=channels,
            may_start_linear=False,
        )
    return StudentStart(
        encoder_name=teacher_name,
        base_model=pruned_name,
        pruned_model=pruned_name,
        report=report,
        channels=channels,
        may_start_linear=False,
        trains_decoder_only=True,
    )


def _trains_projections(config: DistillConfig) -> bool:
    """Return whether the run resumes and has the term of features with trained projections."""
    for _, checkpoint in Run(Path(config.output_dir)).checkpoints.all():
        with suppress(ValueError):  # a damaged checkpoint, which `train` sets aside
            terms = read_saved_settings(checkpoint).get("objective", {}).get("terms", {})
            term = terms.get(FEATURES_TERM)
            if isinstance(term, dict) and term.get("target") == _PROJECTED_FEATURES:
                return True
    return False


def _find_report(folder: Path) -> Path | None:
    """Return the file of `telecine prune` of a pruned model; of a run, that of the model from which it started.

    Args:
        folder: That of the model or the run.
    """
    visited: set[Path] = set()
    while folder.is_dir() and folder not in visited:
        path = folder / REPORT_FILE
        if path.exists():
            return path
        visited.add(folder)
        # The absolute path of a pruned model, see `StudentStart.apply`; else a size or a file of settings.
        student = read_saved_settings(folder).get("student")
        if not isinstance(student, str) or not Path(student).is_absolute():
            return None
        folder = Path(student)
    return None


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
            target = _PROJECTED_FEATURES
        terms[FEATURES_TERM] = Term(target, config.feature_weight, params)
    return terms
