"""Time, peak memory and floating-point operations of a step, and the Markdown tables that show them."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Step = Callable[[], None]
Name = TypeVar("Name", bound=Hashable)

NOT_AVAILABLE = "n/a"
# glibc reads these when a process starts. Blocks of 64 KiB or more are mapped, so that freeing them unmaps them, and
# free memory at the end of the heap is returned. Both make the program slower.
TRIMMING = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
# Writing this to `clear_refs` resets the peak resident size to the present size, see proc(5).
RESET_PEAK = "5"


def device() -> torch.device:
    """Return the CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> str:
    """Return a description of the device, and the version of PyTorch."""
    name = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return f"{name}, PyTorch {torch.__version__}"


def synchronize() -> None:
    """Wait until the CUDA device, if any, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# Time


def interleaved(
    steps: Mapping[Name, Step],
    *,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Return the seconds of each step in each round.

    Every round runs all steps once, in order: if the machine slows down, it slows down all of them.

    Args:
        steps: The steps by name.
        rounds: Number of measured rounds.
        warmup: Number of rounds before, which are not measured.
        clock: `time.process_time` excludes most of the effect of other processes.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in steps}
    for index in range(warmup + rounds):
        for name, step in steps.items():
            start = clock()
            step()
            synchronize()
            if index >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def median_ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Return the median over rounds of one step's time divided by another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))


# Memory


def extra_peak(make: Callable[..., Step], *arguments: Any) -> int:
    """Return by how many bytes the peak of a step exceeds the memory in use before it.

    The step `make(*arguments)` runs twice in a new process, and the second run is measured: on CUDA with PyTorch's
    allocator, otherwise with the resident size of a process whose allocator returns freed memory at once.

    Args:
        make: Returns the step. It and its arguments must be picklable.
        arguments: Arguments of `make`.

    Raises:
        SystemExit: If this machine has neither CUDA nor Linux.
        RuntimeError: If the new process dies, for instance for lack of memory.
    """
    if not torch.cuda.is_available() and sys.platform != "linux":
        raise SystemExit("Measure memory on Linux or with CUDA: other systems cannot reset a peak.")
    context = _fork_server()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sender, make, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"measuring {arguments} ended with exit code {process.exitcode}"
        ) from None
    finally:
        process.join()


@cache
def _fork_server() -> ForkServerContext:
    """Start a process that has imported packages and done nothing else; new processes are forked from it."""
    context = multiprocessing.get_context("forkserver")
    # Python before 3.14 does not preload the script itself, so name what scripts import.
    context.set_forkserver_preload(["__main__", "telecine.objective.loss", "matplotlib.figure"])
    before = dict(os.environ)
    os.environ.update(TRIMMING)
    forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)
    return context


def _measure_peak(
    sender: Connection, make: Callable[..., Step], arguments: tuple[Any, ...]
) -> None:
    step = make(*arguments)
    step()
    gc.collect()
    sender.send(_extra_allocated(step) if torch.cuda.is_available() else _extra_resident(step))


def _extra_allocated(step: Step) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _extra_resident(step: Step) -> int:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


# Operations


class _FlopCounter(TorchDispatchMode):
    """Adds up PyTorch's formulas. PyTorch's `FlopCounterMode` fails if a step calls `torch.autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def count_flops(step: Step) -> int:
    """Return the number of operations of a step's convolutions and matrix products, forward and backward."""
    with _FlopCounter() as counter:
        step()
    return counter.flops


# Tables


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with its first column aligned to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(table_row(cells) for cells in (header, rule, *rows))


def table_row(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Return mean and standard deviation as a cell."""
    if not values:
        return NOT_AVAILABLE
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.{digits}f}{deviation}"


def ratio(value: float) -> str:
    """Return a ratio as a cell."""
    return f"{value:.2f} x"


def megabytes(size: int) -> str:
    """Return a number of bytes in MB as a cell."""
    return f"{size / 1e6:.1f}" if size >= 1e7 else f"{size / 1e6:#.3g}"
