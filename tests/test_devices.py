"""Devices by name, and their memory."""

import pytest
import torch

from telecine.devices import parse_memory, pick_device


@pytest.mark.parametrize(("cuda", "mps", "auto"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_prefers_an_accelerator(cuda, mps, auto, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto") == torch.device(auto)
    assert pick_device("cpu") == torch.device("cpu")
    if not cuda:
        with pytest.raises(ValueError, match=r'`device` must be a device of this machine, but got cuda. Use "auto"'):
            pick_device("cuda")


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 * 2**30), ("80 gib", 80 * 2**30), ("1.5GB", 1_500_000_000), ("7MB", 7_000_000), ("2MiB", 2**21)],
)
def test_memory_is_read_with_its_unit(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    ("text", "remedy"), [("80", "Use 80GiB"), ("80G", "Use 80GiB"), ("much", "Use 80GiB"), ("0GB", "Use 80GiB")]
)
def test_a_malformed_memory_names_one_that_works(text, remedy):
    with pytest.raises(ValueError, match=f"memory.*{remedy}"):
        parse_memory(text)
