"""How far a reconstruction is from its target, pixel by pixel."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from telecine.precision import at_least_float32
from telecine.shapes import Scalar


def mse(*, reconstruction: Tensor, target: Tensor) -> Scalar:
    """Return the mean squared error over every element.

    Args:
        reconstruction: Any shape, usually `(B, C, T, H, W)` in [-1, 1]; the graph is kept.
        target: Same shape.

    Returns:
        A 0-d tensor in [0, 4] for values in [-1, 1], in float32 or the wider input type; smaller is better.
    """
    return F.mse_loss(at_least_float32(reconstruction), at_least_float32(target))
