"""The device that a command computes on."""

from __future__ import annotations

from typing import Literal

import torch

from telecine.checks import argument_error

DeviceName = Literal["auto", "cpu", "cuda", "mps"]


def pick_device(name: DeviceName) -> torch.device:
    """Return the device of that name; "auto" selects an accelerator if there is one, else the CPU.

    Raises:
        ValueError: This machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, is_available in available.items() if is_available))
    if not available[name]:
        remedy = 'Use "auto" or "cpu", or install a PyTorch build that supports it.'
        raise argument_error("device", "a device of this machine", name, remedy)
    return torch.device(name)
