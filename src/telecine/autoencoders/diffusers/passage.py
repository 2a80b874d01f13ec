"""A clip's way through a diffusers model: without clamp, and without anything left behind in caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from telecine.autoencoders.diffusers.families import Decoded, Family
from telecine.autoencoders.diffusers.posterior import LatentPosterior
from telecine.shapes import VALUE_RANGE, Video

CLAMPS = (torch.clamp, Tensor.clamp, torch.clip, Tensor.clip)


class WithoutClamp(TorchFunctionMode):
    """Inside, a clamp to [-1, 1] returns its input: Wan's and Qwen's decoders end with one, which kills gradients."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func` unless it is such a clamp."""
        kwargs = kwargs or {}
        if func in CLAMPS and (*args[1:], *kwargs.values()) == VALUE_RANGE:
            return args[0]
        return func(*args, **kwargs)


def clear_caches(module: Any) -> None:
    """Let a model forget the frames it kept between chunks: they hold the graph, and after an error they are wrong."""
    for name in ("clear_cache", "_clear_conv_cache"):
        if callable(getattr(module, name, None)):
            getattr(module, name)()
    for submodule in module.modules():
        if hasattr(submodule, "causal_cache"):
            submodule.causal_cache = None


@contextmanager
def caches_cleared(module: nn.Module) -> Iterator[None]:
    """Clear a model's caches at the end, whatever happens inside."""
    try:
        yield
    finally:
        clear_caches(module)


def encode(module: nn.Module, family: Family, video: Video) -> LatentPosterior:
    """Return the posterior of `(B, 3, T, H, W)`."""
    with caches_cleared(module):
        return family.encode(module, video.to(weight_type(module)))


def decode(module: nn.Module, family: Family, latent: Tensor) -> Decoded:
    """Return the video of a latent, not clamped."""
    with caches_cleared(module), WithoutClamp():
        return family.decode(module, latent.to(weight_type(module)))


def weight_type(module: nn.Module) -> torch.dtype:
    """Return the type of a model's weights, which clips and latents have to have."""
    return next(module.parameters()).dtype


class Passage(nn.Module):
    """The way there and back as a module, so that it can be called with other tensors than the model's own.

    Args:
        module: the diffusers model.
        family: how it is called.
    """

    def __init__(self, module: nn.Module, family: Family) -> None:
        super().__init__()
        self.module = module
        self.family = family

    def forward(self, video: Video) -> Video:
        """Return the reconstruction from the most likely latent."""
        latent = encode(self.module, self.family, video).mode()
        return decode(self.module, self.family, latent).video
