"""How differently each of several clips moves."""

from __future__ import annotations

import torch
from torch import Tensor

from telecine.losses import temporal_difference
from telecine.shapes import Video, argument_error


def flicker(*, reconstruction: Video, target: Video) -> Tensor:
    """Return `temporal_difference` of each clip, `(B,)` in [0, 4], 0 for equal motion; smaller is better.

    Raises:
        ValueError: the clips have one frame, which does not move.
    """
    if target.shape[2] < 2:
        raise argument_error("target", "clips of at least 2 frames", target, "Leave `flicker` out for images.")
    pairs = zip(reconstruction.split(1), target.split(1), strict=True)
    return torch.stack([temporal_difference(reconstruction=recon, target=goal) for recon, goal in pairs])
