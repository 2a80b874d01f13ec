"""Which device to compute on."""

from __future__ import annotations

from typing import Literal

import torch

from telecine.shapes import argument_error

DeviceName = Literal["auto", "cpu", "cuda", "mps"]


def pick_device(name: DeviceName) -> torch.device:
    """Return the device of that name; "auto" takes an accelerator if there is one.

    Raises:
        ValueError: If this machine has no such device.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in present.items() if there))
    if not present[name]:
        remedy = 'Use "auto" or "cpu", or install a PyTorch build for it.'
        raise argument_error("device", "a device of this machine", name, remedy)
    return torch.device(name)
