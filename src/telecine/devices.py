"""The device that a command computes on, and its memory."""

from __future__ import annotations

import re
from typing import Literal

import psutil
import torch

from telecine.checks import argument_error

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
UNITS = {"MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}


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


def parse_memory(text: str) -> int:
    """Return the bytes that a text such as "80GiB" names.

    Raises:
        ValueError: It is not a number with one of the units.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = next((unit for unit in UNITS if found and unit.lower() == found[2].lower()), None)
    if found is None or unit is None or float(found[1]) == 0:
        number = re.search(r"\d+(?:\.\d+)?", text)
        example = f"{number[0]}GiB" if number and float(number[0]) > 0 else "80GiB"
        raise argument_error("memory", f"a number with a unit ({', '.join(UNITS)})", repr(text), f"Use {example}.")
    return int(float(found[1]) * UNITS[unit])


def gigabytes(size: float) -> str:
    """Return a number of bytes in GiB."""
    return f"{size / UNITS['GiB']:.2f} GiB"


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device; on the CPU, those of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(psutil.virtual_memory().available)
