"""Which perceptual distance an objective uses: LPIPS by name, or one of the caller's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from telecine.perceptual.backbones import BACKBONES
from telecine.perceptual.custom import CustomDistance
from telecine.perceptual.lpips import LPIPS, PerceptualDistance
from telecine.perceptual.weights import WeightsSource
from telecine.shapes import Frames, argument_error, describe, nearest


class Perceptual(nn.Module):
    """The perceptual distance of an objective, called alike whichever it is.

    Args:
        net: "vgg" or "alex" for LPIPS, an `LPIPS`, or a distance of the caller's own, as `CustomDistance` takes it:
            a module is frozen and taken over.
        weights: where the backbone of a named net comes from, as `load_backbone` takes it.

    It has no parameters and no buffers, and moves with `.to(device)`, as `LPIPS` does.

    Raises:
        ValueError: `net` is none of these, `weights` do not fit it, or are given beside a net that has its own.
        WeightsNotFoundError: the weights are neither at hand nor to be had.
    """

    def __init__(self, net: str | Callable[..., Tensor] = "vgg", *, weights: WeightsSource = None) -> None:
        super().__init__()
        self.distance = _build(net, weights)

    @property
    def has_features(self) -> bool:
        """Say whether the distance looks at feature maps, so that their Gram matrices can be compared as well."""
        return isinstance(self.distance, LPIPS)

    def forward(self, *, reconstruction: Frames, target: Frames, gram: bool = False) -> PerceptualDistance:
        """Return the distances of each frame, (N,) at least float32; `.gram` is zero where it is not asked for.

        Both are (N, 3, H, W) in [-1, 1], of one shape and device. The graph is kept for what needs it.

        Raises:
            ValueError: the two are no such frames, or `gram` is asked of a distance without features.
        """
        if gram:
            return self._with_features().compare(reconstruction=reconstruction, target=target)
        distance = self.distance(reconstruction=reconstruction, target=target)
        return PerceptualDistance(distance, torch.zeros_like(distance))

    def _with_features(self) -> LPIPS:
        if not isinstance(self.distance, LPIPS):
            raise argument_error("gram", "False for a distance without features", True, 'Use "vgg" or "alex".')
        return self.distance


def _build(net: Any, weights: WeightsSource) -> LPIPS | CustomDistance:
    if isinstance(net, str):
        _check_name(net)
        return LPIPS(net, weights=weights)
    if weights is not None:
        remedy = "Load them into it before."
        raise argument_error("weights", "None where `net` is no name", describe(weights), remedy)
    return net if isinstance(net, LPIPS) else CustomDistance(net)


def _check_name(net: str) -> None:
    if net not in BACKBONES:
        names = ", ".join(f'"{name}"' for name in BACKBONES)
        remedy = nearest(net.lower(), BACKBONES) or "Pass a callable (reconstruction=, target=) for another distance."
        raise argument_error("net", f"{names}, or a callable", describe(net), remedy)
