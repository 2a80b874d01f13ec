"""A perceptual distance of the caller's own, held to what the objective expects of one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from telecine.perceptual.frozen import Frozen
from telecine.perceptual.pairs import check_pair
from telecine.precision import at_least_float32, autocast_off
from telecine.shapes import Frames, argument_error, describe

_CONTRACT = "a function or module that compares (reconstruction=, target=)"


class CustomDistance(Frozen):
    """A caller's own distance: called in float32 or wider, checked, and frozen where it is a module.

    Args:
        net: called as `net(reconstruction=..., target=...)`, or as `net(reconstruction, target)` where its parameters
            have other names or cannot be read, with frames (N, C, H, W). It returns a floating-point tensor on their
            device: (N,), (N, 1, 1, 1) as the `lpips` package does, or a scalar, taken for the mean over the frames.

    An `nn.Module` is taken over, not copied: its parameters cease to require gradients, half-precision ones become
    float32, and it is put into evaluation mode before each call. It moves with this module, and like telecine's own
    LPIPS shows no parameters and no buffers. Of a plain function nothing is known: networks that it uses are the
    caller's to freeze and to move.

    Raises:
        ValueError: `net` cannot be called like that.
    """

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self._takes_names = _takes_names(net)
        # In a tuple PyTorch does not find a module, so its weights enter no state dict, optimizer or wrapper.
        self._held = (net,)
        if (module := self._module) is not None:
            for parameter in module.parameters():  # scripted modules refuse `module.requires_grad_`
                parameter.requires_grad_(False)
            module._apply(at_least_float32)

    @property
    def _module(self) -> nn.Module | None:
        (net,) = self._held
        return net if isinstance(net, nn.Module) else None

    def forward(self, *, reconstruction: Frames, target: Frames) -> Float[Tensor, " frame"]:
        """Return one distance per frame (N,), at least float32; the graph is kept as far as the caller's net keeps it.

        Both are (N, C, H, W) of one shape and device. The net gets them in the wider precision of the two, never below
        float32, with autocast off.

        Raises:
            ValueError: the two are no such frames, or the net returns something else than `CustomDistance` says.
        """
        check_pair(reconstruction=reconstruction, target=target)
        if (module := self._module) is not None:
            module.eval()  # each time: the caller may own it elsewhere too, in a model that is put into training
        widest = torch.promote_types(torch.promote_types(reconstruction.dtype, target.dtype), torch.float32)
        with autocast_off(reconstruction.device):
            distance = self._call(reconstruction.to(widest), target.to(widest))
        return _one_per_frame(distance, reconstruction)

    def _call(self, reconstruction: Frames, target: Frames) -> Any:
        (net,) = self._held
        if self._takes_names:
            return net(reconstruction=reconstruction, target=target)
        return net(reconstruction, target)

    def _move(self, fn: Callable[[Tensor], Tensor]) -> None:
        if (module := self._module) is not None:
            module._apply(fn)

    def extra_repr(self) -> str:
        """Return what `repr` shows inside the parentheses."""
        (net,) = self._held
        return getattr(net, "__qualname__", type(net).__qualname__)


def _takes_names(net: Any) -> bool:
    if not callable(net) or isinstance(net, type):
        raise argument_error("net", _CONTRACT, describe(net), "Pass a function, or an instance of the module's class.")
    try:
        signature = inspect.signature(net.forward if isinstance(net, nn.Module) else net)
    except (TypeError, ValueError):  # compiled code that does not tell
        return False
    if _binds(signature, reconstruction=None, target=None):
        return True
    if _binds(signature, None, None):
        return False
    remedy = "Fix its other arguments with `functools.partial`."
    raise argument_error("net", _CONTRACT, f"one of the signature {signature}", remedy)


def _binds(signature: inspect.Signature, *args: Any, **kwargs: Any) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _one_per_frame(distance: Any, frames: Frames) -> Float[Tensor, " frame"]:
    shapes = [(len(frames),) + (1,) * trailing for trailing in range(4)]
    fits = isinstance(distance, Tensor) and distance.is_floating_point() and distance.device == frames.device
    if not fits or tuple(distance.shape) not in [(), *shapes]:
        contract = f"{_CONTRACT} and returns floating point of shape {shapes[0]}, {shapes[-1]} or () on {frames.device}"
        raise argument_error("net", contract, describe(distance), "Average what belongs to one frame, or everything.")
    return at_least_float32(distance).reshape(-1).expand(len(frames))
