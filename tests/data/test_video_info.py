"""Indexed videos and ranges of their frames."""

from __future__ import annotations

import pickle
from array import array
from pathlib import Path

import pytest

from telecine.data import Span, VideoInfo, whole_video


def info(num_frames: int = 100) -> VideoInfo:
    pts = array("q", range(100, 100 + 10 * num_frames, 10))
    return VideoInfo(Path("a.mp4"), 64, 48, 25.0, pts, array("q", [0]), time_base=0.004)


def test_infos_compare_by_value() -> None:
    assert info() == info() == pickle.loads(pickle.dumps(info()))
    assert hash(info()) == hash(info())
    assert info() != info(99)


@pytest.mark.parametrize(("seconds", "index"), [(0, 0), (0.04, 1), (0.05, 2), (3.96, 99), (4.0, 100), (1e3, 100)])
def test_frame_at(seconds: float, index: int) -> None:
    assert info().frame_at(seconds) == index


def test_spans_count_frames_and_starts() -> None:
    span = Span(info(), 10, 19)
    assert span.num_frames == 10
    assert [span.num_starts(clip_span) for clip_span in (1, 9, 10, 11)] == [10, 2, 1, 0]
    assert whole_video(info()) == Span(info(), 0, 99)
