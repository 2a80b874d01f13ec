"""What a call of the objective accepts: the pair of videos, the auxiliary losses, the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from telecine.shapes import argument_error, check_range, check_video, describe


def check_pair(inputs: Any, reconstructions: Any) -> None:
    """Raise a `ValueError` unless both are videos `(B, C, T, H, W)` of one shape and device, `inputs` in [-1, 1].

    Reconstructions may leave the range, as an untrained decoder's do.
    """
    check_video("inputs", inputs)
    check_video("reconstructions", reconstructions)
    if inputs.shape != reconstructions.shape:
        contract = f"of the same shape as `inputs`, {tuple(inputs.shape)}"
        remedy = "An autoencoder that changes the number of frames or the size needs clips that fit its strides."
        raise argument_error("reconstructions", contract, reconstructions, remedy)
    if inputs.device != reconstructions.device:
        contract = f"on the same device as `inputs`, {inputs.device}"
        raise argument_error("reconstructions", contract, reconstructions, "Move one of them with `.to(device)`.")
    check_range("inputs", inputs)


def check_weight(name: str, value: Any) -> float:
    """Return a term's weight as a float; raise a `ValueError` unless it is a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value < math.inf):
        raise argument_error(name, "a finite number >= 0", describe(value), "Use 0 to turn the term off.")
    return float(value)


def check_step(name: str, value: Any) -> int:
    """Return the step from which something happens; raise a `ValueError` unless it is a whole number >= 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value < math.inf) or value % 1:
        raise argument_error(name, "a whole number of steps >= 0", describe(value), "Use 0 for from the first step on.")
    return int(value)


def check_last_layer(value: Any) -> None:
    """Raise a `ValueError` unless it is a tensor or `None`."""
    if value is not None and not isinstance(value, Tensor):
        remedy = "Pass the weight itself, e.g. `model.decoder.conv_out.weight`."
        raise argument_error("last_layer", "a tensor or None", f"a {type(value).__name__}", remedy)


def check_interval(name: str, value: Any) -> int:
    """Return a number of steps; raise a `ValueError` unless it is a positive int."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise argument_error(name, "a positive int", describe(value), "Use 1 for every step.")
    return value


def check_frames(value: Any) -> int | Literal["all"]:
    """Return how many frames LPIPS sees; raise a `ValueError` unless it is a positive int or "all"."""
    if value == "all":
        return "all"
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise argument_error("perceptual_frames", 'a positive int or "all"', describe(value), "Use 1 for one a clip.")
    return value


def named_aux_losses(aux_losses: Any, regularization_log: Mapping[str, Any] | None, device: Any) -> dict[str, Tensor]:
    """Return the auxiliary losses by name as 0-d tensors in at least float32; the graph is kept.

    Args:
        aux_losses: A tensor of one element, a number, `None`, or a mapping of names to such.
        regularization_log: What an sgm-style engine logs of its regulariser; where `aux_losses` is `None`, its
            entries whose name ends in "loss" or starts with "loss/" stand in.
        device: Where numbers become tensors.

    Raises:
        ValueError: If an auxiliary loss has more than one element or is of another type.
    """
    if aux_losses is None:
        log = regularization_log or {}
        aux_losses = {name: value for name, value in log.items() if _is_loss(name)}
    if not isinstance(aux_losses, Mapping):
        aux_losses = {"": aux_losses}
    return {str(name): _as_scalar(name, value, device) for name, value in aux_losses.items()}


def _is_loss(name: str) -> bool:
    return name.endswith("loss") or name.startswith("loss/")


def _as_scalar(name: str, value: Any, device: Any) -> Tensor:
    argument = f"aux_losses[{name!r}]" if name else "aux_losses"
    contract = "a number or a floating-point tensor of one element"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.full((), float(value), device=device)  # `torch.tensor` would wait for the device
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise argument_error(argument, contract, describe(value), "Pass a dict to name several losses.")
    if value.numel() != 1:
        raise argument_error(argument, contract, value, "Reduce it first, for instance with `.mean()`.")
    return value.reshape(()).to(device, torch.promote_types(value.dtype, torch.float32))


def without_inference_mode(video: Tensor) -> Tensor:
    """Return a tensor that autograd may record: a copy of one made in inference mode, any other as it is."""
    return video.clone() if video.is_inference() and not torch.is_inference_mode_enabled() else video
