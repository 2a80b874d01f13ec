"""Copies of tensors on the host."""

import torch

from telecine.training.host_copy import HostCopy


def test_copies_keep_their_values_and_their_memory():
    weight = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    copy = HostCopy(is_main=True)
    copy.update({"weight": weight, "step": torch.tensor(3)})
    first = copy.tensors["weight"]
    assert first.is_contiguous()
    weight.add_(1)
    assert torch.equal(first, weight - 1)
    copy.update({"weight": weight})
    assert copy.tensors["weight"] is first
    assert torch.equal(first, weight)
    assert list(copy.tensors) == ["weight"], "an optimizer's state can be gone after going back"


def test_what_is_copied_into_may_be_given():
    memory = torch.zeros(2)
    copy = HostCopy(is_main=True, memory={"weight": memory})
    copy.update({"weight": torch.ones(2)})
    assert copy.tensors["weight"] is memory
    assert memory.tolist() == [1, 1]


def test_other_processes_keep_no_copy():
    copy = HostCopy(is_main=False)
    copy.update({"weight": torch.ones(2)})
    assert copy.tensors == {}
