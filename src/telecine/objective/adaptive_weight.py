"""The adaptive weight: it makes the gradient of an adversarial term as large as that of a reference loss.

As in VQGAN (Esser et al., arXiv:2012.09841, equation 7), by default with the perceptual loss as the reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from telecine.base.shapes import Scalar
from telecine.objective.eager import gradients_of
from telecine.objective.layer_activations import LayerActivations
from telecine.objective.running import average_over_ranks
from telecine.settings import AdaptiveWeightConfig

NO_LAYER = (
    "`last_layer` is None, so that the adaptive weight is 1 instead of the ratio of two gradients. Pass the weight of "
    'the decoder\'s last layer, or choose `adaptive_weight={"at": "reconstruction"}` or `{"reference": "none"}`.'
)


class AdaptiveWeight(nn.Module):
    """The adaptive weights of all adversarial terms.

    Args:
        config: Its settings.
    """

    def __init__(self, config: AdaptiveWeightConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, losses: Mapping[str, Tensor], references: Mapping[str, Scalar], grad_at: Tensor | LayerActivations | None
    ) -> dict[str, Tensor]:
        """Return the weight of each generator loss by name; 1 if there are no gradients to compare.

        Args:
            losses: Generator losses by discriminator.
            references: The losses whose gradient may be compared with, by the name in the settings.
            grad_at: Where gradients are compared: the last layer's weight or activations, or the reconstruction.
        """
        reference = references.get(self.config.reference)
        if grad_at is None and losses and reference is not None and reference.requires_grad and not is_compiling():
            warnings.warn(NO_LAYER, stacklevel=2)
        comparable = grad_at is not None and grad_at.requires_grad and reference is not None and reference.requires_grad
        if not losses or not comparable:
            return {name: torch.ones_like(loss) for name, loss in losses.items()}
        assert grad_at is not None
        assert reference is not None
        norms_of: Callable[..., list[Scalar]] = (
            layer_gradient_norms if self.config.at == "last_layer" else reconstruction_gradient_norms
        )
        reference_norm, *norms = norms_of([reference, *losses.values()], grad_at)
        return {
            name: finite_or_one(self._ratio(reference_norm, norm)) for name, norm in zip(losses, norms, strict=True)
        }

    def _ratio(self, reference_norm: Scalar, norm: Scalar) -> Scalar:
        """Return `min(reference_norm / max(norm, min_norm), max)`, NaN if the quotient is not finite."""
        ratio = (reference_norm / norm.clamp(min=self.config.min_norm)).detach()
        return torch.where(torch.isfinite(ratio), ratio.clamp(max=self.config.max), torch.nan)


def finite_or_one(weight: Scalar) -> Scalar:
    """Return the weight, or 1 if it is not finite."""
    return torch.where(torch.isfinite(weight), weight, torch.ones_like(weight))


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
