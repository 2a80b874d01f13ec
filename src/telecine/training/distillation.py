"""Distillation: a run that trains a small autoencoder for the latent space of another one, its teacher."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeGuard

import torch
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor, nn

from telecine.autoencoders import VideoAutoencoder
from telecine.autoencoders.causal import CausalAutoencoder
from telecine.autoencoders.flow import Sampler
from telecine.autoencoders.load import load_model_or_run
from telecine.autoencoders.student import StudentAutoencoder, student_config
from telecine.base.checks import argument_error, check_positive, check_weight
from telecine.base.frozen import Frozen
from telecine.base.randomness import Generators, randn
from telecine.base.shapes import Scalar, Video
from telecine.losses import l1
from telecine.losses.reconstruction import weighted_mean
from telecine.settings import DistillConfig, Term
from telecine.training.run import train
from telecine.training.validation import TrainResult


class TeacherReconstruction(nn.Module):
    """The mean absolute error against the reconstruction of a frozen `DistillConfig.teacher` from the same latent.

    A teacher that generates decodes random noise of the `generator` in `decode_steps` steps.
    """

    def __init__(self, teacher: str, decode_steps: int = 1) -> None:
        super().__init__()
        self.teacher = Frozen(_load_teacher(teacher, decode_steps))

    def forward(
        self, *, reconstruction: Video, latent: Tensor, generator: Generators = None, weight: Tensor | None = None
    ) -> Scalar:
        """Return the error, 0-d, of the reconstruction of a latent `(B, C, t, h, w)`, with sample weights `(B,)`."""
        teacher = self.teacher.module
        with torch.no_grad():
            if _generates(teacher):
                noise = randn(reconstruction.shape, generator=generator, device=latent.device)
                target = teacher.decode(latent, noise)
            else:
                target = teacher.decode(latent)
        return l1(reconstruction=reconstruction, target=target, weight=weight)


class TeacherLatent(nn.Module):
    """The mean squared error of a latent against a frozen teacher's, each channel in units of its variance.

    The variance is that of the teacher's latent over the batch. Without knowledge of the video the term is at least 1.
    """

    def __init__(self, teacher: str) -> None:
        super().__init__()
        self.teacher = Frozen(load_model_or_run(teacher))

    def forward(self, *, latent: Tensor, target: Video, weight: Tensor | None = None) -> Scalar:
        """Return the error, 0-d, of a latent `(B, C, t, h, w)` of the video `target`, with sample weights `(B,)`."""
        with torch.no_grad():
            of_teacher = self.teacher.module.encode(target).mode()
            variance = of_teacher.var((0, 2, 3, 4), correction=0, keepdim=True).clamp_min(1e-6)
        return weighted_mean((latent - of_teacher).square() / variance, weight)


def distill(
    config: DistillConfig, *, console: Console | None = None, steal_lock: bool = False, change_data: bool = False
) -> TrainResult:
    """Train a student of a teacher, as `train` does: the same arguments, objective, checkpoints and report.

    By default the student is the teacher's encoder and a small decoder; the teacher is frozen and in no checkpoint.
    With its own encoder it is a `CausalVAE`, which needs the teacher in training only.

    Raises:
        ValueError: A setting or the data is wrong, or the student cannot have the teacher's compression.
        TrainingError, Interrupted: See `train`.
    """
    if config.teacher is None:
        raise argument_error("teacher", "a model or a run", "nothing", "Add `--teacher MODEL`.")
    name = _absolute(config.teacher)
    teacher = _load_teacher(name, config.teacher_decode_steps)
    architecture = student_config(config.student, teacher, config.clips.val_bucket.shape)
    check_positive("latent_weight", config.latent_weight, remedy="Without it, the latent would be another one.")
    check_weight("teacher_weight", config.teacher_weight)
    terms = dict(config.objective.terms)
    if config.train_encoder:
        terms["teacher_latent"] = Term(f"{__name__}.TeacherLatent", config.latent_weight, {"teacher": name})
    if config.teacher_weight > 0:
        target = f"{__name__}.TeacherReconstruction"
        steps = {"decode_steps": config.teacher_decode_steps} if _generates(teacher) else {}
        terms["teacher_reconstruction"] = Term(target, config.teacher_weight, {"teacher": name, **steps})
    sampled = teacher if architecture.decoder == "flow" and _generates(teacher) and not config.train_encoder else None
    if sampled is not None:
        architecture = replace(architecture, flow=replace(architecture.flow, one_step=True))
    config = replace(config, teacher=name, causal_vae=architecture, objective=replace(config.objective, terms=terms))
    run = partial(train, console=console, steal_lock=steal_lock, change_data=change_data)
    if config.train_encoder:
        return run(replace(config, model=None))
    set_seed(config.seed)
    student = StudentAutoencoder.of(teacher, name, load_model_or_run, architecture)
    if sampled is not None and student.imitate(sampled):
        config = replace(config, linear_start=False)
    return run(replace(config, model=name), autoencoder=student)


def _load_teacher(name: str, decode_steps: int) -> VideoAutoencoder:
    """Return the teacher, which decodes in as many steps if it generates."""
    teacher = load_model_or_run(name)
    if _generates(teacher):
        teacher.sampler = Sampler(decode_steps)
    return teacher


def _generates(teacher: VideoAutoencoder) -> TypeGuard[CausalAutoencoder]:
    return isinstance(teacher, CausalAutoencoder) and teacher.sampler is not None


def _absolute(name: str) -> str:
    """Return the absolute path of a folder, which a run's settings hold; a Hub id stays as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
