"""The adaptive weight: it makes the gradient of an adversarial term as large as that of a reference loss.

As in VQGAN (Esser et al., arXiv:2012.09841, equation 7), by default with the perceptual loss as the reference.
"""

import warnings
from collections.abc import Mapping

import torch
from torch.compiler import is_compiling

from telecine.base.shapes import Scalar
from telecine.objective.gradient_probes import GradientProbe
from telecine.settings import AdaptiveWeightConfig

_NO_LAYER = (
    "`last_layer` {}, so that the adaptive weight is 1 instead of the ratio of two gradients. Pass the weight of the "
    'decoder\'s last layer, which is trained, or choose `adaptive_weight={{"at": "reconstruction"}}` or '
    '`{{"reference": "none"}}`.'
)


def adaptive_weights(
    config: AdaptiveWeightConfig,
    losses: Mapping[str, Scalar],
    references: Mapping[str, Scalar],
    grad_at: GradientProbe | None,
) -> dict[str, Scalar]:
    """Return the weight of each generator loss by name; 1 if there are no gradients to compare.

    The weight is `min(|grad reference| / max(|grad loss|, min_norm), max)`, without a graph; 1 if it is not finite.

    Args:
        config: The settings.
        losses: The generator losses by name.
        references: What they may be compared with, by the names of `config.reference`.
        grad_at: Where gradients are compared; None if the caller passed no `last_layer`.

    Raises:
        ValueError: A loss does not depend on `grad_at`.
    """
    ones = {name: torch.ones_like(loss) for name, loss in losses.items()}
    reference = references.get(config.reference)
    if not losses or reference is None or not reference.requires_grad:
        return ones
    if grad_at is None or not grad_at.has_gradient:
        if config.at == "last_layer" and not is_compiling():
            warnings.warn(
                _NO_LAYER.format("is None" if grad_at is None else "requires no gradient"),
                stacklevel=2,
            )
        return ones
    norms = grad_at.norms([reference, *losses.values()])
    reference_norm = next(norms)
    weights = {}
    for name, norm in zip(losses, norms, strict=True):
        ratio = (reference_norm / norm.clamp(min=config.min_norm)).detach()
        weights[name] = torch.where(torch.isfinite(ratio), ratio.clamp(max=config.max), 1)
    return weights
