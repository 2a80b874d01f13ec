"""Vectors along the channels scaled to norm 1, with a gradient in closed form: half the operators of autograd's."""

from typing import Any

import torch
from torch import Tensor


def unit_vectors(x: Tensor, eps: float, *, is_smooth: bool) -> Tensor:
    """Scale vectors along the channels to norm 1.

    Args:
        x: `(B, C, ...)`.
        eps: Bound of the norm.
        is_smooth: Divide by `sqrt(|x|^2 + eps^2)`, whose gradient is finite at 0, instead of `max(|x|, eps)`.
    """
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad):
        return _unit_vectors(x, eps, is_smooth)
    return _UnitVectors.apply(x, eps, is_smooth)


def inverse_norms(x: Tensor, eps: float, *, dim: int = 1) -> Tensor:
    """Return `1 / sqrt(|x|^2 + eps^2)` of vectors along an axis, which can be differentiated twice, also at 0.

    Args:
        x: Any shape.
        eps: Above 0.
        dim: The axis of the vectors, which has size 1 in the result.
    """
    return (x.square().sum(dim=dim, keepdim=True) + eps**2).rsqrt()


def _clamped_norms(x: Tensor, eps: float) -> Tensor:
    """Return `max(|x|, eps)` of the vectors along the channels, `(B, 1, ...)`."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(eps)


def _unit_vectors(x: Tensor, eps: float, is_smooth: bool) -> Tensor:
    if is_smooth:
        return x * inverse_norms(x, eps)
    return x / _clamped_norms(x, eps)


class _UnitVectors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, is_smooth: bool) -> Tensor:
        ctx.eps = eps
        ctx.is_smooth = is_smooth
        if is_smooth:
            inverse = inverse_norms(x, eps)
            ctx.save_for_backward(x, inverse)
            return x * inverse
        norm = _clamped_norms(x, eps)
        ctx.save_for_backward(x, norm)
        return x / norm

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        """With `y = x / n`, return `(g - <g, y> y) / n`, or `g / n` where `n` is the bound."""
        if torch.is_grad_enabled():  # for a second derivative
            x, _ = ctx.saved_tensors
            y = _unit_vectors(x, ctx.eps, ctx.is_smooth)
            (grad_x,) = torch.autograd.grad(y, x, grad_output, create_graph=True)
        elif ctx.is_smooth:
            x, inverse = ctx.saved_tensors
            y = x * inverse
            inner = (grad_output * y).sum(dim=1, keepdim=True)
            grad_x = torch.addcmul(grad_output, y, inner, value=-1) * inverse
        else:
            x, norm = ctx.saved_tensors
            y = x / norm
            inner = (grad_output * y).sum(dim=1, keepdim=True)
            # The bound in the norm's precision, in which it is rounded.
            bound = ctx.eps * (1 + torch.finfo(norm.dtype).eps)
            inner = torch.where(norm <= bound, 0, inner)
            grad_x = torch.addcmul(grad_output, y, inner, value=-1) / norm
        return grad_x.to(x.dtype), None, None
