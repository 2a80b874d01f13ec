"""The device of a command, and its memory."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from telecine.base.checks import argument_error

# The control groups of this process.
CONTROL_GROUP = Path("/proc/self/cgroup")
# The folder of all groups.
CONTROL_GROUPS = Path("/sys/fs/cgroup")
_UNITS = {"MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}


def pick_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is an accelerator if there is one, else the CPU.

    Raises:
        ValueError: This machine does not have it.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        remedy = 'Use "auto" or "cpu", or install a PyTorch build that supports it.'
        raise argument_error("device", "a device of this machine", name, remedy)
    return torch.device(name)


def launched_process() -> tuple[int, int]:
    """Return the number of this process and that of all processes, as torchrun sets them; 0 and 1 without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def device_of_process(name: str, num_ranks: int) -> torch.device:
    """Return this process' device. On a machine with several GPUs, each process gets a different one.

    Args:
        name: The name of the device, see `pick_device`.
        num_ranks: The number of processes.
    """
    device = pick_device(name)
    if device.type != "cuda" or num_ranks == 1:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def parse_memory(text: str) -> int:
    """Return the bytes in a text such as "80GiB".

    Raises:
        ValueError: It is not a number with a unit.
    """
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in units or float(match[1]) == 0:
        raise argument_error(
            "memory", f"a number with a unit ({', '.join(_UNITS)})", repr(text), "Use 80GiB."
        )
    return int(float(match[1]) * units[match[2].lower()])


def in_gib(size: float) -> str:
    """Return a number of bytes in GiB."""
    return f"{size / _UNITS['GiB']:.2f} GiB"


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device; on the CPU, those of this machine or of a container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    sizes = [int(psutil.virtual_memory().available)]
    sizes += [limit.free for limit in _control_group_limits()]
    return min(sizes)


def peak_memory(device: torch.device) -> int | None:
    """Return the bytes at the peak: of a GPU as PyTorch allocated them, of the process on a CPU; None elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "cpu" and sys.platform != "win32":
        import resource  # does not exist on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak  # bytes on macOS, else KiB
    return None


def machine_memory() -> int:
    """Return the bytes of this machine's memory, or of the limit that a container or a scheduler sets."""
    sizes = [int(psutil.virtual_memory().total)]
    sizes += [limit.total for limit in _control_group_limits()]
    return min(sizes)


class _MemoryController(NamedTuple):
    """The files in which control groups of a version tell their memory, see cgroups(7)."""

    folder: str
    """Below `CONTROL_GROUPS`."""
    limit: str
    used: str
    cached: tuple[str, str]
    """Entries of `memory.stat`: contents of files in memory, which the system frees when it needs the memory."""


_VERSION_1 = _MemoryController(
    folder="memory",
    limit="memory.limit_in_bytes",
    used="memory.usage_in_bytes",
    cached=("total_active_file", "total_inactive_file"),
)
_VERSION_2 = _MemoryController(
    folder="",
    limit="memory.max",
    used="memory.current",
    cached=("active_file", "inactive_file"),
)


class _Limit(NamedTuple):
    """The memory limit of a control group."""

    total: int
    """Bytes."""
    group_folder: Path
    controller: _MemoryController

    @property
    def free(self) -> int:
        """Bytes that the group may still use."""
        used = int((self.group_folder / self.controller.used).read_text("utf-8"))
        statistics_file = self.group_folder / "memory.stat"
        if not statistics_file.is_file():  # as in gVisor
            return self.total - used
        entries = statistics_file.read_text("utf-8").splitlines()
        statistics = dict(entry.split() for entry in entries)
        cached = sum(int(statistics[name]) for name in self.controller.cached)
        return self.total - used + cached


def _control_group_limits() -> Iterator[_Limit]:
    """Yield the memory limits of this process' control groups and of their parents, on Linux."""
    if not CONTROL_GROUP.is_file():
        return
    for line in CONTROL_GROUP.read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", maxsplit=2)
        if "memory" in controllers.split(","):
            controller = _VERSION_1
        elif not controllers:
            controller = _VERSION_2
        else:
            continue
        root = CONTROL_GROUPS / controller.folder
        group_folder = root / group.lstrip("/")
        # In a container, the files of a group may be at the root.
        for folder in (group_folder, *group_folder.parents):
            file = folder / controller.limit
            if not folder.is_relative_to(root) or not file.is_file():
                continue
            limit = file.read_text("utf-8").strip()
            if limit != "max":
                yield _Limit(int(limit), folder, controller)
