"""Spectral norms (arXiv:1802.05957) of all layers of a network at once, as a batch of matrices padded with zeros."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from telecine.base.precision import autocast_off
from telecine.discriminators.base import GradientCheckpointing

# Normalised weights by the first layer; u and v, `(layers, size, 1)`, padded; sigma. None outside of a shared context.
_shared: ContextVar[dict[nn.Module, tuple[list[Tensor], Tensor, Tensor, Tensor]] | None] = ContextVar(
    "shared", default=None
)


@contextmanager
def shared_spectral_norms() -> Iterator[None]:
    """Let all passes of a network inside share its normalised weights, after one step of the power iteration.

    The weights must not change inside. Contexts inside others have no effect.
    """
    outer = _shared.get()
    token = _shared.set({} if outer is None else outer)
    try:
        yield
    finally:
        _shared.reset(token)


def normalised_weights(layers: Sequence[Any]) -> Sequence[Tensor]:
    """Return the weights of layers with PyTorch's `spectral_norm`, divided by their norms.

    In training mode this is one step of the power iteration, but only the first inside `shared_spectral_norms`. In
    compiled code it is none: `step_spectral_norms` comes before.
    """
    norms = [layer.parametrizations.weight for layer in layers]
    if torch.compiler.is_compiling():
        return [norm.original / (norm[0]._u @ norm.original.flatten(1) @ norm[0]._v) for norm in norms]
    shared = _shared.get()
    shared = {} if shared is None else shared
    if layers[0] not in shared:
        shared[layers[0]] = _normalise(norms)
    return _Normalise.apply(*shared[layers[0]], *(norm.original for norm in norms))


def step_spectral_norms(module: nn.Module) -> None:
    """Take the step of the power iteration of telecine's networks; others take their steps themselves, in each pass."""
    for network in (each for each in module.modules() if isinstance(each, GradientCheckpointing)):
        if layers := [layer for layer in network.modules() if is_parametrized(layer, "weight")]:
            with autocast_off(next(network.parameters()).device):
                normalised_weights(layers)


@torch.no_grad()
def _normalise(norms: Sequence[Any]) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    originals, eps = [norm.original for norm in norms], norms[0][0].eps
    us, vs = [norm[0]._u for norm in norms], [norm[0]._v for norm in norms]
    matrix, v = _padded([original.flatten(1) for original in originals]), _padded([x[:, None] for x in vs])
    if norms[0].training:
        u = F.normalize(matrix @ v, dim=1, eps=eps)
        v = F.normalize(matrix.mT @ u, dim=1, eps=eps)
        torch._foreach_copy_(us + vs, [row[: len(x), 0] for x, row in zip(us + vs, [*u, *v], strict=True)])
    else:
        u = _padded([x[:, None] for x in us])
    sigma = (u * (matrix @ v)).sum((1, 2))
    return list(torch._foreach_div(originals, sigma.unbind())), u, v, sigma


def _padded(matrices: Sequence[Tensor]) -> Tensor:
    height, width = (max(matrix.shape[dim] for matrix in matrices) for dim in (0, 1))
    batch = matrices[0].new_zeros(len(matrices), height, width)
    torch._foreach_copy_(_parts(batch, matrices), list(matrices))
    return batch


def _parts(batch: Tensor, matrices: Sequence[Tensor]) -> list[Tensor]:
    return [each[: matrix.shape[0], : matrix.shape[1]] for each, matrix in zip(batch, matrices, strict=True)]


class _Normalise(torch.autograd.Function):
    """Known normalised weights as a function of the weights before; u and v are constants. Differentiable once."""

    @staticmethod
    def forward(ctx: Any, weights: list[Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors[:3], *weights)  # u, v and sigma
        return tuple(weight.detach() for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """With `W = W' / sigma` and `sigma = u^T W' v`, return `(G - <G, W> u v^T) / sigma`."""
        u, v, sigma, *weights = ctx.saved_tensors
        matrices = [each.flatten(1) for each in (*gradients, *weights)]
        gradient, weight = _padded(matrices).chunk(2)
        inner = (gradient * weight).sum((1, 2), keepdim=True)
        padded = torch.baddbmm(gradient, inner * u, v.mT, alpha=-1) / sigma.view(-1, 1, 1)
        parts = zip(_parts(padded, matrices[: len(weights)]), weights, strict=True)
        return (*[None] * 4, *(part.reshape(each.shape) for part, each in parts))
