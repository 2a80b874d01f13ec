"""Averages over the ranks of a process group."""

import pytest
import torch
from torch import distributed as dist
from torch import nn

from telecine.ops.ranks import average_over_ranks, with_averaged_gradient


@pytest.fixture
def other_rank(monkeypatch):
    """Return a function that sets the values of a second rank."""

    def set_values(values):
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.add_(torch.tensor(values)))

    return set_values


@pytest.mark.parametrize("is_initialized", [False, True])
def test_the_average_of_one_rank_is_the_tensor_itself(is_initialized, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: is_initialized)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    x = torch.ones(2)
    assert average_over_ranks(x) is x


def test_the_average_over_ranks_is_a_new_tensor(other_rank):
    other_rank([2.0, 10.0])
    x = torch.tensor([1.0, 10.0])
    assert average_over_ranks(x).tolist() == [1.5, 10.0]
    assert x.tolist() == [1.0, 10.0]


def test_a_gradient_is_averaged_before_it_reaches_the_parameter(other_rank):
    other_rank(7.0)
    w = nn.Parameter(torch.tensor(2.0))
    (3 * with_averaged_gradient(w)).backward()
    assert w.grad.item() == 5
    with torch.no_grad():
        assert with_averaged_gradient(w).item() == 2
