"""The adaptive weight: an adversarial term is scaled so that it pulls the decoder as hard as the perceptual one.

As in VQGAN (Esser et al., arXiv:2012.09841, equation 7), with the perceptual loss alone as the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist

from telecine.shapes import Scalar

MIN_NORM = 1e-3
MAX_WEIGHT = 1e3


def adaptive_weight(*, reference_norm: Scalar, norm: Scalar) -> Scalar:
    """Return `min(reference_norm / max(norm, 1e-3), 1e3)`, or 1 where the ratio is not finite; no graph, no sync."""
    ratio = (reference_norm / norm.clamp(min=MIN_NORM)).detach()
    return torch.where(torch.isfinite(ratio), ratio, torch.ones_like(ratio)).clamp(max=MAX_WEIGHT)


def gradient_norm(loss: Scalar, last_layer: Tensor, reduce: Callable[[Tensor], Tensor]) -> Scalar:
    """Return the float32 2-norm of `d loss / d last_layer`, averaged over ranks before the norm is taken.

    This is an extra backward from the loss to the last layer; the graph is kept.

    Raises:
        ValueError: If the loss does not depend on the last layer.
    """
    (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise ValueError(
            "`last_layer` must be a parameter that `reconstructions` were computed with, but they do not depend on "
            f"this one of shape {tuple(last_layer.shape)}. Pass the weight of the decoder's last layer, e.g. "
            "`model.decoder.conv_out.weight`."
        )
    return torch.linalg.vector_norm(reduce(gradient.detach().float()))


def average_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of `tensor` over the ranks of the default process group, or `tensor` where there is none."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
