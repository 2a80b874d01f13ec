"""The module inside an autoencoder that wraps one, as for models of diffusers and custom modules."""

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return what an autoencoder wraps as `module`, or the autoencoder itself if it wraps nothing."""
    module: nn.Module = getattr(model, "module", model)
    return module


def class_name(model: nn.Module) -> str:
    """Return the name of the class that users know: of the wrapped module, or of the autoencoder itself."""
    return type(unwrapped(model)).__name__
