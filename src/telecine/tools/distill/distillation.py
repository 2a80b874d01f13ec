"""Distillation: a run that trains a small autoencoder for the latent space of another one, its teacher."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeGuard

import torch
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error, check_type, describe, nearest
from telecine.base.frozen import Frozen
from telecine.base.precision import at_least_float32
from telecine.base.randomness import Generators, randn
from telecine.base.shapes import Scalar, Video
from telecine.losses import Decode, l1
from telecine.losses.reconstruction import weighted_mean
from telecine.models import VideoAutoencoder, load_autoencoder
from telecine.models.causal import CausalAutoencoder
from telecine.models.causal_blocks import ChannelNorm, Upsample
from telecine.models.flow import Sampler
from telecine.models.student import StudentAutoencoder, student_config
from telecine.settings import DistillConfig, Term
from telecine.training import TrainResult, train

# The terms that learn from a teacher.
_TERMS = ("teacher_latent", "teacher_reconstruction", "teacher_features")


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
        teacher, size = self.teacher.module, reconstruction.shape
        with torch.no_grad():
            noise = [randn(size, generator=generator, device=latent.device)] if _generates(teacher) else []
            target = teacher.decode(latent, *noise)
        return l1(reconstruction=reconstruction, target=target, weight=weight)


class TeacherLatent(nn.Module):
    """The mean squared error of a latent against a frozen teacher's, each channel in units of its variance.

    The variance is that of the teacher's latent over the batch. Without knowledge of the video the term is at least 1.
    """

    def __init__(self, teacher: str) -> None:
        super().__init__()
        self.teacher = Frozen(load_autoencoder(teacher))

    def forward(self, *, latent: Tensor, target: Video, weight: Tensor | None = None) -> Scalar:
        """Return the error, 0-d, of a latent `(B, C, t, h, w)` of the video `target`, with sample weights `(B,)`."""
        with torch.no_grad():
            of_teacher = self.teacher.module.encode(target).mode()
            variance = of_teacher.var((0, 2, 3, 4), correction=0, keepdim=True).clamp_min(1e-6)
        return weighted_mean((latent - of_teacher).square() / variance, weight)


class TeacherFeatures(nn.Module):
    """The squared error of a student's features against a frozen teacher's inside the decoder (arXiv:2508.09136).

    A trained projection maps the student's features at the end of each of its resolutions to the channels of a layer of
    the teacher, whose features are averaged over the frames of a latent frame, and standardised for each channel over
    the batch. The term is the mean over layers, and 1 without knowledge of the video. An update decodes once more.

    Args:
        teacher: A model or a run.
        channels: Channels of the student's levels, see `CausalVAEConfig.channels`.
        layers: Layers of the teacher's decoder by name; by default the last one of each height and width that the
            student has, too; of a decoder of telecine, its last residual block.

    Raises:
        ValueError: The teacher's decoder does not call such a layer, or no layer of such a size.
    """

    def __init__(self, teacher: str, channels: Sequence[int], layers: Sequence[str] = ()) -> None:
        super().__init__()
        self.teacher = Frozen(load_autoencoder(teacher))
        model = self.teacher.module
        latent = model.encode(torch.zeros(1, model.in_channels, *model.covering_clip(1, 1, 1))).mode()[:, :, :1]
        found = self._features(latent, [name for name, _ in _decoder_of(model).named_modules() if name])
        # In layers whose channels are last, as some of Mochi's, the last two sizes differ.
        found = {name: x for name, x in found.items() if x.shape[-1] == x.shape[-2]}
        scales = {name: x.shape[-1] // latent.shape[-1] for name, x in found.items()}
        ends = [f"network.{end}" for end in _ends(model)] if isinstance(model, CausalAutoencoder) else [*found]
        last = {scales[name]: name for name in ends}
        self.layers = list(layers) or [last[2**level] for level in range(len(channels)) if 2**level in last]
        for name in self.layers or ["none of the student's sizes"]:
            if name not in found:
                remedy = nearest(name, found) or f"Its last ones are {', '.join([*found][-3:])}."
                raise argument_error("feature_layers", "layers that the teacher's decoder calls", repr(name), remedy)
        # A layer with several frames for the first latent frame has as many for each.
        self.apart = [found[name].shape[2] == 1 for name in self.layers]
        self.levels = [min(max(scales[name], 1).bit_length(), len(channels)) - 1 for name in self.layers]
        sizes = zip((channels[-1 - level] for level in self.levels), self.layers, strict=True)
        self.projections = nn.ModuleList(nn.Conv3d(width, found[name].shape[1], 1) for width, name in sizes)

    def forward(self, *, latent: Tensor, decode: Decode, weight: Tensor | None = None) -> Scalar:
        """Return the error, 0-d, of a student's `decode` for a latent `(B, C, t, h, w)`, with sample weights `(B,)`."""
        student = getattr(decode, "__self__", None)
        if not isinstance(student, CausalAutoencoder):
            remedy = "Use the term in `telecine distill`."
            raise argument_error("decode", "the method of a decoder of telecine", describe(decode), remedy)
        with _recorded(student.decoder.network, ends := _ends(student)) as of_student:
            decode(latent)
        of_teacher = self._features(latent, self.layers)
        errors = []
        for name, level, apart, projection in zip(self.layers, self.levels, self.apart, self.projections, strict=True):
            x = at_least_float32(projection(torch.cat(of_student[ends[level]], dim=2)))
            y = at_least_float32(_pooled(of_teacher[name], x.shape[2:], apart))
            std, mean = torch.std_mean(y, (0, 2, 3, 4), correction=0, keepdim=True)
            errors.append(weighted_mean((x - (y - mean) / std.clamp_min(1e-3)).square(), weight))
        return torch.stack(errors).mean()

    @torch.no_grad()
    def _features(self, latent: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the outputs `(B, c, T, h, w)` of layers, in order; of a single frame, those that are called once."""
        teacher = self.teacher.module
        with _recorded(_decoder_of(teacher), names) as found:
            teacher.decode(latent)
        if latent.shape[2] == 1:
            found = {name: parts for name, parts in found.items() if len(parts) == 1}
        clips = {name: torch.cat(parts, dim=2) if parts[0].ndim == 5 else parts[0] for name, parts in found.items()}
        of_frames = {name: x.flatten(1, -3) for name, x in clips.items() if x.ndim == 4 or len(x) > len(latent)}
        return clips | {name: x.unflatten(0, (len(latent), -1)).transpose(1, 2) for name, x in of_frames.items()}


def _ends(model: CausalAutoencoder) -> list[str]:
    """Return the names of the last layer of each resolution in the decoder's network."""
    following = enumerate(layer for _, layer in pairwise(model.decoder.network))
    return [str(at) for at, layer in following if isinstance(layer, (Upsample, ChannelNorm))]


def _decoder_of(model: nn.Module) -> nn.Module:
    return getattr(model, "module", model).get_submodule("decoder")


@contextmanager
def _recorded(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Yield the outputs of layers by name, in the order in which they end, one for each temporal chunk."""
    found: dict[str, list[Tensor]] = {}

    def record(name: str, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim in (4, 5):
            found.setdefault(name, []).append(output)

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(module.get_submodule(name).register_forward_hook(partial(record, name)))
        yield found


def _pooled(video: Tensor, size: Sequence[int], first_apart: bool) -> Tensor:
    """Return `(B, c, T, H, W)` averaged to a size `(t, h, w)`, with the first frame apart or not."""
    first = int(first_apart)
    parts = ((video[:, :, :first], first), (video[:, :, first:], size[0] - first))
    return torch.cat([F.adaptive_avg_pool3d(x, (frames, size[1], size[2])) for x, frames in parts if frames], dim=2)


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
    check_type("config", config, DistillConfig, 'Use `DistillConfig(teacher="runs/mine")`.')
    if config.teacher is None:
        raise argument_error("teacher", "a model or a run", "nothing", "Add `--teacher MODEL`.")
    name = _absolute(config.teacher)
    teacher = _load_teacher(name, config.teacher_decode_steps)
    architecture = student_config(config.student, teacher, config.clips.val_bucket.shape)
    terms: dict[str, Term] = {}  # settings that a run has saved have its own, which these replace
    if config.train_encoder:
        terms["teacher_latent"] = Term(f"{__name__}.TeacherLatent", config.latent_weight, {"teacher": name})
    if config.teacher_weight > 0:
        target = f"{__name__}.TeacherReconstruction"
        steps = {"decode_steps": config.teacher_decode_steps} if _generates(teacher) else {}
        terms["teacher_reconstruction"] = Term(target, config.teacher_weight, {"teacher": name, **steps})
    if config.feature_weight > 0:
        params = {"teacher": name, "channels": architecture.channels, "layers": [*config.feature_layers]}
        terms["teacher_features"] = Term(f"{__name__}.TeacherFeatures", config.feature_weight, params)
    sampled = teacher if architecture.decoder == "flow" and _generates(teacher) and not config.train_encoder else None
    if sampled is not None:
        architecture = replace(architecture, flow=replace(architecture.flow, one_step=True))
    if (terms or sampled is not None) and not {*architecture.nested_channels} <= {*teacher.nested_channels}:
        got, remedy = str([*architecture.nested_channels]), "Use a teacher with them, or leave out what learns from it."
        raise argument_error("nested_channels", f"those of the teacher, {[*teacher.nested_channels]}", got, remedy)
    others = {each: term for each, term in config.objective.terms.items() if each not in _TERMS}
    objective = replace(config.objective, terms=others | terms)
    config = replace(config, teacher=name, causal_vae=architecture, objective=objective)
    run = partial(train, console=console, steal_lock=steal_lock, change_data=change_data)
    if config.train_encoder:
        return run(replace(config, model=None))
    set_seed(config.seed)
    student = StudentAutoencoder.of(teacher, name, load_autoencoder, architecture)
    config = replace(config, teacher=_absolute(student.teacher))  # that of a student is its own teacher
    if sampled is not None and student.imitate(sampled):
        config = replace(config, linear_start=False)
    return run(replace(config, model=name), autoencoder=student)


def _load_teacher(name: str, decode_steps: int) -> VideoAutoencoder:
    teacher = load_autoencoder(name)
    if _generates(teacher):
        teacher.sampler = Sampler(decode_steps)
    return teacher


def _generates(teacher: VideoAutoencoder) -> TypeGuard[CausalAutoencoder]:
    return isinstance(teacher, CausalAutoencoder) and teacher.sampler is not None


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
