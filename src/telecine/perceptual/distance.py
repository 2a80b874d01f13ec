"""A custom distance of frames in place of LPIPS."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from telecine.base.checks import argument_error, describe
from telecine.base.frozen import Frozen
from telecine.base.precision import at_least_float32, autocast_off
from telecine.base.shapes import Frames, check_frame_pair

_CONTRACT = "a function or module that compares (reconstruction=, target=)"


class CustomDistance(Frozen[Callable[..., Tensor]]):
    """A custom distance: called in float32 or wider, with its result checked, and frozen if it is a module.

    Args:
        net: Called as `net(reconstruction=..., target=...)`, or as `net(reconstruction, target)` if its parameters
            have other names or cannot be read, with frames `(N, C, H, W)`. It returns a floating-point tensor on their
            device: `(N,)`, `(N, 1, 1, 1)` as the `lpips` package does, or a scalar, which is taken for the mean over
            the frames.

    An `nn.Module` is frozen in place, as `Frozen` does, and moves with this module. The caller freezes and moves the
    networks that a plain function uses.

    Raises:
        ValueError: `net` cannot be called in these ways.
    """

    def __init__(self, net: Callable[..., Tensor]) -> None:
        takes_names = _takes_names(net)  # checked before anything is frozen
        super().__init__(net)
        self._takes_names = takes_names

    def forward(self, *, reconstruction: Frames, target: Frames) -> Float[Tensor, " frame"]:
        """Return one distance per frame, `(N,)`, at least float32; the graph is kept as far as the net keeps it.

        The net receives both, `(N, C, H, W)`, in the wider precision of the two, at least float32, without autocast.

        Raises:
            ValueError: The two are not such frames, or the net returns something else than `CustomDistance` says.
        """
        check_frame_pair(reconstruction=reconstruction, target=target)
        widest = torch.promote_types(torch.promote_types(reconstruction.dtype, target.dtype), torch.float32)
        x, y = reconstruction.to(widest), target.to(widest)
        with autocast_off(x.device):
            distance = self.module(reconstruction=x, target=y) if self._takes_names else self.module(x, y)
        return _one_per_frame(distance, reconstruction)

    def extra_repr(self) -> str:
        """Return the text inside the parentheses of `repr`."""
        return getattr(self.module, "__qualname__", type(self.module).__qualname__)


def _takes_names(net: object) -> bool:
    if not callable(net) or isinstance(net, type):
        raise argument_error("net", _CONTRACT, describe(net), "Pass a function, or an instance of the module's class.")
    try:
        signature = inspect.signature(net.forward if isinstance(net, nn.Module) else net)
    except (TypeError, ValueError):  # compiled code without a readable signature
        return False
    if _binds(signature, reconstruction=None, target=None):
        return True
    if _binds(signature, None, None):
        return False
    remedy = "Fix its other arguments with `functools.partial`."
    raise argument_error("net", _CONTRACT, f"one of the signature {signature}", remedy)


def _binds(signature: inspect.Signature, *args: object, **kwargs: object) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _one_per_frame(distance: Any, frames: Frames) -> Float[Tensor, " frame"]:
    shapes = [(len(frames),) + (1,) * trailing for trailing in range(4)]
    is_float = isinstance(distance, Tensor) and distance.is_floating_point() and distance.device == frames.device
    if not is_float or tuple(distance.shape) not in [(), *shapes]:
        contract = f"{_CONTRACT} and returns floating point of shape {shapes[0]}, {shapes[-1]} or () on {frames.device}"
        raise argument_error("net", contract, describe(distance), "Average over the pixels of each frame, or over all.")
    return at_least_float32(distance).reshape(-1).expand(len(frames))
