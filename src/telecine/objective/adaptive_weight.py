"""The adaptive weight: it makes the gradient of an adversarial term as large as that of a reference loss.

As in VQGAN (Esser et al., arXiv:2012.09841, equation 7), by default with the perceptual loss as the reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from telecine.base.shapes import Scalar
from telecine.objective.eager import gradients_of
from telecine.objective.layer_activations import LayerActivations
from telecine.ops.ranks import average_over_ranks
from telecine.settings import AdaptiveWeightConfig

NO_LAYER = (
    "`last_layer` is None, so that the adaptive weight is 1 instead of the ratio of two gradients. Pass the weight of "
    'the decoder\'s last layer, or choose `adaptive_weight={"at": "reconstruction"}` or `{"reference": "none"}`.'
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
        config: The settings of the adaptive weight.
        losses: Generator losses by discriminator.
        references: The losses whose gradient may be compared with, by their names in the settings.
        grad_at: Where gradients are compared: the last layer's weight or activations, or the reconstruction.
    """
    reference = references.get(config.reference)
    if not losses or reference is None or not reference.requires_grad:
        return {name: torch.ones_like(loss) for name, loss in losses.items()}
    if grad_at is None and not is_compiling():
        warnings.warn(NO_LAYER, stacklevel=2)
    if grad_at is None or not grad_at.requires_grad:
        return {name: torch.ones_like(loss) for name, loss in losses.items()}
    norms_of: Callable[..., list[Scalar]] = (
        layer_gradient_norms if config.at == "last_layer" else reconstruction_gradient_norms
    )
    reference_norm, *norms = norms_of([reference, *losses.values()], grad_at)
    ratios = [(reference_norm / norm.clamp(min=config.min_norm)).detach() for norm in norms]
    return {
        name: torch.where(torch.isfinite(ratio), ratio.clamp(max=config.max), torch.ones_like(ratio))
        for name, ratio in zip(losses, ratios, strict=True)
    }


def layer_gradient_norms(losses: Sequence[Scalar], last_layer: Tensor | LayerActivations) -> list[Scalar]:
    """Return the float32 2-norm of `d loss / d last_layer` for each loss; gradients are averaged over ranks first.

    This is an extra backward from each loss to the last layer. The graphs are kept.

    Raises:
        ValueError: If a loss does not depend on the last layer.
    """
    if isinstance(last_layer, LayerActivations):
        gradients = last_layer.weight_gradients(losses)
    else:
        gradients = [gradients_of(loss, [last_layer], retain_graph=True)[0] for loss in losses]
    norms = []
    for gradient in gradients:
        if gradient is None:
            raise ValueError(
                "`last_layer` must be a parameter that `reconstructions` were computed with, but they do not depend on "
                f"this one of shape {tuple(last_layer.shape)}. Pass the weight of the decoder's last layer, e.g. "
                "`model.decoder.conv_out.weight`."
            )
        norms.append(torch.linalg.vector_norm(average_over_ranks(gradient.detach().float())))
    return norms


def reconstruction_gradient_norms(losses: Sequence[Scalar], reconstructions: Tensor) -> list[Scalar]:
    """Return the float32 2-norm of `d loss / d reconstructions` for each loss; its square is averaged over ranks.

    Ranks have different clips, so the squares add up. This is an extra backward from each loss to the reconstruction.
    The graphs are kept.
    """
    norms = []
    for loss in losses:
        (gradient,) = gradients_of(loss, [reconstructions], retain_graph=True)
        assert gradient is not None
        norms.append(average_over_ranks(gradient.detach().float().square().sum()).sqrt())
    return norms
