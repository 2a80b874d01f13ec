"""What holds for whole passes of networks, and reaches layers deep inside them.

It is a context, as autocast is: the `forward` of a user's discriminator has no argument for it. Each thread has its
own.

| option | function | what it does |
|---|---|---|
| `is_differentiated_twice` | `BoundDiscriminator.__call__` | sets it, if a penalty differentiates the output twice |
| `is_differentiated_twice` | `GradientCheckpointing.run_block` | reads it, sets it where a block is computed again |
| `is_differentiated_twice` | `convolve` | reads it, to choose the kernels |
| `is_differentiated_twice` | `FeatureMaps.forward` | reads it, to choose the kernels of attention |
| `spectral_norms` | `compute_gradients` | sets it, for all micro-batches of an update |
| `spectral_norms` | `VideoAutoencoderLoss._compute_losses` | sets it, for a call by itself |
| `spectral_norms` | `normalised_weights` | reads it, and adds the weights of a network |
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from torch import nn


@dataclass(frozen=True)
class PassOptions:
    """The options of the passes that run now."""

    is_differentiated_twice: bool = False
    """Whether gradients of the output are differentiated."""
    spectral_norms: dict[nn.Module, Any] | None = None
    """The normalised weights of networks by their first layer; None if passes do not share them."""


_DEFAULTS = PassOptions()
_OPTIONS: ContextVar[PassOptions] = ContextVar("pass_options", default=_DEFAULTS)


def pass_options() -> PassOptions:
    """Return the options of the passes that run now."""
    return _OPTIONS.get()


@contextmanager
def differentiated_twice(on: bool = True) -> Iterator[None]:
    """Let layers inside prepare for a double backward; an ordinary backward becomes a few percent slower.

    Convolutions take the kernels of `ops/convolution.py`, and frozen networks avoid fused kernels of attention.
    """
    before = _OPTIONS.get().is_differentiated_twice
    _OPTIONS.set(replace(_OPTIONS.get(), is_differentiated_twice=on))
    try:
        yield
    finally:
        # Other options may have changed meanwhile.
        _OPTIONS.set(replace(_OPTIONS.get(), is_differentiated_twice=before))


@contextmanager
def shared_spectral_norms() -> Iterator[None]:
    """Let all passes of a network inside share its normalised weights, after one step of the power iteration.

    The weights must not change inside. Contexts inside others have no effect.
    """
    before = _OPTIONS.get().spectral_norms
    norms = {} if before is None else before
    _OPTIONS.set(replace(_OPTIONS.get(), spectral_norms=norms))
    try:
        yield
    finally:
        _OPTIONS.set(replace(_OPTIONS.get(), spectral_norms=before))
