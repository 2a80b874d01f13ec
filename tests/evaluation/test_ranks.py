"""The processes that share an evaluation; two of them really do in `test_evaluate.py`."""

import pytest
import torch
from torch import distributed as dist

from telecine.evaluation.ranks import Ranks, joined_ranks


def test_one_process_joins_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_ranks() as ranks:
        assert ranks == Ranks(rank=0, count=1)
        assert ranks.is_first
        assert ranks.gather([1, 2]) == [1, 2]
        assert ranks.device("cpu") == torch.device("cpu")
        assert not dist.is_initialized()


def test_a_group_that_is_there_is_used_and_left_alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        with joined_ranks() as ranks:
            assert ranks == Ranks(rank=0, count=1)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_a_group_that_was_joined_is_left_also_after_an_error(monkeypatch, tmp_path):
    joined = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", joined.append)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: joined.append("left"))

    def fail():
        with joined_ranks() as ranks:
            assert (ranks.rank, ranks.count, ranks.is_first) == (1, 2, False)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert joined == ["gloo", "left"]
