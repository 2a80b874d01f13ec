"""Difference between the frame-to-frame changes of two videos."""

import torch
from torch import Tensor

from telecine.base.shapes import Scalar, Video
from telecine.losses.reconstruction import difference, weighted_mean


def temporal_difference(
    *, reconstruction: Video, target: Video, weight: Tensor | None = None, mask: Tensor | None = None
) -> Scalar:
    """Return the mean of `|(x[t+1] - x[t]) - (y[t+1] - y[t])|` over all pairs of consecutive frames.

    The loss penalises flicker, and ignores an error that is the same in every frame. The graph is kept. It is a 0-d
    tensor in [0, 4] for values in [-1, 1], at least float32; smaller is better. A single frame has exactly 0.

    Args:
        reconstruction, target: x and y, `(B, C, T, H, W)`.
        weight: Non-negative sample weights `(B,)`, see `weighted_mean`.
        mask: Bool, broadcasts to the videos. The mean is over the changes with True in both frames; 0 without any.

    Raises:
        ValueError: If the shapes differ, or `weight` is not `(B,)`.
    """
    changes = difference(reconstruction=reconstruction, target=target).diff(dim=2)  # linear, as the subtraction is
    if changes.shape[2] == 0:
        return changes.sum()  # a mean over no elements would be NaN; the sum is 0 and has a graph
    if mask is None:
        return weighted_mean(changes.abs(), weight)
    mask = mask.expand_as(reconstruction)
    counts = mask[:, :, 1:] & mask[:, :, :-1]
    fraction = counts.to(changes.dtype).mean()
    mean = weighted_mean(torch.where(counts, changes.abs(), torch.zeros_like(changes)), weight)
    return mean / torch.where(fraction > 0, fraction, torch.ones_like(fraction))
