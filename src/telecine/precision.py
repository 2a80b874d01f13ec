"""Losses are computed in float32 whatever precision the caller runs in; float64 stays float64."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 if it is float16 or bfloat16, and unchanged otherwise; the graph is kept."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def autocast_off(device: torch.device) -> AbstractContextManager[None]:
    """Turn autocast off for everything inside, on the given device type, which may have none (such as "meta")."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device_type=device.type, enabled=False)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the type that autocast casts to on the given device type, None where it is off."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)
