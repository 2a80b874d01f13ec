"""How much more memory a step needs at its peak than before it, measured in a process of its own. Linux or CUDA only.

On the CPU that is the peak resident size above the size before the step, with an allocator that gives back what is
freed at once; on CUDA, the peak of PyTorch's allocator above what was allocated.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], None]
# Read by glibc when a process starts: blocks of 64 KiB or more are mapped, so that they are unmapped when freed, and
# the end of the heap is given back. For speed, neither is wanted.
TRIMMING = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
# Writing this to `clear_refs` makes the peak resident size start again from the present one; see proc(5).
RESET_PEAK = "5"


def extra_peak(make: Callable[..., Step], *arguments: Any) -> int:
    """Return the bytes by which the second run of the step `make(*arguments)` exceeds what is there before it.

    The first run makes ready what stays. Function and arguments go to a new process, so they must be picklable.

    Raises:
        SystemExit: If this machine has neither CUDA nor Linux' account of a process.
        RuntimeError: If the new process dies, as it does where there is not enough memory.
    """
    if not torch.cuda.is_available() and sys.platform != "linux":
        raise SystemExit("Memory must be measured on Linux or on CUDA, as other systems cannot reset a peak.")
    context = _processes()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, make, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"measuring {arguments} ended with exit code {process.exitcode}") from None
    finally:
        process.join()


@cache
def _processes() -> ForkServerContext:
    """Return what starts the processes: copies of one that has made the script's imports and has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "telecine"])
    before = dict(os.environ)
    os.environ.update(TRIMMING)
    forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)
    return context


def _measure(sender: Connection, make: Callable[..., Step], arguments: tuple[Any, ...]) -> None:
    step = make(*arguments)
    step()
    gc.collect()
    sender.send(_extra_on_cuda(step) if torch.cuda.is_available() else _extra_resident(step))


def _extra_on_cuda(step: Step) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _extra_resident(step: Step) -> int:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
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
