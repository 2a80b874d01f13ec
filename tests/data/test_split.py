"""Training and held-out spans share no frame."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telecine.data import DataError, Span, VideoInfo, split_videos


def _infos(lengths: list[int]) -> list[VideoInfo]:
    return [
        VideoInfo(Path(f"{i}.mp4"), 64, 48, 25.0, array("q", range(length)), array("q", [0]))
        for i, length in enumerate(lengths)
    ]


def _frames(spans: list[Span]) -> set[tuple[Path, int]]:
    return {(span.info.path, frame) for span in spans for frame in range(span.first_frame, span.last_frame + 1)}


@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=25),
    fraction=st.floats(0.01, 0.5),
    clip_span=st.integers(1, 20),
)
def test_spans_are_disjoint_and_long_enough(lengths: list[int], fraction: float, clip_span: int) -> None:
    infos = _infos(lengths)
    try:
        train, held_out = split_videos(infos, fraction, clip_span)
    except DataError:
        usable = [length for length in lengths if length >= clip_span]
        assert len(usable) < 10
        assert all(length < 2 * clip_span for length in usable)
        return
    assert train
    assert held_out
    assert not _frames(train) & _frames(held_out)
    assert _frames(train) | _frames(held_out) == {
        (info.path, frame) for info in infos if info.num_frames >= clip_span for frame in range(info.num_frames)
    }
    assert all(span.num_frames >= clip_span for span in train + held_out)
    assert (train, held_out) == split_videos(infos, fraction, clip_span)


def test_many_videos_are_held_out_whole() -> None:
    train, held_out = split_videos(_infos([30] * 20), 0.1, 9)
    assert [span.info.path.name for span in held_out] == ["5.mp4", "15.mp4"]
    assert len(train) == 18
    assert len(split_videos(_infos([30] * 10), 0.01, 9)[1]) == 1


def test_of_few_videos_the_end_is_held_out() -> None:
    train, held_out = split_videos(_infos([100, 40, 10]), 0.2, 9)
    assert [(span.first_frame, span.last_frame) for span in train] == [(0, 79), (0, 30), (0, 9)]
    assert [(span.first_frame, span.last_frame) for span in held_out] == [(80, 99), (31, 39)]


def test_nothing_long_enough() -> None:
    with pytest.raises(
        DataError, match=r"17 frames needed, \(num_frames - 1\) \* stride \+ 1, but got at most 12, in 1"
    ):
        split_videos(_infos([5, 12]), 0.1, 17)
    with pytest.raises(DataError, match=r"held-out clip of 17 frames \(34 in one video\), but got at most 20 frames"):
        split_videos(_infos([5, 20]), 0.1, 17)
    with pytest.raises(DataError, match="no video"):
        split_videos([], 0.1, 17)
