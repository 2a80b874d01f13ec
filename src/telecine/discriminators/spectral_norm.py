"""Spectral normalisation (arXiv:1802.05957) of all convolutions of a network at once, and once for many passes.

The state is that of PyTorch's `spectral_norm`, which computes each layer by itself in each pass. Here the matrices of
the layers are padded with zeros to one size, so that an operator has all of them in its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.parametrize import ParametrizationList


class _Normalised(NamedTuple):
    """The normalised weights of some layers, and what their gradients need."""

    weights: list[Tensor]
    u: Tensor
    """The estimate of the first left singular vectors, `(layers, height, 1)`, padded with zeros."""
    v: Tensor
    """That of the right ones, `(layers, width, 1)`."""
    sigma: Tensor
    """The estimate of the largest singular values `(layers,)`."""


# By the first layer. None outside of `shared_spectral_norms`.
_shared: ContextVar[dict[nn.Module, _Normalised] | None] = ContextVar("shared", default=None)


@contextmanager
def shared_spectral_norms() -> Iterator[None]:
    """Let all passes of a network inside share its normalised weights, after one step of the power iteration.

    The weights must not change inside. Contexts inside others have no effect.
    """
    is_outermost = _shared.get() is None
    before = _shared.set({}) if is_outermost else None
    try:
        yield
    finally:
        if before is not None:
            _shared.reset(before)


def normalised_weights(layers: Sequence[nn.Module]) -> Sequence[Tensor]:
    """Return the weights of layers with PyTorch's `spectral_norm`, divided by their spectral norms.

    In training mode this is one step of the power iteration, but only the first inside `shared_spectral_norms`.
    Gradients are those of PyTorch's parametrization; second derivatives with respect to weights do not exist.
    """
    shared = _shared.get()
    found = None if shared is None else shared.get(layers[0])
    if found is None:
        found = _normalise(layers)
        if shared is not None:
            shared[layers[0]] = found
    originals = [_norm_of(layer).original for layer in layers]
    return cast(tuple[Tensor, ...], _Normalise.apply(found, *originals))


def _norm_of(layer: nn.Module) -> Any:
    return cast(ParametrizationList, cast(nn.ModuleDict, layer.parametrizations)["weight"])


@torch.no_grad()
def _normalise(layers: Sequence[nn.Module]) -> _Normalised:
    norms = [_norm_of(layer) for layer in layers]
    originals, steps = [norm.original for norm in norms], [norm[0] for norm in norms]
    us, vs, eps = [step._u for step in steps], [step._v for step in steps], steps[0].eps
    matrix, v = _padded([original.flatten(1) for original in originals]), _padded([each[:, None] for each in vs])
    if layers[0].training:
        u = F.normalize(matrix @ v, dim=1, eps=eps)
        v = F.normalize(matrix.mT @ u, dim=1, eps=eps)
        torch._foreach_copy_(us + vs, [row[: len(x), 0] for x, row in zip(us + vs, [*u, *v], strict=True)])
    else:
        u = _padded([each[:, None] for each in us])
    sigma = (u * (matrix @ v)).sum((1, 2))
    return _Normalised(list(torch._foreach_div(originals, sigma.unbind())), u, v, sigma)


def _padded(matrices: Sequence[Tensor]) -> Tensor:
    """Return matrices as a batch of the largest height and width, with zeros below and to the right."""
    height, width = (max(matrix.shape[dim] for matrix in matrices) for dim in (0, 1))
    batch = matrices[0].new_zeros(len(matrices), height, width)
    torch._foreach_copy_(_parts(batch, matrices), list(matrices))
    return batch


def _parts(batch: Tensor, matrices: Sequence[Tensor]) -> list[Tensor]:
    return [each[: matrix.shape[0], : matrix.shape[1]] for each, matrix in zip(batch, matrices, strict=True)]


class _Normalise(torch.autograd.Function):
    """Known normalised weights as a function of the weights before; u and v are constants."""

    @staticmethod
    def forward(ctx: Any, known: _Normalised, *originals: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(known.u, known.v, known.sigma, *known.weights)
        return tuple(weight.detach() for weight in known.weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """With `W = W' / sigma` and `sigma = u^T W' v`, return `(G - <G, W> u v^T) / sigma`."""
        u, v, sigma, *weights = ctx.saved_tensors
        matrices = [each.flatten(1) for each in (*gradients, *weights)]
        gradient, weight = _padded(matrices).chunk(2)
        inner = (gradient * weight).sum((1, 2), keepdim=True)
        found = torch.baddbmm(gradient, inner * u, v.mT, alpha=-1) / sigma.view(-1, 1, 1)
        parts = zip(_parts(found, matrices[: len(weights)]), weights, strict=True)
        return (None, *(part.unflatten(1, original.shape[1:]) for part, original in parts))
