"""The adaptive weight: it makes the gradient of an adversarial term as large as that of a reference loss.

As in VQGAN (Esser et al., arXiv:2012.09841, equation 7), by default with the perceptual loss as the reference.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.compiler import is_compiling

from telecine.base.checks import argument_error
from telecine.base.precision import at_least_float32
from telecine.base.shapes import Scalar
from telecine.objective.layer_activations import LayerActivations
from telecine.ops.eager_gradients import differentiate
from telecine.ops.ranks import average_over_ranks, num_data_ranks
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
    grad_at: Tensor | LayerActivations | None,
) -> dict[str, Scalar]:
    """Return the weight of each generator loss by name; 1 if there are no gradients to compare.

    The weight is `min(|grad reference| / max(|grad loss|, min_norm), max)`, without a graph; 1 if it is not finite.

    Args:
        config: The settings.
        losses: The generator losses by name.
        references: What they may be compared with, by the names of `config.reference`.
        grad_at: Where gradients are compared: the last layer's weight or activations, or the reconstruction.

    Raises:
        ValueError: A loss does not depend on `grad_at`.
    """
    ones = {name: torch.ones_like(loss) for name, loss in losses.items()}
    reference = references.get(config.reference)
    if not losses or reference is None or not reference.requires_grad:
        return ones
    if grad_at is None or not grad_at.requires_grad:
        if config.at == "last_layer" and not is_compiling():
            warnings.warn(
                _NO_LAYER.format("is None" if grad_at is None else "requires no gradient"),
                stacklevel=2,
            )
        return ones
    norms = gradient_norms([reference, *losses.values()], grad_at, at=config.at)
    reference_norm = next(norms)
    weights = {}
    for name, norm in zip(losses, norms, strict=True):
        ratio = (reference_norm / norm.clamp(min=config.min_norm)).detach()
        weights[name] = torch.where(torch.isfinite(ratio), ratio.clamp(max=config.max), 1)
    return weights


def gradient_norms(
    losses: Sequence[Scalar],
    grad_at: Tensor | LayerActivations,
    *,
    at: Literal["last_layer", "reconstruction"],
) -> Iterator[Scalar]:
    """Yield the 2-norm, in float32 at least, of `d loss / d grad_at` for each loss. The graphs are kept.

    It is that of the mean of the ranks' losses. Of the reconstruction, ranks have different clips, so the squares add
    up. This is an extra backward from each loss.

    Args:
        losses: Scalars.
        grad_at: What to differentiate.
        at: Whether this is the last layer, which ranks share, or the reconstruction.

    Raises:
        ValueError: A loss does not depend on `grad_at`.
    """
    gradients: Iterable[Tensor | None]
    if isinstance(grad_at, LayerActivations):
        gradients = grad_at.weight_gradients(losses)
    else:  # one at a time is in memory
        gradients = (differentiate(loss, [grad_at], retain_graph=True)[0] for loss in losses)
    for gradient in gradients:
        if gradient is None:
            remedy = (
                "Pass the weight of the decoder's last layer, e.g. `model.decoder.conv_out.weight`."
            )
            got = grad_at.layer if isinstance(grad_at, LayerActivations) else grad_at
            raise argument_error(
                "last_layer", "a parameter that `reconstructions` were computed with", got, remedy
            )
        wide = at_least_float32(gradient.detach())
        if at == "last_layer":
            yield torch.linalg.vector_norm(average_over_ranks(wide))
        else:
            yield (average_over_ranks(wide.square().sum()) / num_data_ranks()).sqrt()
