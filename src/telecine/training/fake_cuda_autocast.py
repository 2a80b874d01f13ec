"""Autocast on fake tensors of the CPU that allocates what CUDA's would.

A plan for a GPU has to work without one, and PyTorch for CPUs has no fake GPU. The update is therefore counted on the
CPU, whose autocast computes some operators in half precision that CUDA computes in float32: half the memory. Here these
operators get other kernels for autocast on the CPU, for the whole process, until the context ends.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from telecine.base.precision import at_least_float32

_HALF_PRECISION = (torch.bfloat16, torch.float16)
# Operators that autocast computes in float32 on CUDA but not on the CPU, as far as autoencoders use them, from
# https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float32. The first convert their inputs.
_CONVERT_ON_CUDA = (
    "exp",
    "log",
    "rsqrt",
    "reciprocal",
    "softplus",
    "group_norm",
    "layer_norm",
    "native_layer_norm",
    "rms_norm",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "upsample_bilinear2d",
    "upsample_trilinear3d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
)
_RETURN_FLOAT32_ON_CUDA = (
    "sum",
    "sum.dim_IntList",
    "cumsum",
    "softmax.int",
    "log_softmax.int",
    "linalg_vector_norm",
)


@contextmanager
def autocast_as_on_cuda() -> Iterator[None]:
    """Let autocast on the CPU convert as it does on CUDA, and convolutions allocate no copies for oneDNN."""
    has_onednn = torch._C._get_mkldnn_enabled()
    library = torch.library.Library("aten", "IMPL")
    try:
        torch._C._set_mkldnn_enabled(False)
        for name in _CONVERT_ON_CUDA:
            library.impl(name, _with_float32_inputs(_operator(name)), "AutocastCPU")
        for name in _RETURN_FLOAT32_ON_CUDA:
            library.impl(name, _with_float32_result(_operator(name)), "AutocastCPU")
        yield
    finally:
        library._destroy()
        torch._C._set_mkldnn_enabled(has_onednn)


def _operator(name: str) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    operator: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return operator


def _without_autocast() -> AbstractContextManager[Any]:
    guard: AbstractContextManager[Any] = torch._C._ExcludeDispatchKeyGuard(
        torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    )
    return guard


def _with_float32_inputs(operator: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        wide_args, wide_kwargs = tree_map_only(Tensor, at_least_float32, (args, kwargs))
        with _without_autocast():
            return operator(*wide_args, **wide_kwargs)

    return call


def _with_float32_result(operator: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.dtype in _HALF_PRECISION:
            kwargs = {"dtype": torch.float32, **kwargs}
        with _without_autocast():
            return operator(x, *args, **kwargs)

    return call
