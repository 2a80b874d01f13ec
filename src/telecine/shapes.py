"""Shape types of everything that flows through telecine, and the one place that phrases argument errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Video: TypeAlias = Float[Tensor, "batch channel time height width"]
Frames: TypeAlias = Float[Tensor, "frame channel height width"]
Logits: TypeAlias = Float[Tensor, " batch"]
Scalar: TypeAlias = Float[Tensor, ""]

VALUE_RANGE = (-1.0, 1.0)
# Resampling and half-precision rounding may overshoot the range by this much without being a mistake.
RANGE_TOLERANCE = 0.05


def describe(value: Any) -> str:
    """Say what came in, in the words an error needs: a tensor by its dtype, shape and device, the rest by value."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def argument_error(name: str, contract: str, got: Any, remedy: str, error: type[Exception] = ValueError) -> Exception:
    """Build the error of a bad argument: what was expected, what came, and how to mend it.

    A `str` as `got` is a text of its own; pass `describe(value)` where the value itself may be one.
    """
    got = got if isinstance(got, str) else describe(got)
    return error(f"`{name}` must be {contract}, but got {got}. {remedy}")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a question that offers the known word nearest to `word`, or nothing where none is near."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean `{matches[0]}`?" if matches else ""


def check_video(name: str, value: Any) -> None:
    """Raise a `ValueError` unless `value` is a floating-point tensor `(B, C, T, H, W)` without empty axes."""
    contract = "a floating-point tensor of shape (B, C, T, H, W)"
    if not isinstance(value, Tensor):
        raise argument_error(name, contract, describe(value), "Convert it with `torch.as_tensor(...).float()`.")
    if value.ndim != 5:
        remedy = "Add a batch axis with `[None]` to a single clip, a time axis with `[:, :, None]` to images."
        raise argument_error(name, contract, value, remedy)
    if not value.is_floating_point():
        raise argument_error(name, contract, value, "Map bytes to [-1, 1] with `video.float() / 127.5 - 1`.")
    if 0 in value.shape:
        raise argument_error(name, f"{contract} without empty axes", value, "Drop empty batches before the loss.")


def check_range(name: str, value: Tensor) -> None:
    """Raise a `ValueError` if a CPU tensor leaves [-1, 1]; NaN passes, other devices are not waited for.

    Reading a value from an accelerator would make the host wait for it in every step, so only values that are
    already at hand are looked at.
    """
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = (float(bound.float().numpy()) for bound in torch.aminmax(value.detach()))
    if low < VALUE_RANGE[0] - RANGE_TOLERANCE or high > VALUE_RANGE[1] + RANGE_TOLERANCE:
        remedy = "Map [0, 1] with `x * 2 - 1`, bytes with `x / 127.5 - 1`."
        raise argument_error(name, "in the range [-1, 1]", f"values from {low:.4g} to {high:.4g}", remedy)
