"""Encode and decode with a diffusers model: without clamp, and with its caches cleared afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from telecine.autoencoders.diffusers.families import Decoded, DiffusersModel, Family, LatentPosterior
from telecine.base.shapes import VALUE_RANGE, Video

CLAMPS = tuple(getattr(owner, name) for owner in (torch, Tensor) for name in ("clamp", "clamp_", "clip", "clip_"))


class WithoutClamp(TorchFunctionMode):
    """Skips clamps to [-1, 1]: the decoders of Wan and Qwen end with one, whose gradient is 0 outside this range."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return the input if `func` is such a clamp; otherwise call `func`."""
        kwargs = kwargs or {}
        if func in CLAMPS:
            given = {**dict(zip(("input", "min", "max"), args, strict=False)), **kwargs}
            bounds = given.get("min"), given.get("max")
            # Bounds may be tensors, whose comparison is none of numbers.
            if "out" not in given and all(isinstance(bound, int | float) for bound in bounds) and bounds == VALUE_RANGE:
                return given["input"]
        return func(*args, **kwargs)


def clear_caches(module: DiffusersModel) -> None:
    """Clear the frames that a model caches between chunks: they keep the graph alive, and are wrong after an error."""
    for name in ("clear_cache", "_clear_conv_cache"):
        if callable(getattr(module, name, None)):
            getattr(module, name)()
    for submodule in module.modules():
        if hasattr(submodule, "causal_cache"):
            submodule.causal_cache = None


@contextmanager
def caches_cleared(module: DiffusersModel) -> Iterator[None]:
    """Clear a model's caches at the end, also after an error."""
    try:
        yield
    finally:
        clear_caches(module)


def encode(module: DiffusersModel, family: Family, video: Video) -> LatentPosterior:
    """Return the posterior of `(B, 3, T, H, W)` in [-1, 1]."""
    with caches_cleared(module):
        return family.encode(module, video.to(weight_dtype(module)))


def decode(module: DiffusersModel, family: Family, latent: Tensor) -> Decoded:
    """Return the video of a latent `(B, C, t, h, w)`, not clamped."""
    with caches_cleared(module), WithoutClamp():
        return family.decode(module, latent.to(weight_dtype(module)))


def weight_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a model's weights. Its inputs must have the same."""
    return next(module.parameters()).dtype


class Reconstruct(nn.Module):
    """Deterministic forward as a module, so that `functional_call` can replace its tensors.

    Args:
        module: The diffusers model.
        family: How it is called.
    """

    def __init__(self, module: DiffusersModel, family: Family) -> None:
        super().__init__()
        self.module = module
        self.family = family

    def forward(self, video: Video) -> Video:
        """Return the reconstruction from the mode of the posterior."""
        latent = encode(self.module, self.family, video).mode()
        return decode(self.module, self.family, latent).video


class Encode(Reconstruct):
    """As `Reconstruct`, from a video to the mode of its posterior."""

    def forward(self, video: Video) -> Tensor:
        """Return the latent `(B, C, t, h, w)`."""
        return encode(self.module, self.family, video).mode()
