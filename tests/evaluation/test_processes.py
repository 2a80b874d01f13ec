"""The processes that share an evaluation. `test_evaluate.py` runs two real ones."""

import pytest
import torch
from torch import distributed as dist

from telecine import EvaluateConfig, evaluate
from telecine.base.devices import device_of_process
from telecine.evaluation.measure_clips import process_group


def test_an_existing_group_is_used_and_not_destroyed(tmp_path):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        with process_group() as processes:
            assert processes == (0, 1)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


@pytest.fixture
def second_of_two(monkeypatch):
    """Fake a process group in which this process has rank 1 of 2; return the list of calls."""
    calls = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", calls.append)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroyed"))
    return calls


def test_an_initialized_group_is_destroyed_after_an_error(second_of_two):
    def fail():
        with process_group() as processes:
            assert processes == (1, 2)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert second_of_two == ["gloo", "destroyed"]


def test_a_process_with_other_clips_is_refused(second_of_two, model_folder, videos, monkeypatch):
    def gather(gathered, own):
        gathered[:] = [("of the first process", ""), own]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    config = EvaluateConfig(data=str(videos), device="cpu")
    message = "`data` must be the same in all processes, but got other clips in process 1 than in"
    with pytest.raises(ValueError, match=message):
        evaluate(model_folder, config)


def test_each_process_gets_a_different_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_of_process("cuda", 4) == torch.device("cuda", 1)
    assert device_of_process("cuda", 1) == torch.device("cuda")
