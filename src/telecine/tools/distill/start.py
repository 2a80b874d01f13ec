"""What a distillation starts from: a new autoencoder, a new decoder, or a pruned model."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate.utils import set_seed

from telecine.base.checks import argument_error
from telecine.base.files import absolute_if_exists
from telecine.models import VideoAutoencoder, load_autoencoder
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.frozen_encoder import TeacherEncoderModel
from telecine.models.pretrained import digest_of_encoder
from telecine.models.student import StudentAutoencoder
from telecine.models.student_config import student_config
from telecine.runs import Run
from telecine.runs.saved_settings import read_saved_settings
from telecine.settings import DistillConfig
from telecine.settings.distill import PRUNE_FILE, ResolvedStudent
from telecine.tools.distill.teacher import generates

FEATURES_TERM = "teacher_features"
PROJECTED_FEATURES = "telecine.tools.distill.TeacherFeatures"


@dataclass(frozen=True, kw_only=True)
class StudentStart:
    """What a run trains, and the settings that follow from it."""

    student: VideoAutoencoder | None
    """The autoencoder, or None if `train` builds it from the settings."""
    config: DistillConfig
    """The settings of the run: those of the user, with what follows from teacher and student."""
    channels: Sequence[int]
    """Channels of the levels of the student's decoder, see `CausalVAEConfig.channels`; empty for other decoders."""
    report: Path | None = None
    """The file of `telecine prune` with the channels that a pruned model has kept, if features are compared by it."""
    learns_samples: bool = False
    """Whether the student learns the samples of its teacher instead of the videos."""


def start_of(config: DistillConfig, teacher_name: str, teacher: VideoAutoencoder) -> StudentStart:
    """Return the start of a run.

    Args:
        config: The settings of the user.
        teacher_name: The teacher's name, of a local one its absolute path.
        teacher: The teacher.

    Raises:
        ValueError: The student cannot have the teacher's compression, or the pruned model is not one of the teacher.
    """
    if config.train_encoder:
        return _new_autoencoder(config, teacher)
    if config.pruned_model is not None:
        return _pruned_model(config, config.pruned_model, teacher_name, teacher)
    return _new_decoder(config, teacher_name, teacher)


def _new_autoencoder(config: DistillConfig, teacher: VideoAutoencoder) -> StudentStart:
    """Return the start of a run that trains a new encoder and decoder: a `CausalVAE`.

    Raises:
        ValueError: The student cannot have the teacher's compression.
    """
    architecture = student_config(config.student, teacher, config.clips.val_bucket.shape)
    return StudentStart(
        student=None,
        config=replace(config, model=None, causal_vae=architecture, resolved=None),
        channels=architecture.channels,
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
    sampled_teacher = None
    if generates(teacher) and architecture.decoder == "flow":
        sampled_teacher = teacher
        architecture = replace(architecture, flow=replace(architecture.flow, one_step=True))
    set_seed(config.seed)
    student = StudentAutoencoder.of(teacher, teacher_name, load_autoencoder, architecture)
    has_weights_of_teacher = sampled_teacher is not None and student.imitate(sampled_teacher)
    run_config = replace(
        config,
        model=teacher_name,
        causal_vae=architecture,
        resolved=ResolvedStudent(encoder=_encoder_of(teacher, teacher_name)),
        linear_start=config.linear_start and not has_weights_of_teacher,
    )
    return StudentStart(
        student=student,
        config=run_config,
        channels=architecture.channels,
        learns_samples=sampled_teacher is not None,
    )


def _pruned_model(
    config: DistillConfig, name: str, teacher_name: str, teacher: VideoAutoencoder
) -> StudentStart:
    """Return the start of a run that trains the decoder of a pruned model.

    Args:
        config: The settings of the user.
        name: The name of the pruned model.
        teacher_name: That of the teacher.
        teacher: The teacher.

    Raises:
        ValueError: Its encoder is not that of the teacher, or features of a model that `telecine prune` did not make
            are compared.
    """
    pruned = load_autoencoder(name)
    encoder_model = pruned.encoder_model if isinstance(pruned, StudentAutoencoder) else pruned
    if digest_of_encoder(encoder_model) != digest_of_encoder(teacher.encoder_model):
        contract = "a model with the encoder of `teacher`"
        remedy = "Prune the decoder of that model: `telecine prune TEACHER`."
        raise argument_error("init", contract, f"{name}, whose encoder differs", remedy)
    name = absolute_if_exists(name)
    report = None if _resumes_with_projections(config) else _find_report(Path(name))
    if config.feature_weight > 0 and report is None and not isinstance(pruned, CausalAutoencoder):
        contract = "0 for a student of diffusers without the file of `telecine prune`"
        remedy = (
            "Use the folder that it wrote, or `teacher_weight`, which compares the reconstructions."
        )
        raise argument_error("feature_weight", contract, config.feature_weight, remedy)
    resolved = ResolvedStudent(encoder=_encoder_of(teacher, teacher_name), pruned_model=name)
    student = None
    if isinstance(pruned, StudentAutoencoder):
        student = pruned
        run_config = replace(
            config,
            model=teacher_name,
            causal_vae=pruned.config,
            init=None,
            resolved=resolved,
            linear_start=False,  # weights that come from another model stay as they are
        )
    else:
        # `train` loads it as any other model, with an encoder that it has to freeze.
        run_config = replace(
            config,
            model=name,
            trainable=replace(config.trainable, weights="decoder"),
            init=None,
            resolved=resolved,
            linear_start=False,
        )
    channels = pruned.config.channels if isinstance(pruned, CausalAutoencoder) else []
    return StudentStart(student=student, config=run_config, channels=channels, report=report)


def _encoder_of(teacher: VideoAutoencoder, teacher_name: str) -> str:
    """Return the name of the model that has a teacher's encoder: of a student, that of its own teacher."""
    if isinstance(teacher, TeacherEncoderModel):
        return absolute_if_exists(teacher.teacher)
    return teacher_name


def _resumes_with_projections(config: DistillConfig) -> bool:
    """Return whether a checkpoint of the run has trained projections, which an earlier version had for pruned models.

    Such a run keeps them, also if its command is typed again: only its checkpoints tell.
    """
    for _, checkpoint in Run(Path(config.output_dir)).checkpoints.all():
        with suppress(ValueError):  # a damaged checkpoint, which `train` sets aside
            terms = read_saved_settings(checkpoint).get("objective", {}).get("terms", {})
            term = terms.get(FEATURES_TERM)
            if isinstance(term, dict) and term.get("target") == PROJECTED_FEATURES:
                return True
    return False


def _find_report(folder: Path) -> Path | None:
    """Return the file of `telecine prune` of a pruned model; of a run, that of the model from which it started.

    Args:
        folder: That of the model or the run.
    """
    visited: set[Path] = set()
    while folder.is_dir() and folder not in visited:
        path = folder / PRUNE_FILE
        if path.exists():
            return path
        visited.add(folder)
        resolved = read_saved_settings(folder).get("resolved")
        if not isinstance(resolved, dict) or resolved.get("pruned_model") is None:
            return None
        folder = Path(resolved["pruned_model"])
    return None
