"""The adaptive weight: an adversarial term is scaled so that it pulls the decoder as hard as the perceptual one.

As in VQGAN (Esser et al., arXiv:2012.09841, equation 7), with the perceptual loss alone as the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist

from telecine.objective.averages import RunningMean
from telecine.objective.carry import gradients_of
from telecine.objective.layer_uses import LayerUses
from telecine.shapes import Scalar

Reduce = Callable[[Tensor], Tensor]
Reference = Literal["perceptual", "recon_and_perceptual", "none"]
Anchor = Literal["last_layer", "reconstruction"]

MIN_NORM = 1e-3
MAX_WEIGHT = 1e3


class Balance(nn.Module):
    """The adaptive weights of all adversarial terms.

    Args:
        names: Which discriminators there are, as keys of a `ModuleDict`.
        at: Where gradients are compared: at the decoder's last layer, or at the reconstruction itself, which costs no
            backward through the decoder and needs no layer to be named.
        min_norm: The denominator is this at least.
        max_weight: The weight is this at most.
        decay: Decay of a moving average of each weight, which is saved with the loss; 0 for none.
        reduce: Averages a tensor over ranks.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        at: Anchor = "last_layer",
        min_norm: float = MIN_NORM,
        max_weight: float = MAX_WEIGHT,
        decay: float = 0.0,
        reduce: Reduce,
    ) -> None:
        super().__init__()
        self.at: Anchor = at
        self.min_norm = min_norm
        self.max_weight = max_weight
        self.reduce = reduce
        averaged = names if decay > 0 else ()
        self.averages = nn.ModuleDict({name: RunningMean(decay) for name in averaged})

    def forward(
        self, losses: dict[str, Tensor], reference: Scalar | None, anchor: Tensor | LayerUses | None
    ) -> dict[str, Tensor]:
        """Return the weight of each generator loss by name: 1 where there is no gradient or nothing to compare with.

        Args:
            losses: Generator losses by discriminator.
            reference: The loss that the adversarial terms are made as strong as.
            anchor: The tensor at which gradients are compared, or the uses of the layer whose weight that is.
        """
        comparable = anchor is not None and anchor.requires_grad and reference is not None and reference.requires_grad
        if not losses or not comparable:
            return {name: torch.ones_like(loss) for name, loss in losses.items()}
        assert anchor is not None
        assert reference is not None
        norm_of: Callable[..., Scalar] = layer_gradient_norm if self.at == "last_layer" else sample_gradient_norm
        reference_norm = norm_of(reference, anchor, self.reduce)
        weights = {}
        for name, loss in losses.items():
            norm = norm_of(loss, anchor, self.reduce)
            ratio = bounded_ratio(
                reference_norm=reference_norm, norm=norm, min_norm=self.min_norm, max_weight=self.max_weight
            )
            weights[name] = finite_or_one(self._average(name, ratio))
        return weights

    def _average(self, name: str, ratio: Scalar) -> Scalar:
        if not self.averages:
            return ratio
        average = self.averages[name.replace(".", "_")]
        assert isinstance(average, RunningMean)
        if self.training:
            average.update(ratio)
        # Before any finite ratio there is no average either.
        return torch.where(average.num_values > 0, average(), torch.nan)


def adaptive_weight(
    *, reference_norm: Scalar, norm: Scalar, min_norm: float = MIN_NORM, max_weight: float = MAX_WEIGHT
) -> Scalar:
    """Return `min(reference_norm / max(norm, min_norm), max_weight)`, 1 where not finite; no graph, no sync."""
    ratio = bounded_ratio(reference_norm=reference_norm, norm=norm, min_norm=min_norm, max_weight=max_weight)
    return finite_or_one(ratio)


def bounded_ratio(*, reference_norm: Scalar, norm: Scalar, min_norm: float, max_weight: float) -> Scalar:
    """Return `min(reference_norm / max(norm, min_norm), max_weight)`, NaN where the quotient is not finite."""
    ratio = (reference_norm / norm.clamp(min=min_norm)).detach()
    return torch.where(torch.isfinite(ratio), ratio.clamp(max=max_weight), torch.nan)


def finite_or_one(weight: Scalar) -> Scalar:
    """Return the weight, or 1 where it is not finite."""
    return torch.where(torch.isfinite(weight), weight, torch.ones_like(weight))


def layer_gradient_norm(loss: Scalar, last_layer: Tensor | LayerUses, reduce: Reduce) -> Scalar:
    """Return the float32 2-norm of `d loss / d last_layer`, averaged over ranks before the norm is taken.

    This is an extra backward from the loss to the last layer; the graph is kept.

    Raises:
        ValueError: If the loss does not depend on the last layer.
    """
    if isinstance(last_layer, LayerUses):
        gradient = last_layer.gradient(loss)
    else:
        (gradient,) = gradients_of(loss, [last_layer], retain_graph=True)
    if gradient is None:
        raise ValueError(
            "`last_layer` must be a parameter that `reconstructions` were computed with, but they do not depend on "
            f"this one of shape {tuple(last_layer.shape)}. Pass the weight of the decoder's last layer, e.g. "
            "`model.decoder.conv_out.weight`."
        )
    return torch.linalg.vector_norm(reduce(gradient.detach().float()))


def sample_gradient_norm(loss: Scalar, reconstructions: Tensor, reduce: Reduce) -> Scalar:
    """Return the float32 2-norm of `d loss / d reconstructions`, its square averaged over ranks.

    Each rank has clips of its own, so it is the squares that add up. This is an extra backward from the loss to the
    reconstruction; the graph is kept.
    """
    (gradient,) = gradients_of(loss, [reconstructions], retain_graph=True)
    assert gradient is not None
    return reduce(gradient.detach().float().square().sum()).sqrt()


def with_reduced_gradient(parameter: Tensor, reduce: Reduce) -> Tensor:
    """Return the parameter's value, whose gradient is averaged over ranks on its way to the parameter."""
    value = parameter * 1
    if value.requires_grad:
        value.register_hook(reduce)
    return value


def average_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of `tensor` over the ranks of the default process group, or `tensor` where there is none."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
