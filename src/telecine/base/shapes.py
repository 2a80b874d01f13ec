"""Shape types of the tensors that flow through telecine, and the checks of such tensors."""

import math
import warnings
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from telecine.base.checks import argument_error, describe

Video: TypeAlias = Float[Tensor, "batch channel time height width"]
Frames: TypeAlias = Float[Tensor, "frame channel height width"]
Scalar: TypeAlias = Float[Tensor, ""]

VALUE_RANGE = (-1.0, 1.0)
# Channels of a pixel with colours and alpha.
RGBA = 4
# Resampling and half-precision rounding may exceed the range by this much.
_RANGE_TOLERANCE = 0.05


def check_video(name: str, value: object) -> None:
    """Check that an argument is a video.

    Raises:
        ValueError: It is not a floating-point tensor `(B, C, T, H, W)` without empty axes.
    """
    contract = "a floating-point tensor of shape (B, C, T, H, W)"
    if not isinstance(value, Tensor):
        raise argument_error(
            name, contract, describe(value), "Convert it with `torch.as_tensor(...).float()`."
        )
    if value.ndim != 5:
        remedy = "Add a batch axis with `[None]` to a single clip, a time axis with `[:, :, None]` to images."
        raise argument_error(name, contract, value, remedy)
    if not value.is_floating_point():
        raise argument_error(
            name, contract, value, "Map bytes to [-1, 1] with `video.float() / 127.5 - 1`."
        )
    if 0 in value.shape:
        raise argument_error(
            name, f"{contract} without empty axes", value, "Drop empty batches before the loss."
        )


def check_frames(name: str, value: object) -> None:
    """Check that an argument has frames.

    Raises:
        ValueError: It is not a floating-point tensor `(N, C, H, W)`.
    """
    contract = "a floating-point tensor of shape (N, C, H, W)"
    if not isinstance(value, Tensor) or value.ndim != 4:
        remedy = "Take frames from a video (B, C, T, H, W) with `pick_frames`; add a batch axis to one with `[None]`."
        raise argument_error(name, contract, describe(value), remedy)
    if not value.is_floating_point():
        raise argument_error(
            name, contract, value, "Map bytes to [-1, 1] with `frames.float() / 127.5 - 1`."
        )


def check_same_shape(
    name: str,
    value: Tensor,
    other_name: str,
    other: Tensor,
    *,
    remedy: str = "Crop or pad one to match the other.",
) -> None:
    """Check that two tensors have the same shape: broadcasting would compare unrelated values.

    Args:
        name: The first argument.
        value: Its tensor.
        other_name: The second argument.
        other: Its tensor.
        remedy: What to do, as a sentence.

    Raises:
        ValueError: The shapes differ.
    """
    if value.shape != other.shape:
        raise argument_error(name, f"of `{other_name}`'s shape {tuple(other.shape)}", value, remedy)


def _check_same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        contract = f"on the same device as `{other_name}`, {other.device}"
        raise argument_error(name, contract, value, "Move one of them with `.to(device)`.")


def _has_readable_values(value: Tensor) -> bool:
    """Return whether reading a value costs nothing: on the CPU, outside compiled code, and not of a fake tensor."""
    if torch.compiler.is_compiling():
        return False
    return value.device.type == "cpu" and not isinstance(value, FakeTensor)


def check_range(name: str, value: Tensor, *, range_is_known: bool = False) -> None:
    """Check that a CPU tensor is in [-1, 1], and warn if no value is below 0; NaN passes.

    Tensors on other devices pass: reading a value would make the host wait in every step. Fake ones have no values.

    Args:
        name: The argument.
        value: Its tensor.
        range_is_known: Whether its range is known to be [-1, 1], as of clips that telecine has decoded. A bright clip
            without a value below 0 is then no warning.

    Raises:
        ValueError: Values are out of the range.
    """
    if not _has_readable_values(value):
        return
    bounds = torch.aminmax(value.detach())
    low = float(bounds.min.float().numpy())
    high = float(bounds.max.float().numpy())
    if low < VALUE_RANGE[0] - _RANGE_TOLERANCE or high > VALUE_RANGE[1] + _RANGE_TOLERANCE:
        remedy = "Map [0, 1] with `x * 2 - 1`, bytes with `x / 127.5 - 1`."
        raise argument_error(
            name, "in the range [-1, 1]", f"values from {low:.4g} to {high:.4g}", remedy
        )
    if 0 <= low < high and not range_is_known:
        text = f"`{name}` has no value below 0. If its range is [0, 1] instead of [-1, 1], map it with `x * 2 - 1`."
        warnings.warn(text, stacklevel=2)


def check_weights(name: str, value: Tensor) -> None:
    """Check that the values of a CPU tensor are finite and not negative; as in `check_range`, others pass.

    Args:
        name: The argument.
        value: Its tensor, of any shape.

    Raises:
        ValueError: A value is negative, infinite or NaN.
    """
    if not _has_readable_values(value):
        return
    bounds = torch.aminmax(value.detach())  # both are NaN if a value is
    low = float(bounds.min.float().numpy())
    high = float(bounds.max.float().numpy())
    if not 0 <= low <= high < math.inf:
        got = f"values from {low:.4g} to {high:.4g}"
        raise argument_error(name, "finite and not negative", got, "Use 0 for what does not count.")


def check_video_pair(
    inputs: Tensor, reconstructions: Tensor, *, range_is_known: bool = False
) -> None:
    """Check that both are videos `(B, C, T, H, W)` of one shape and device, and `inputs` in [-1, 1].

    Args:
        inputs: The targets.
        reconstructions: Their reconstructions.
        range_is_known: Of `inputs`, see `check_range`.

    Raises:
        ValueError: They are not.
    """
    check_video("inputs", inputs)
    check_video("reconstructions", reconstructions)
    remedy = "An autoencoder that changes the number of frames or the size needs clips that fit its strides."
    check_same_shape("reconstructions", reconstructions, "inputs", inputs, remedy=remedy)
    _check_same_device("reconstructions", reconstructions, "inputs", inputs)
    # Reconstructions of an untrained decoder may leave the range.
    check_range("inputs", inputs, range_is_known=range_is_known)


def check_frame_pair(*, reconstruction: Tensor, target: Tensor) -> None:
    """Check that both are floating-point frames `(N, C, H, W)` of one shape and device.

    Raises:
        ValueError: They are not.
    """
    check_frames("reconstruction", reconstruction)
    check_frames("target", target)
    check_same_shape("target", target, "reconstruction", reconstruction)
    _check_same_device("target", target, "reconstruction", reconstruction)
