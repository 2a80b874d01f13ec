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
        return _scaled(x, eps, is_smooth)[0]
    return _UnitVectors.apply(x, eps, is_smooth)


def inverse_norms(x: Tensor, eps: float, *, dim: int = 1) -> Tensor:
    """Return `1 / sqrt(|x|^2 + eps^2)` of vectors along an axis, which can be differentiated twice, also at 0.

    Args:
        x: Any shape.
        eps: Above 0.
        dim: The axis of the vectors, which has size 1 in the result.
    """
    return (x.square().sum(dim=dim, keepdim=True) + eps**2).rsqrt()


def _scaled(x: Tensor, eps: float, is_smooth: bool) -> tuple[Tensor, Tensor]:
    """Return the unit vectors and the norms, or the inverses of smooth ones."""
    if is_smooth:
        inverse = inverse_norms(x, eps)
        return x * inverse, inverse
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(eps)
    return x / norm, norm


class _UnitVectors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, is_smooth: bool) -> Tensor:
        y, scale = _scaled(x, eps, is_smooth)
        ctx.save_for_backward(x, scale)
        ctx.eps = eps
        ctx.is_smooth = is_smooth
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        """With `y = x / n`, return `(g - <g, y> y) / n`, or `g / n` where `n` is the bound."""
        x, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            y, _ = _scaled(x, ctx.eps, ctx.is_smooth)
            (grad_x,) = torch.autograd.grad(y, x, grad_output, create_graph=True)
            return grad_x, None, None
        # The scale of smooth ones is the inverse of the norm.
        divide = torch.mul if ctx.is_smooth else torch.div
        y = divide(x, scale)
        inner = (grad_output * y).sum(dim=1, keepdim=True)
        if not ctx.is_smooth:  # 0 where the norm is `eps`, which is rounded to the norm's precision
            threshold = ctx.eps * (1 + torch.finfo(scale.dtype).eps)
            inner = torch.ops.aten.threshold_backward(inner, scale, threshold)
        grad_x = divide(torch.addcmul(grad_output, y, inner, value=-1), scale)
        return grad_x.to(x.dtype), None, None
