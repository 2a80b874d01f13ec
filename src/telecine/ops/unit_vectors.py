"""Vectors along the channels scaled to norm 1, with a gradient in closed form: half the operators of autograd's."""

from typing import Any

import torch
from torch import Tensor


def unit_vectors(x: Tensor, eps: float, *, is_smooth: bool) -> Tensor:
    """Divide `(B, C, ...)` by `max(|x|, eps)` over the channels, or by `sqrt(|x|^2 + eps^2)` if that is smooth."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad):
        return _scaled(x, eps, is_smooth)[0]
    return _UnitVectors.apply(x, eps, is_smooth)


def _scaled(x: Tensor, eps: float, is_smooth: bool) -> tuple[Tensor, Tensor]:
    """Return the unit vectors and the norms, or the inverses of smooth ones."""
    if is_smooth:
        inverse = (x.square().sum(dim=1, keepdim=True) + eps**2).rsqrt()
        return x * inverse, inverse
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(eps)
    return x / norm, norm


class _UnitVectors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *options: Any) -> Tensor:
        y, scale = _scaled(x, *options)
        ctx.save_for_backward(x, scale)
        ctx.options = options
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        """With `y = x / n`, return `(g - <g, y> y) / n`, or `g / n` where `n` is the bound."""
        (x, scale), (eps, is_smooth) = ctx.saved_tensors, ctx.options
        if torch.is_grad_enabled():  # for a second derivative
            return torch.autograd.grad(_scaled(x, eps, is_smooth)[0], x, grad_output, create_graph=True)[0], None, None
        divide = torch.mul if is_smooth else torch.div
        y = divide(x, scale)
        inner = (grad_output * y).sum(dim=1, keepdim=True)
        if not is_smooth:  # 0 where the norm is `eps`, which is rounded to the norm's precision
            inner = torch.ops.aten.threshold_backward(inner, scale, eps * (1 + torch.finfo(scale.dtype).eps))
        return divide(torch.addcmul(grad_output, y, inner, value=-1), scale).to(x.dtype), None, None
