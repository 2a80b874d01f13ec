"""Devices by name, and their memory."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from telecine.base import devices
from telecine.base.devices import free_memory, machine_memory, parse_memory, pick_device


@pytest.mark.parametrize(
    ("cuda", "mps", "auto"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_prefers_an_accelerator(cuda, mps, auto, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto") == torch.device(auto)
    assert pick_device("cpu") == torch.device("cpu")
    if not cuda:
        with pytest.raises(
            ValueError, match=r'`device` must be a device of this machine, but got cuda. Use "auto"'
        ):
            pick_device("cuda")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 * 2**30),
        ("80 gib", 80 * 2**30),
        ("1.5GB", 1_500_000_000),
        ("7MB", 7_000_000),
        ("80", None),
        ("80G", None),
        ("much", None),
        ("0GB", None),
    ],
)
def test_memory_is_read_with_its_unit(text, size):
    if size is not None:
        assert parse_memory(text) == size
        return
    with pytest.raises(ValueError, match=r"memory.*Use 80GiB"):
        parse_memory(text)


GIB = 2**30
# The line of `/proc/self/cgroup`, and the files of the groups: limits, memory in use, and what of it is cached files.
GROUPS = {
    "version 2": (
        "0::/job/step",
        {
            "job/memory.max": 4 * GIB,
            "job/memory.current": 3 * GIB,
            "job/memory.stat": f"anon 7\nactive_file {GIB // 2}\ninactive_file {GIB // 2}",
            "job/step/memory.max": "max",
        },
    ),
    "version 1": (
        "7:cpu:/\n4:memory,hugetlb:/job",
        {
            "memory/job/memory.limit_in_bytes": 4 * GIB,
            "memory/job/memory.usage_in_bytes": 3 * GIB,
            "memory/job/memory.stat": f"active_file 7\ntotal_active_file {GIB}\ntotal_inactive_file 0",
        },
    ),
    "in a container, whose group is the root that it sees": (
        "0::/",
        {
            "memory.max": 4 * GIB,
            "memory.current": 2 * GIB,
            "memory.stat": "active_file 0\ninactive_file 0",
        },
    ),
    "in a container of version 1, which sees the group's name outside": (
        "4:memory:/docker/1234",
        {
            "memory/memory.limit_in_bytes": 4 * GIB,
            "memory/memory.usage_in_bytes": 2 * GIB,
            "memory/memory.stat": "total_active_file 0\ntotal_inactive_file 0",
        },
    ),
    "in gVisor, which has no statistics": (
        "4:memory:/",
        {
            "memory/memory.limit_in_bytes": 4 * GIB,
            "memory/memory.usage_in_bytes": 2 * GIB,
        },
    ),
    "of a group above": (
        "0::/job/step",
        {
            "job/step/memory.max": 5 * GIB,
            "job/step/memory.current": GIB,
            "job/step/memory.stat": "active_file 0\ninactive_file 0",
            "job/memory.max": 4 * GIB,
            "job/memory.current": 2 * GIB,
            "job/memory.stat": "active_file 0\ninactive_file 0",
        },
    ),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_memory_is_at_most_that_of_a_control_group(kind, tmp_path, monkeypatch):
    group, files = GROUPS[kind]

    def set_machine(*, total, available):
        memory = SimpleNamespace(total=total, available=available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    def sizes():
        return machine_memory(), free_memory(torch.device("cpu"))

    monkeypatch.setattr(devices, "CONTROL_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(devices, "CONTROL_GROUPS", tmp_path / "groups")
    set_machine(total=64 * GIB, available=60 * GIB)
    assert sizes() == (64 * GIB, 60 * GIB), "no Linux"
    (tmp_path / "cgroup").write_text(f"{group}\n")
    assert sizes() == (64 * GIB, 60 * GIB), "no limit"
    for name, content in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    assert sizes() == (4 * GIB, 2 * GIB), "the system frees cached files"
    set_machine(total=2 * GIB, available=GIB)
    assert sizes() == (2 * GIB, GIB)
