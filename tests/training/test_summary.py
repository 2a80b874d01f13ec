"""The summary of a run while it trains."""

import hashlib
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from telecine.base.devices import peak_memory
from telecine.data import Span, bytes_from_video
from telecine.runs import Run
from telecine.runs.summary import RunSummary, ValidationSet
from telecine.training.clips import Clips
from telecine.training.start import read_earlier_summary

from .helpers import quiet, recorder


def clips(num_val=2):
    generator = torch.Generator().manual_seed(0)
    val = [{"video": torch.rand(3, 5, 16, 24, generator=generator)} for _ in range(num_val)]
    header = {"num_frames": 60, "fps": 25.0, "width": 24, "height": 16, "is_image": False}
    info = SimpleNamespace(source=Path(__file__), digest="ab", **header)
    train = SimpleNamespace(spans=[Span(info, 0, 29), Span(info, 40, 51)])
    return SimpleNamespace(
        val=val, train=train, num_videos=2, num_images=3, num_skipped=1, held_out="one"
    )


def write(folder, seconds, before, peak=None):
    new = RunSummary(
        9, 7, 3, clips_per_update=4, **Clips.recorded(clips()), seconds=0.0, peak_memory=None
    )
    Run(folder).write_summary(new.after(before, 0).until_now(time.monotonic() - seconds, peak))


def test_the_times_of_a_resumed_run_are_added(tmp_path):
    write(tmp_path, 100, None, peak=50)
    first = Run(tmp_path).summary()
    assert 100 <= first.seconds < 110
    assert (first.num_parameters, first.num_trained, first.num_disc_parameters) == (9, 7, 3)
    assert (first.num_videos, first.num_images, first.num_skipped) == (2, 3, 1)
    assert (first.num_frames, first.clips_per_update) == (42, 4)
    before = read_earlier_summary(Run(tmp_path), quiet())
    write(tmp_path, 5, before, peak=20)
    assert 105 <= Run(tmp_path).summary().seconds < 115
    assert Run(tmp_path).summary().peak_memory == 50
    write(tmp_path, 5, None)
    assert Run(tmp_path).summary().seconds < 15, "a new run starts at 0"


def test_validations_count_from_where_the_held_out_clips_changed():
    first = RunSummary(
        9, 7, 3, clips_per_update=4, **Clips.recorded(clips()), seconds=0.0, peak_memory=None
    )
    other = replace(first, **Clips.recorded(clips(num_val=1)))
    assert [first.after(before, 5).validated_from for before in (None, first, other)] == [0, 0, 6]
    again = first.after(other, 5)
    assert [summary.after(again, 8).validated_from for summary in (first, other)] == [6, 9]


@pytest.mark.parametrize("text", ["", "{", '{"seconds": 5.0}'])
def test_a_damaged_summary_is_replaced_with_a_warning(tmp_path, text):
    path = tmp_path / "summary.json"
    path.write_text(text)
    console = recorder()
    before = read_earlier_summary(Run(tmp_path), console)
    write(tmp_path, 5, before)
    assert re.fullmatch(
        rf"warning: `{path}` must be .* The time before is not counted\.\n", console.export_text()
    )
    assert 5 <= Run(tmp_path).summary().seconds < 15


def test_validation_clips_have_the_hash_of_evaluations():
    """As `EvaluationRecord.clips_sha256`."""
    some = clips()
    hashes = [
        hashlib.sha256(bytes_from_video(clip["video"]).numpy().tobytes()).hexdigest()
        for clip in some.val
    ]
    combined = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    assert Clips.recorded(some)["validation"] == ValidationSet(2, 5, 16, 24, combined)
    some.val[0]["video"][0, 0, 0, 0] -= 0.5
    assert Clips.recorded(some)["validation"].sha256 != combined


def test_the_peak_memory_of_this_process():
    assert 2**26 < peak_memory(torch.device("cpu")) < 2**40
    assert peak_memory(torch.device("mps")) is None
