"""Unit vectors along the channels times a weight, as one operator, which keeps its input alone for the backward pass.

An RMS norm of C channels is this operator with a weight that contains `sqrt(C)`, as diffusers writes it. The formula
with PyTorch's operators keeps up to three times as much, and takes more passes over memory.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# The bound of `torch.nn.functional.normalize`.
_EPSILON = 1e-12


def scaled_normalize(x: Tensor, weight: Tensor) -> Tensor:
    """Return `torch.nn.functional.normalize(x) * weight`: `(B, C, ...)` divided by its 2-norm over the channels.

    The weight broadcasts to `x`. Half precision is computed in float32. The result has the type of `x`. It cannot be
    differentiated twice.
    """
    return _ScaledNormalize.apply(x, weight)


class _ScaledNormalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        if x.is_cpu:  # `vector_norm` takes several times as long there
            norm = x.to(wide).square().sum(dim=1, keepdim=True).sqrt_()
        else:
            norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide)
        norm.clamp_min_(_EPSILON)
        ctx.save_for_backward(x, norm, weight)
        return (x.to(wide) / norm).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """With `u = x / n`, return `(w g - <w g, u> u) / n`, or `w g / n` where `n` is the bound, and `g u`, summed."""
        x, norm, weight = ctx.saved_tensors
        unit = x.to(norm.dtype) / norm
        grad = grad_output.to(norm.dtype)
        product = grad * unit
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = product.sum_to_size((1, *weight.shape)).view_as(weight).to(weight.dtype)
        inner = (product * weight).sum(dim=1, keepdim=True).mul_(norm > _EPSILON)
        grad_x = torch.addcmul(grad * weight, unit, inner, value=-1).div_(norm)
        return grad_x.to(x.dtype), grad_weight
