"""Compute losses in float32 or float64 under any precision of the caller."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32, and return any other tensor unchanged; the graph is kept."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def autocast_off(device: torch.device) -> AbstractContextManager[None]:
    """Disable autocast on a device inside the context; do nothing on types without autocast, such as "meta"."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device_type=device.type, enabled=False)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype that autocast uses on a device, or None if autocast is off."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(
        device.type
    ):
        return None
    return torch.get_autocast_dtype(device.type)


@contextmanager
def tf32(is_allowed: bool | None) -> Iterator[None]:
    """Allow TF32 on NVIDIA GPUs in products of matrices and in convolutions inside the context, or forbid it.

    TF32 rounds the inputs of float32 products to 10 bits of mantissa. PyTorch's default has it in convolutions of cuDNN
    on Ampere and later, and not in products of matrices.

    Args:
        is_allowed: Whether float32 may be computed in TF32; None changes nothing.
    """
    if is_allowed is None:
        yield
        return
    restore = _save_tf32()
    torch.backends.cuda.matmul.allow_tf32 = is_allowed
    torch.backends.cudnn.allow_tf32 = is_allowed
    try:
        yield
    finally:
        restore()


def _save_tf32() -> Callable[[], None]:
    """Return a function that restores the present settings of TF32."""
    try:
        precision = torch.get_float32_matmul_precision()
        in_convolutions = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        # Set by `fp32_precision`, the interface of PyTorch 2.9, which the older one cannot express.
        backends: Any = torch.backends
        groups = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
        precisions = [group.fp32_precision for group in groups]

        def restore_each() -> None:
            for group, group_precision in zip(groups, precisions, strict=True):
                group.fp32_precision = group_precision

        return restore_each

    def restore() -> None:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = in_convolutions

    return restore


def call_with_cast_weights(
    module: nn.Module, *inputs: Any, separately: nn.Module | None = None
) -> Any:
    """Return `module(*inputs)`. Under autocast, one operator casts the weights of all linear layers and convolutions.

    The first input is a tensor. To compute the gradient of only one of these weights, autograd runs the backward of all
    casts. The layers in `separately` are cast one by one. So are all layers in compiled code, which fuses casts, and
    all layers if some are sharded over processes.
    """
    dtype = autocast_dtype(inputs[0].device)
    if dtype is None or torch.compiler.is_compiling():
        return module(*inputs)
    excluded = set() if separately is None else set(separately.modules())
    weights: dict[str, Tensor] = {}
    for layer_name, layer in module.named_modules():
        if layer in excluded or not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            continue
        for name, weight in layer.named_parameters(recurse=False):
            if weight.dtype == torch.float32:
                weights[f"{layer_name}.{name}"] = weight
    if any(is_traceable_wrapper_subclass(weight) for weight in weights.values()):
        return module(*inputs)
    copies = cast_together(list(weights.values()), dtype)
    return functional_call(module, dict(zip(weights, copies, strict=True)), inputs)


def cast_together(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Convert tensors of one dtype in one operator, and their gradients in one."""
    return _CastTogether.apply(dtype, *tensors)


class _CastTogether(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = tensors[0].dtype
        copies = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
        torch._foreach_copy_(copies, tensors)
        return copies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # for a second derivative
            return (
                None,
                *(None if gradient is None else gradient.to(ctx.dtype) for gradient in gradients),
            )
        sources = []
        targets = []
        copies: list[Tensor | None] = []
        for gradient in gradients:
            copy = None
            if gradient is not None:
                copy = torch.empty_like(gradient, dtype=ctx.dtype)
                sources.append(gradient)
                targets.append(copy)
            copies.append(copy)
        torch._foreach_copy_(targets, sources)
        return (None, *copies)
