"""Indexed videos and ranges of their frames."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Iterator
from dataclasses import replace
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


class CountedArray(array):  # type: ignore[type-arg]
    """Counts how often all its values are read."""

    num_scans = 0

    def __iter__(self) -> Iterator[int]:
        self.num_scans += 1
        return super().__iter__()


@pytest.mark.parametrize("shift", [0, 1], ids=["in display order", "in decoding order"])
def test_timestamps_are_scanned_once_for_any_number_of_segments(shift: int) -> None:
    pts = CountedArray("q", [5 + 40 * (number ^ shift) for number in range(100)])
    info = VideoInfo(Path("a.mp4"), 64, 48, 25.0, pts, array("q", [0]), time_base=0.001)
    assert [info.frame_at(number / 25) for number in range(100)] == list(range(100))
    assert pts.num_scans <= 2
    assert info == replace(info)
