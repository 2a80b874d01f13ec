"""The processes that share an evaluation. `test_evaluate.py` runs two real ones."""

from dataclasses import dataclass

import pytest
import torch
from torch import distributed as dist

from telecine.base.devices import device_of_process
from telecine.evaluation.load_model import load_infos
from telecine.evaluation.measure_clips import measure_clips, process_group
from telecine.evaluation.metrics.metric_set import MetricSet
from telecine.evaluation.protocols.configured import ConfiguredClips
from telecine.settings import ClipConfig


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group() as processes:
        assert processes == (0, 1)
        assert device_of_process("cpu", 1) == torch.device("cpu")
        assert not dist.is_initialized()


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


@dataclass
class Same:
    """A source whose reconstructions are the clips."""

    protocol: ConfiguredClips

    def reconstruct(self, span, target):
        return target


def test_each_process_measures_other_clips_and_has_all_results_in_order(
    second_of_two, videos, monkeypatch
):
    clips = ConfiguredClips(ClipConfig(num_frames=5, height=16, width=16), 5)
    spans = clips.select(load_infos(videos))
    metric_set = MetricSet(["psnr"], {}, None, {}, {})
    alone = measure_clips(Same(clips), metric_set, spans, torch.device("cpu"), 0, 1)

    def all_gather(gathered, results):
        assert [result.index for result in results] == [1, 3]
        gathered[:] = [[alone[0], alone[2], alone[4]], results]

    monkeypatch.setattr(dist, "all_gather_object", all_gather)
    with process_group() as processes:
        assert (
            measure_clips(Same(clips), metric_set, spans, torch.device("cpu"), *processes) == alone
        )
    assert [result.metrics["psnr"] for result in alone] == pytest.approx([100] * 5)


def test_each_process_gets_a_different_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_of_process("cuda", 4) == torch.device("cuda", 1)
    assert device_of_process("cuda", 1) == torch.device("cuda")
