"""What every perceptual distance accepts: two batches of frames that fit each other."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from telecine.shapes import argument_error


def check_pair(*, reconstruction: Any, target: Any) -> None:
    """Raise a `ValueError` unless both are floating-point frames (N, C, H, W) of one shape and device."""
    check_frames("reconstruction", reconstruction)
    check_frames("target", target)
    check_alike(reconstruction=reconstruction, target=target)


def check_frames(name: str, value: Any) -> None:
    """Raise a `ValueError` unless `value` is a floating-point tensor (N, C, H, W)."""
    contract = "a floating-point tensor of shape (N, C, H, W)"
    if not isinstance(value, Tensor) or value.ndim != 4:
        remedy = "Take frames out of a video (B, C, T, H, W) with `pick_frames`, add a batch axis with `[None]` to one."
        raise argument_error(name, contract, value, remedy)
    if not value.is_floating_point():
        raise argument_error(name, contract, value, "Map bytes to [-1, 1] with `frames.float() / 127.5 - 1`.")


def check_alike(*, reconstruction: Tensor, target: Tensor) -> None:
    """Raise a `ValueError` unless `target` has the shape and the device of `reconstruction`."""
    if reconstruction.shape != target.shape or reconstruction.device != target.device:
        contract = f"of shape {tuple(reconstruction.shape)} on {reconstruction.device}, as `reconstruction` is"
        raise argument_error("target", contract, target, "Crop or move one of the two, so that they match.")
