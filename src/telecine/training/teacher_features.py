"""A term of distillation that compares features inside the decoders of student and teacher."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.autoencoders.causal import CausalAutoencoder
from telecine.autoencoders.causal_blocks import ChannelNorm, Upsample
from telecine.autoencoders.load import load_model_or_run
from telecine.base.checks import argument_error, describe, nearest
from telecine.base.frozen import Frozen
from telecine.base.precision import at_least_float32
from telecine.base.shapes import Scalar
from telecine.losses.latent import Decode
from telecine.losses.reconstruction import weighted_mean


class TeacherFeatures(nn.Module):
    """The squared error of a student's features against a frozen teacher's inside the decoder (arXiv:2508.09136).

    A trained projection maps the student's features at the end of each of its resolutions to the channels of a layer of
    the teacher, whose features are averaged over the frames of a latent frame. The error is in units of their variance,
    and the mean over these layers. Without knowledge of the video it is at least 1. An update decodes once more.

    Args:
        teacher: A model or a run.
        channels: Channels of the student's levels, see `CausalVAEConfig.channels`.
        layers: Layers of the teacher's decoder by name; by default the last one of each height and width that the
            student has, too.

    Raises:
        ValueError: The teacher's decoder does not call such a layer, or no layer of such a size.
    """

    def __init__(self, teacher: str, channels: Sequence[int], layers: Sequence[str] = ()) -> None:
        super().__init__()
        self.teacher = Frozen(load_model_or_run(teacher))
        of_clip = self.teacher.module
        latent = of_clip.encode(torch.zeros(1, of_clip.in_channels, *of_clip.covering_clip(1, 1, 1))).mode()[:, :, :1]
        found = self._features(latent, [name for name, _ in _decoder_of(of_clip).named_modules() if name])
        scales = {name: x.shape[-1] // latent.shape[-1] for name, x in found.items()}
        last = {scale: name for name, scale in scales.items()}
        self.layers = list(layers) or [last[2**level] for level in range(len(channels)) if 2**level in last]
        for name in self.layers or ["none of the student's sizes"]:
            if name not in found:
                remedy = nearest(name, found) or f"Its last ones are {', '.join([*found][-3:])}."
                raise argument_error("feature_layers", "layers that the teacher's decoder calls", repr(name), remedy)
        self.levels = [min(max(scales[name], 1).bit_length(), len(channels)) - 1 for name in self.layers]
        sizes = zip((channels[-1 - level] for level in self.levels), self.layers, strict=True)
        self.projections = nn.ModuleList(nn.Conv3d(width, found[name].shape[1], 1) for width, name in sizes)

    def forward(self, *, latent: Tensor, decode: Decode, weight: Tensor | None = None) -> Scalar:
        """Return the error, 0-d, of a student's `decode` for a latent `(B, C, t, h, w)`, with sample weights `(B,)`."""
        student = getattr(decode, "__self__", None)
        if not isinstance(student, CausalAutoencoder):
            remedy = "Use the term in `telecine distill`."
            raise argument_error("decode", "the method of a decoder of telecine", describe(decode), remedy)
        following = enumerate(layer for _, layer in pairwise(student.decoder.network))
        ends = [str(at) for at, layer in following if isinstance(layer, (Upsample, ChannelNorm))]
        with _recorded(student.decoder.network, ends) as of_student:
            decode(latent)
        of_teacher = self._features(latent, self.layers)
        errors = []
        for name, level, projection in zip(self.layers, self.levels, self.projections, strict=True):
            x = at_least_float32(projection(torch.cat(of_student[ends[level]], dim=2)))
            y = at_least_float32(_pooled(of_teacher[name], x.shape[2:]))
            variance = y.var((0, 2, 3, 4), correction=0).mean().clamp_min(1e-6)
            errors.append(weighted_mean((x - y).square() / variance, weight))
        return torch.stack(errors).mean()

    @torch.no_grad()
    def _features(self, latent: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the outputs `(B, c, t, h, w)` of layers, in order; of a single frame, those that are called once."""
        teacher = self.teacher.module
        with _recorded(_decoder_of(teacher), names) as found:
            teacher.decode(latent)
        if latent.shape[2] == 1:
            found = {name: parts for name, parts in found.items() if len(parts) == 1}
        clips = {name: torch.cat(parts, dim=2) if parts[0].ndim == 5 else parts[0] for name, parts in found.items()}
        frames = {name: x.unflatten(0, (len(latent), -1)).transpose(1, 2) for name, x in clips.items() if x.ndim == 4}
        return clips | frames


def _decoder_of(model: nn.Module) -> nn.Module:
    return getattr(model, "module", model).get_submodule("decoder")  # type: ignore[no-any-return]


@contextmanager
def _recorded(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Yield the outputs of layers by name, in the order in which they end, one for each temporal chunk."""
    found: dict[str, list[Tensor]] = {}

    def record(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim in (4, 5):
            found.setdefault(name, []).append(output)

    layers = {name: module.get_submodule(name) for name in names}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: record(name, output))
        for name, layer in layers.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _pooled(video: Tensor, size: Sequence[int]) -> Tensor:
    """Return `(B, c, T, H, W)` averaged to a size `(t, h, w)`, the first frame apart."""
    parts = [F.adaptive_avg_pool3d(video[:, :, :1], (1, *size[1:]))]
    if size[0] > 1:
        parts.append(F.adaptive_avg_pool3d(video[:, :, 1:], (size[0] - 1, *size[1:])))
    return torch.cat(parts, dim=2)
