"""L1 distance between the sub-bands of two videos' 3D Haar wavelet transforms."""

import torch
from jaxtyping import Float
from torch import Tensor

from telecine.base.checks import check_count
from telecine.base.precision import at_least_float32
from telecine.base.shapes import Scalar, Video
from telecine.losses.reconstruction import difference, weighted_mean


def haar(video: Video) -> Float[Tensor, "batch 8 channel half_time half_height half_width"]:
    """Return one level of the orthonormal 3D Haar transform; the graph is kept.

    Along each axis, neighbours `(a, b)` become a low-pass value `(a + b) / sqrt(2)` and a high-pass value
    `(a - b) / sqrt(2)`. For even sizes the transform preserves inner products. An axis of odd size, a single frame
    included, is first extended by a copy of its last slice, so that the high-pass value there is 0.

    A video `(B, C, T, H, W)` becomes `(B, 8, C, ceil(T/2), ceil(H/2), ceil(W/2))`, at least float32. Sub-band
    `4 t + 2 h + w` has filter `t` in time, `h` in height and `w` in width, 0 for low-pass and 1 for high-pass. Sub-band
    0 is the low-pass video times sqrt(8); 1 contains differences along the width, 4 differences along time.
    """
    bands = at_least_float32(video)[:, None]
    for axis in (-3, -2, -1):
        if bands.shape[axis] % 2:
            bands = torch.cat((bands, bands.narrow(axis, -1, 1)), dim=axis)
        a, b = bands.unflatten(axis, (-1, 2)).unbind(axis)
        # Sums instead of a matrix product, which autocast would round to half precision.
        bands = torch.stack(((a + b) * 0.5**0.5, (a - b) * 0.5**0.5), dim=2).flatten(1, 2)
    return bands


def wavelet_l1(
    *, reconstruction: Video, target: Video, levels: int = 1, weight: Tensor | None = None
) -> Scalar:
    """Return the mean absolute difference of the Haar coefficients, averaged over the levels; the graph is kept.

    Every level averages over its eight sub-bands. The next level transforms the low-pass sub-band divided by sqrt(8),
    the mean of 2 x 2 x 2 pixels. The loss, at least float32, is therefore at most the largest error of a pixel, and
    `|d| / sqrt(8)` if each has the error `d`. A weight means the same at any resolution, length and number of levels.

    WF-VAE (Li et al., arXiv:2411.17459) has a loss of this kind on sub-bands inside its network, between those that
    enter its encoder and those that leave its decoder; here the videos are transformed. In a single frame the four
    temporal high-pass sub-bands are 0 and count in the mean.

    Args:
        reconstruction, target: `(B, C, T, H, W)` of any size.
        levels: Number of transforms, >= 1. An axis of size 1 keeps its size.
        weight: Non-negative sample weights `(B,)`, see `weighted_mean`.

    Raises:
        ValueError: If `levels` is not an int >= 1, the shapes differ, or `weight` is not `(B,)`.
    """
    check_count("levels", levels, remedy="One level is the usual choice.")
    low = difference(reconstruction=reconstruction, target=target)  # the transform is linear
    losses = []
    for _ in range(levels):
        bands = haar(low)
        losses.append(weighted_mean(bands.abs(), weight))
        low = bands[:, 0] * 8**-0.5
    return torch.stack(losses).mean()
