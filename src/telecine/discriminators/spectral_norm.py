"""Spectral norms (arXiv:1802.05957) of all layers of a network at once, as a batch of matrices padded with zeros."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from telecine.ops.pass_options import pass_options


class _NormalisedLayers(NamedTuple):
    """The normalised weights of several layers, and what they were divided by."""

    weights: list[Tensor]
    u: Tensor  # `(layers, size, 1)`, padded with zeros
    v: Tensor  # the same
    sigma: Tensor  # `(layers,)`


def normalised_weights(network: nn.Module, layers: Sequence[Any]) -> Sequence[Tensor]:
    """Return the weights of layers with PyTorch's `spectral_norm`, divided by their norms.

    In training mode this is one step of the power iteration, but only the first inside `shared_spectral_norms`.

    Args:
        network: The network, whose passes share the norms there.
        layers: All its layers with a spectral norm.
    """
    parametrizations = [layer.parametrizations.weight for layer in layers]
    shared: dict[nn.Module, _NormalisedLayers] | None = pass_options().spectral_norms
    if shared is None:
        normalised = _power_iteration(parametrizations)
    else:
        if network not in shared:
            shared[network] = _power_iteration(parametrizations)
        normalised = shared[network]
    originals = [parametrization.original for parametrization in parametrizations]
    return _DivideBySigma.apply(normalised, *originals)


@torch.no_grad()
def _power_iteration(parametrizations: Sequence[Any]) -> _NormalisedLayers:
    """Normalise the weights of several layers; in training mode, after one step of the power iteration."""
    originals = [parametrization.original for parametrization in parametrizations]
    us = [parametrization[0]._u for parametrization in parametrizations]
    vs = [parametrization[0]._v for parametrization in parametrizations]
    eps = parametrizations[0][0].eps
    matrix = _padded([original.flatten(1) for original in originals])
    v = _padded([vector[:, None] for vector in vs])
    if parametrizations[0].training:
        u = F.normalize(matrix @ v, dim=1, eps=eps)
        v = F.normalize(matrix.mT @ u, dim=1, eps=eps)
        new_us = [row[: len(vector), 0] for row, vector in zip(u, us, strict=True)]
        new_vs = [row[: len(vector), 0] for row, vector in zip(v, vs, strict=True)]
        torch._foreach_copy_(us + vs, new_us + new_vs)
    else:
        u = _padded([vector[:, None] for vector in us])
    sigma = (u * (matrix @ v)).sum((1, 2))
    weights = list(torch._foreach_div(originals, sigma.unbind()))
    return _NormalisedLayers(weights, u, v, sigma)


def _padded(matrices: Sequence[Tensor]) -> Tensor:
    """Return matrices of any size as one batch, padded with zeros."""
    height = max(matrix.shape[0] for matrix in matrices)
    width = max(matrix.shape[1] for matrix in matrices)
    batch = matrices[0].new_zeros(len(matrices), height, width)
    torch._foreach_copy_(_without_padding(batch, matrices), list(matrices))
    return batch


def _without_padding(batch: Tensor, matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return views of the parts of a padded batch that are not padding; `matrices` have their sizes."""
    views = []
    for padded, matrix in zip(batch, matrices, strict=True):
        height, width = matrix.shape
        views.append(padded[:height, :width])
    return views


class _DivideBySigma(torch.autograd.Function):
    """The normalised weights as a function of the weights; u and v are constants. Differentiable once.

    That is enough for a penalty with a double backward. It differentiates logits for the input, which does not run this
    backward; the gradient of the penalty for the weights runs it once.
    """

    @staticmethod
    def forward(ctx: Any, layers: _NormalisedLayers, *originals: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(layers.u, layers.v, layers.sigma, *layers.weights)
        return tuple(weight.detach() for weight in layers.weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """With `W = W' / sigma` and `sigma = u^T W' v`, return `(G - <G, W> u v^T) / sigma`."""
        u, v, sigma, *weights = ctx.saved_tensors
        gradient_matrices = [gradient.flatten(1) for gradient in gradients]
        weight_matrices = [weight.flatten(1) for weight in weights]
        gradient, weight = _padded(gradient_matrices + weight_matrices).chunk(2)
        inner = (gradient * weight).sum((1, 2), keepdim=True)
        padded = torch.baddbmm(gradient, inner * u, v.mT, alpha=-1) / sigma.view(-1, 1, 1)
        grad_weights = []
        for matrix, weight in zip(_without_padding(padded, weight_matrices), weights, strict=True):
            grad_weights.append(matrix.reshape(weight.shape))
        return (None, *grad_weights)
