"""Distillation: a run that trains a small autoencoder for the latent space of another one, its teacher."""

from collections.abc import Sequence
from dataclasses import replace

from accelerate.utils import set_seed
from rich.console import Console

from telecine.base.checks import argument_error, check_type
from telecine.base.files import absolute_if_exists
from telecine.models import VideoAutoencoder, load_autoencoder
from telecine.models.causal import CausalAutoencoder
from telecine.models.pretrained import digest_of_encoder
from telecine.models.student import StudentAutoencoder, student_config
from telecine.settings import DistillConfig, ObjectiveConfig, Term
from telecine.tools.distill.teacher import generates, load_teacher
from telecine.training import TrainResult, train

LATENT_TERM = "teacher_latent"
RECONSTRUCTION_TERM = "teacher_reconstruction"
FEATURES_TERM = "teacher_features"


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
    name = absolute_if_exists(config.teacher)
    teacher = load_teacher(name, config.teacher_decode_steps)
    if config.init is not None and not config.train_encoder:
        student = _load_pruned(config.init, teacher)
        config = _config_of_pruned(config, name, teacher, student)
        is_ours = isinstance(student, StudentAutoencoder)
        return train(
            config,
            autoencoder=student if is_ours else None,  # another one is loaded as `model`
            console=console,
            steal_lock=steal_lock,
            change_data=change_data,
        )
    architecture = student_config(config.student, teacher, config.clips.val_bucket.shape)
    imitated: CausalAutoencoder | None = None
    if architecture.decoder == "flow" and not config.train_encoder and generates(teacher):
        imitated = teacher
        architecture = replace(architecture, flow=replace(architecture.flow, one_step=True))
    terms = _terms_of_teacher(config, teacher, name, architecture.channels)
    learns_from_decoder = bool(terms) or imitated is not None
    if learns_from_decoder and not set(architecture.nested_channels) <= set(
        teacher.nested_channels
    ):
        contract = f"those of the teacher, {list(teacher.nested_channels)}"
        got = str(list(architecture.nested_channels))
        remedy = "Use a teacher with them, or leave out what learns from it."
        raise argument_error("nested_channels", contract, got, remedy)
    config = replace(
        config, teacher=name, causal_vae=architecture, objective=_with_terms(config, terms)
    )
    if config.train_encoder:
        config = replace(config, model=None)
        return train(
            config,
            teacher=teacher,
            console=console,
            steal_lock=steal_lock,
            change_data=change_data,
        )
    set_seed(config.seed)
    student = StudentAutoencoder.of(teacher, name, load_autoencoder, architecture)
    config = replace(
        config, model=name, teacher=absolute_if_exists(student.teacher)
    )  # that of a student is its own teacher
    if imitated is not None and student.imitate(imitated):
        config = replace(config, linear_start=False)
    return train(
        config,
        autoencoder=student,
        teacher=teacher,
        console=console,
        steal_lock=steal_lock,
        change_data=change_data,
    )


def _load_pruned(name: str, teacher: VideoAutoencoder) -> VideoAutoencoder:
    """Return the model that a student starts from.

    Raises:
        ValueError: Its encoder is not that of the teacher.
    """
    student = load_autoencoder(name)
    latent_model = student.latent_model if isinstance(student, StudentAutoencoder) else student
    if digest_of_encoder(latent_model) != digest_of_encoder(teacher.latent_model):
        contract = "a model with the encoder of `teacher`"
        remedy = "Prune the decoder of that model: `telecine prune TEACHER`."
        raise argument_error("init", contract, f"{name}, whose encoder differs", remedy)
    return student


def _config_of_pruned(
    config: DistillConfig, name: str, teacher: VideoAutoencoder, student: VideoAutoencoder
) -> DistillConfig:
    """Return the settings of a run that trains the decoder of a pruned model.

    Args:
        config: The settings.
        name: The name of the teacher.
        teacher: The teacher.
        student: The pruned model.

    Raises:
        ValueError: Features are compared, which only a decoder of telecine offers.
    """
    init = absolute_if_exists(str(config.init))
    channels: list[int] = []
    if isinstance(student, CausalAutoencoder):
        channels = student.config.channels
    elif config.feature_weight > 0:
        contract = "0 for a student of diffusers"
        remedy = "Use `teacher_weight`, which compares the reconstructions."
        raise argument_error("feature_weight", contract, config.feature_weight, remedy)
    terms = _terms_of_teacher(config, teacher, name, channels)
    config = replace(
        config,
        teacher=name,
        student=init,
        init=None,
        linear_start=False,
        objective=_with_terms(config, terms),
    )
    if isinstance(student, StudentAutoencoder):
        return replace(config, model=name, causal_vae=student.config)
    return replace(config, model=init, trainable=replace(config.trainable, weights="decoder"))


def _terms_of_teacher(
    config: DistillConfig, teacher: VideoAutoencoder, name: str, channels: Sequence[int]
) -> dict[str, Term]:
    """Return the terms of the objective that look at the teacher of this name."""
    terms: dict[str, Term] = {}
    if config.train_encoder:
        terms[LATENT_TERM] = Term(
            "telecine.tools.distill.TeacherLatent", config.latent_weight, {"teacher": name}
        )
    if config.teacher_weight > 0:
        params: dict[str, object] = {"teacher": name}
        if generates(teacher):
            params["decode_steps"] = config.teacher_decode_steps
        terms[RECONSTRUCTION_TERM] = Term(
            "telecine.tools.distill.TeacherReconstruction", config.teacher_weight, params
        )
    if config.feature_weight > 0:
        params = {
            "teacher": name,
            "channels": list(channels),
            "layers": list(config.feature_layers),
        }
        terms[FEATURES_TERM] = Term(
            "telecine.tools.distill.TeacherFeatures", config.feature_weight, params
        )
    return terms


def _with_terms(config: DistillConfig, terms: dict[str, Term]) -> ObjectiveConfig:
    """Return the objective with the teacher's terms in the place of those in settings that a run has saved."""
    others = dict(config.objective.terms)
    for name in (LATENT_TERM, RECONSTRUCTION_TERM, FEATURES_TERM):
        others.pop(name, None)
    return replace(config.objective, terms=others | terms)
