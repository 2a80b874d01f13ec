"""How differently two videos move."""

from __future__ import annotations

import torch
from torch import Tensor

from telecine.losses.reconstruction import difference, weighted_mean
from telecine.shapes import Scalar, Video


def temporal_difference(
    *, reconstruction: Video, target: Video, weight: Tensor | None = None, mask: Tensor | None = None
) -> Scalar:
    """Return the mean of `|(x[t+1] - x[t]) - (y[t+1] - y[t])|` over every step from frame to frame.

    It sees flicker, which a loss over single frames spreads evenly, and is blind to an error that stays the same in
    every frame. The graph is kept.

    Args:
        reconstruction: x, `(B, C, T, H, W)`.
        target: y, same shape.
        weight: Non-negative weights of the samples, `(B,)`: see `weighted_mean`.
        mask: Bool, broadcasts to the videos. A step counts where it is True in both frames, and the mean is over those
            of all samples; where none counts the result is 0.

    Returns:
        A 0-d tensor in [0, 4] for values in [-1, 1], at least float32; smaller is better. For one frame it is exactly
        0 and so is its gradient.

    Raises:
        ValueError: If the shapes differ, or `weight` is not `(B,)`.
    """
    # Both differences are linear: the steps of x - y are those of x minus those of y.
    steps = difference(reconstruction=reconstruction, target=target).diff(dim=2)
    if steps.shape[2] == 0:
        return steps.sum()  # a mean over no step would be NaN; the sum is 0 and has a graph
    if mask is None:
        return weighted_mean(steps.abs(), weight)
    mask = mask.expand_as(reconstruction)
    counts = mask[:, :, 1:] & mask[:, :, :-1]
    share = counts.to(steps.dtype).mean()
    mean = weighted_mean(torch.where(counts, steps.abs(), torch.zeros_like(steps)), weight)
    return mean / torch.where(share > 0, share, torch.ones_like(share))
