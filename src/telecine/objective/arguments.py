"""What the objective accepts: the pair of videos, the auxiliary losses, the options by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from telecine.losses import GRAD_PENALTIES, Penalty
from telecine.objective.layer_uses import LayerUses
from telecine.shapes import argument_error, check_range, check_video, describe, nearest

T = TypeVar("T")


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


def check_last_layer(value: Any) -> None:
    """Raise a `ValueError` unless it is a tensor, the uses of a layer, or `None`."""
    if value is not None and not isinstance(value, (Tensor, LayerUses)):
        remedy = "Pass the weight itself, e.g. `model.decoder.conv_out.weight`."
        raise argument_error("last_layer", "a tensor or None", f"a {type(value).__name__}", remedy)


def check_interval(name: str, value: Any) -> int:
    """Return a count; raise a `ValueError` unless it is a positive int."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise argument_error(name, "a positive int", describe(value), "The least is 1.")
    return value


def check_frames(value: Any) -> int | Literal["all"]:
    """Return how many frames LPIPS sees; raise a `ValueError` unless it is a positive int or "all"."""
    if value == "all":
        return "all"
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise argument_error("perceptual_frames", 'a positive int or "all"', describe(value), "Use 1 for one a clip.")
    return value


def check_fraction(name: str, value: Any) -> float:
    """Return a decay as a float; raise a `ValueError` unless it is a number from 0 to below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise argument_error(name, "a number from 0 to below 1", describe(value), "0 keeps no average.")
    return float(value)


def check_finite(name: str, value: Any) -> float:
    """Return a number as a float; raise a `ValueError` unless it is finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise argument_error(name, "a finite number", describe(value), "Use 0 for the default.")
    return float(value)


def check_positive(name: str, value: Any) -> float:
    """Return a bound as a float; raise a `ValueError` unless it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise argument_error(name, "a finite number above 0", describe(value), "Leave it out for the default.")
    return float(value)


def choose(name: str, value: Any, known: Mapping[str, T]) -> T:
    """Return what a name stands for; anything callable stands for itself.

    Raises:
        ValueError: If it is neither a known name nor callable; the nearest name is suggested.
    """
    if isinstance(value, str) and value in known:
        return known[value]
    if not isinstance(value, str) and callable(value):
        return value
    raise argument_error(
        name, f"one of {', '.join(map(repr, known))}, or a function", describe(value), _hint(value, known)
    )


def as_penalty(name: str, value: Any) -> Penalty:
    """Return the penalty of a name; a function of one's own may differentiate both the real and the fake view.

    Raises:
        ValueError: If it is neither a known name, nor a `Penalty`, nor a function.
    """
    if isinstance(value, Penalty):
        return value
    chosen = choose(name, value, GRAD_PENALTIES)
    if isinstance(chosen, Penalty):
        return chosen
    # A known penalty with other settings differentiates what the known one does.
    known = next((p for p in GRAD_PENALTIES.values() if isinstance(chosen, partial) and chosen.func is p.compute), None)
    return Penalty(chosen) if known is None else replace(known, compute=chosen)


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> Any:
    """Return `value`; raise a `ValueError` that suggests the nearest name unless it is one of those allowed."""
    allowed = list(allowed)
    if value not in allowed:
        raise argument_error(name, f"one of {', '.join(map(repr, allowed))}", describe(value), _hint(value, allowed))
    return value


def _hint(value: Any, known: Iterable[str]) -> str:
    return nearest(str(value), known) or "See the documentation of each."


def without_inference_mode(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may record: a copy of one made in inference mode, any other as it is."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor
