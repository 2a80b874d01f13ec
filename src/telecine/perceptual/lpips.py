"""The perceptual distance LPIPS v0.1: frozen, deterministic, free of NaN, float32 or wider for any caller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from importlib import resources
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load as load_safetensors
from torch import Tensor

from telecine.perceptual.backbones import Backbone, FeatureMap, backbone_of, run_stage
from telecine.perceptual.frozen import Frozen
from telecine.perceptual.gram import gram_distance
from telecine.perceptual.pairs import check_alike, check_frames
from telecine.perceptual.weights import WeightsSource, load_backbone
from telecine.precision import autocast_off
from telecine.shapes import Frames, argument_error

# Maps [-1, 1] to the statistics the backbones were trained with.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
# Added to the squared norm of a pixel's features. That is above 1 on real frames, where this is less than a rounding
# error in float32; where all features are zero it bounds the gradient of the unit vector to 1e4.
_EPSILON = 1e-8


class PerceptualDistance(NamedTuple):
    """How far each frame of a reconstruction is from its target; larger is worse, 0 for equal frames."""

    lpips: Float[Tensor, " frame"]
    """LPIPS, or another distance in its place; (N,), at least float32."""
    gram: Float[Tensor, " frame"]
    """Squared Frobenius norm of the Gram matrices' difference, summed over the stages; (N,), at least float32."""


class LPIPS(Frozen):
    """Learned perceptual distance between frames: 0 for equal ones, larger is worse (arXiv 1801.03924, v0.1).

    Args:
        net: "vgg" (VGG16 up to relu1_2, 2_2, 3_3, 4_3, 5_3), the usual training loss, or "alex" (the five ReLUs of
            AlexNet), the usual metric.
        weights: where the backbone comes from, as `load_backbone` takes it: `None` for torchvision's default, a member
            of torchvision's weights enum, a file, or a state dict. The linear heads ship with telecine.

    The module has no parameters and no buffers, so that no optimizer, checkpoint or data-parallel wrapper meets it,
    and it is always in evaluation mode. It moves with `.to(device)` and `.double()`; `.half()` and `.bfloat16()`
    leave it in float32.

    Raises:
        ValueError: `net` is unknown, or `weights` do not fit it.
        WeightsNotFoundError: the weights are neither at hand nor to be had.

    Example:
        >>> distance = LPIPS("vgg")
        >>> distance(reconstruction=frames + 0.1, target=frames).shape  # frames: (8, 3, 64, 64)
        torch.Size([8])
    """

    def __init__(self, net: str = "vgg", *, weights: WeightsSource = None) -> None:
        super().__init__()
        self.net = net
        self._backbone = backbone_of(net)
        # Not buffers: data-parallel wrappers broadcast every buffer before each forward, here 59 MB that never change.
        self._frozen = {**load_backbone(net, weights), **load_heads(net), **_scaling()}

    def forward(self, *, reconstruction: Frames, target: Frames) -> Float[Tensor, " frame"]:
        """Return one distance per frame (N,), at least float32, in [0, inf); the graph is kept for what needs it.

        Both are (N, 3, H, W) in [-1, 1], of one shape and device; H and W are at least 16 ("vgg") or 31 ("alex").
        The distance is that of the widest precision among the two and the weights, never below float32, also under
        autocast. The features of a `target` that needs no gradient are computed without a graph. Nothing waits for
        the device.

        Raises:
            ValueError: an input is no floating-point (N, 3, H, W) of that size, or the two differ in shape or device.
        """
        self._check(reconstruction, target)
        with autocast_off(reconstruction.device):
            return _add_up(feature_distance(*stage) for stage in self._stages(reconstruction, target))

    def compare(self, *, reconstruction: Frames, target: Frames) -> PerceptualDistance:
        """Return LPIPS, as calling the module does, and the distance of the Gram matrices, from the same features.

        The Gram matrices are those of the features as the backbone has them, not of the unit vectors that LPIPS
        compares; their distance is `gram_distance`, summed over the five stages.

        Raises:
            ValueError: as calling the module does.
        """
        self._check(reconstruction, target)
        with autocast_off(reconstruction.device):
            stages = [
                (feature_distance(x, y, head), gram_distance(x, y))
                for x, y, head in self._stages(reconstruction, target)
            ]
        return PerceptualDistance(*map(_add_up, zip(*stages, strict=True)))

    def _check(self, reconstruction: Frames, target: Frames) -> None:
        for name, frames in (("reconstruction", reconstruction), ("target", target)):
            check_frames(name, frames)
            _check_fits(name, frames, self._backbone)
        check_alike(reconstruction=reconstruction, target=target)

    def _stages(self, reconstruction: Frames, target: Frames) -> Iterator[tuple[FeatureMap, FeatureMap, Tensor]]:
        """Yield both feature maps and the head of one stage after the other."""
        weights = self._weights_for(reconstruction.dtype, target.dtype)
        x, y = standardise(reconstruction, weights), standardise(target, weights)
        for index, stage in enumerate(self._backbone.stages):
            # Apart, not as one batch: nothing here is trained, so a target that needs no gradient gets no graph.
            x, y = run_stage(stage, weights, x), run_stage(stage, weights, y)
            yield x, y, weights[f"head.{index}"]

    def _weights_for(self, *dtypes: torch.dtype) -> dict[str, Tensor]:
        widest = self._frozen["scale"].dtype  # float32 or float64
        for dtype in dtypes:
            widest = torch.promote_types(widest, dtype)
        return {name: tensor.to(widest) for name, tensor in self._frozen.items()}

    def _move(self, fn: Callable[[Tensor], Tensor]) -> None:
        self._frozen = {name: fn(tensor) for name, tensor in self._frozen.items()}

    def extra_repr(self) -> str:
        """Return what `repr` shows inside the parentheses."""
        return f"net={self.net!r}"


def feature_distance(x: FeatureMap, y: FeatureMap, head: Float[Tensor, " feature"]) -> Float[Tensor, " frame"]:
    """Return the distance (N,) of two feature maps (N, C, H, W): unit vectors, squared difference, head, mean."""
    return (_unit_vectors(x) - _unit_vectors(y)).square().mean(dim=(2, 3)) @ head


def standardise(frames: Frames, weights: dict[str, Tensor]) -> Frames:
    """Return `frames`, in [-1, 1], as the backbones expect them, in the precision of `weights`."""
    return (frames.to(weights["shift"].dtype) - weights["shift"]) / weights["scale"]


def load_heads(net: str) -> dict[str, Tensor]:
    """Return the published v0.1 linear heads of `net` as `head.0` ... `head.4`, each (C,), non-negative, float32."""
    heads = load_safetensors(resources.files(__package__).joinpath("heads.safetensors").read_bytes())
    return {f"head.{index}": heads[f"{net}.{index}"] for index in range(len(backbone_of(net).stages))}


def _scaling() -> dict[str, Tensor]:
    return {"shift": torch.tensor(_SHIFT).view(1, 3, 1, 1), "scale": torch.tensor(_SCALE).view(1, 3, 1, 1)}


def _unit_vectors(features: FeatureMap) -> FeatureMap:
    # The epsilon is under the root: outside of it a pixel without any feature has a NaN gradient.
    return features * (features.square().sum(dim=1, keepdim=True) + _EPSILON).rsqrt()


def _add_up(distances: Iterable[Float[Tensor, " frame"]]) -> Float[Tensor, " frame"]:
    return reduce(torch.add, distances)


def _check_fits(name: str, frames: Tensor, backbone: Backbone) -> None:
    if frames.shape[1] != 3:
        remedy = "Repeat one channel with `frames.expand(-1, 3, -1, -1)`, choose three of more."
        raise argument_error(name, "a floating-point tensor of shape (N, 3, H, W)", frames, remedy)
    if min(frames.shape[2:]) < backbone.minimum_size:
        size = f"at least {backbone.minimum_size} pixels high and wide for {backbone.title}"
        remedy = "Use larger crops, or scale the frames up with `torch.nn.functional.interpolate`."
        raise argument_error(name, size, frames, remedy)
