"""How long steps take: medians of interleaved runs, so that a machine that slows down slows all of them down."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch

Step = Callable[[], None]
Name = TypeVar("Name", bound=Hashable)


def interleaved(
    steps: Mapping[Name, Step], *, rounds: int, warmup: int = 1, clock: Callable[[], float] = time.perf_counter
) -> dict[Name, list[float]]:
    """Return the seconds of each step in each round; every round runs all of them once, in order.

    With `time.process_time` as the clock, what others do on the machine hardly counts.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in steps}
    for index in range(warmup + rounds):
        for name, step in steps.items():
            start = clock()
            step()
            wait_for_device()
            if index >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def median_ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Return the median over rounds of one step's time relative to another's in the same round."""
    return statistics.median(own / other for own, other in zip(seconds, reference, strict=True))


def wait_for_device() -> None:
    """Wait until an accelerator has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device() -> torch.device:
    """Return the accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> str:
    """Say what the figures were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return f"{device}, PyTorch {torch.__version__}"
