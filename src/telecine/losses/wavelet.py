"""The difference between two videos in the sub-bands of a Haar wavelet transform."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from telecine.losses.reconstruction import difference, weighted_mean
from telecine.precision import at_least_float32
from telecine.shapes import Scalar, Video, argument_error, describe

SubBands = Float[Tensor, "batch 8 channel half_time half_height half_width"]


def haar(video: Video) -> SubBands:
    """Return one level of the orthonormal 3D Haar transform; the graph is kept.

    Each axis is cut into neighbours `(a, b)`, and becomes a low band `(a + b) / sqrt(2)` and a high band
    `(a - b) / sqrt(2)`. On even sizes that keeps every inner product, and so the energy. An axis of odd size, one
    frame included, is first extended by its last slice, whose partner in the high band is then 0.

    Args:
        video: `(B, C, T, H, W)`.

    Returns:
        `(B, 8, C, ceil(T/2), ceil(H/2), ceil(W/2))`, at least float32. Sub-band `4 t + 2 h + w` has the bands `t` of
        time, `h` of height and `w` of width, 0 for low and 1 for high: 0 is the low-pass video (times sqrt(8)), 1 has
        differences over the width, 4 has differences over time.
    """
    bands = at_least_float32(video)[:, None]
    for axis in (-3, -2, -1):
        bands = torch.stack(_low_and_high(bands, axis), dim=2).flatten(1, 2)
    return bands


def _low_and_high(tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the low and the high band of one axis, which is counted from the end."""
    if tensor.shape[axis] % 2:
        tensor = torch.cat((tensor, tensor.narrow(axis, -1, 1)), dim=axis)
    a, b = tensor.unflatten(axis, (-1, 2)).unbind(axis)
    # Sums and not a matrix product, which autocast would round to half precision.
    return (a + b) * 0.5**0.5, (a - b) * 0.5**0.5


def wavelet_l1(*, reconstruction: Video, target: Video, levels: int = 1, weight: Tensor | None = None) -> Scalar:
    """Return the mean absolute difference of the Haar coefficients, averaged over the levels; the graph is kept.

    Every level counts its eight sub-bands, and hands the low one to the next, divided by sqrt(8): as the mean of
    2 x 2 x 2 pixels, so that values stay in their range. Means over coefficients and over levels keep the result within
    the largest error of a pixel, and a weight means the same at any resolution, length and number of levels.

    WF-VAE (Li et al., arXiv:2411.17459) has a loss of this kind inside of its network, on the sub-bands that its
    encoder was given and its decoder gives back; here the videos themselves are transformed. In one frame there is no
    temporal detail: those four bands are 0 and count as such.

    Args:
        reconstruction: `(B, C, T, H, W)` of any size.
        target: Same shape.
        levels: How many times the low band is transformed again, >= 1. Once its axes have size 1 it remains as it is.
        weight: Non-negative weights of the samples, `(B,)`: see `weighted_mean`.

    Returns:
        A 0-d tensor in [0, 2] for values in [-1, 1], at least float32; smaller is better. For the same error `d` in
        every pixel it is `|d| / sqrt(8)`.

    Raises:
        ValueError: If `levels` is no integer >= 1, the shapes differ, or `weight` is not `(B,)`.
    """
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
        raise argument_error("levels", "an integer >= 1", describe(levels), "One level is the usual choice.")
    # The transform is linear: that of the difference is the difference of both.
    low = difference(reconstruction=reconstruction, target=target)
    losses = []
    for _ in range(levels):
        bands = haar(low)
        losses.append(weighted_mean(bands.abs(), weight))
        low = bands[:, 0] * 8**-0.5
    return torch.stack(losses).mean()
