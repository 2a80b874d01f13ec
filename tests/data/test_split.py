"""Training and held-out spans share no frame."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.data import DataError, Span, TarMember, VideoInfo, split_videos, whole_video


def _videos(lengths: list[int]) -> list[Span]:
    infos = [
        VideoInfo(Path(f"{i}.mp4"), 64, 48, 25.0, array("q", range(length)), array("q", [0]))
        for i, length in enumerate(lengths)
    ]
    return [whole_video(info) for info in infos]


def _images(count: int) -> list[Span]:
    one = array("q", [0])
    return [whole_video(VideoInfo(Path(f"{i}.png"), 64, 48, 1.0, one, one, is_image=True)) for i in range(count)]


def _frames(spans: list[Span]) -> set[tuple[Path, int]]:
    return {(span.info.path, frame) for span in spans for frame in range(span.first_frame, span.last_frame + 1)}


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=25),
    fraction=st.floats(0.01, 0.5),
    clip_span=st.integers(1, 20),
)
def test_spans_are_disjoint_and_long_enough(lengths: list[int], fraction: float, clip_span: int) -> None:
    videos = _videos(lengths)
    try:
        train, held_out = split_videos(videos, fraction, clip_span)
    except DataError:
        usable = [length for length in lengths if length >= clip_span]
        assert len(usable) < 10
        assert all(length < 2 * clip_span for length in usable)
        return
    assert train
    assert held_out
    assert not _frames(train) & _frames(held_out)
    # Those that are too short for this clip may do for one of another size.
    assert _frames(train) | _frames(held_out) == _frames(videos)
    assert all(span.num_frames >= min(clip_span, span.info.num_frames) for span in train)
    assert all(span.num_frames >= clip_span for span in held_out)
    assert (train, held_out) == split_videos(videos, fraction, clip_span)


def test_many_videos_are_held_out_whole() -> None:
    train, held_out = split_videos(_videos([30] * 20), 0.1, 9)
    assert [span.info.path.name for span in held_out] == ["5.mp4", "15.mp4"]
    assert len(train) == 18
    assert len(split_videos(_videos([30] * 10), 0.01, 9)[1]) == 1


def test_of_few_videos_the_end_is_held_out() -> None:
    train, held_out = split_videos(_videos([100, 40, 10]), 0.2, 9)
    assert [(span.first_frame, span.last_frame) for span in train] == [(0, 79), (0, 30), (0, 9)]
    assert [(span.first_frame, span.last_frame) for span in held_out] == [(80, 99), (31, 39)]


def test_nothing_long_enough() -> None:
    with pytest.raises(
        DataError, match=r"17 frames needed, \(num_frames - 1\) \* stride \+ 1, but got at most 12, in 1"
    ):
        split_videos(_videos([5, 12]), 0.1, 17)
    with pytest.raises(DataError, match=r"held-out clip of 17 frames \(34 in one video\), but got at most 20 frames"):
        split_videos(_videos([5, 20]), 0.1, 17)
    with pytest.raises(DataError, match="`data` must be videos, or two images or more, but got 0 of them"):
        split_videos([], 0.1, 17)


def _parts(spans: list[Span]) -> list[tuple[int, int]]:
    return [(span.first_frame, span.last_frame) for span in spans]


def test_stretches_of_one_video_are_cut_at_one_frame() -> None:
    info = _videos([1000])[0].info
    train, held_out = split_videos([Span(info, 0, 49), Span(info, 30, 129), Span(info, 200, 249)], 0.2, 9)
    assert _parts(train) == [(0, 49), (30, 129), (200, 213)]
    assert _parts(held_out) == [(214, 249)]
    assert not _frames(train) & _frames(held_out)
    same = [Span(info, 0, 99)] * 10
    train, held_out = split_videos(same, 0.1, 9)
    assert (_parts(train), _parts(held_out)) == ([(0, 89)] * 10, [(90, 99)] * 10)


def test_all_stretches_of_a_video_are_held_out_together() -> None:
    videos = [part for span in _videos([100] * 10) for part in (Span(span.info, 0, 59), Span(span.info, 40, 99))]
    train, held_out = split_videos(videos, 0.1, 9)
    assert (len(train), len(held_out)) == (18, 2)
    assert {span.info.path.name for span in held_out} == {"5.mp4"}


@pytest.mark.parametrize("other", ["sub/../v.mp4", "link.mp4"])
@pytest.mark.parametrize("in_tar", [False, True])
def test_the_names_of_one_file_stand_for_one_video(tmp_path: Path, other: str, in_tar: bool) -> None:
    (tmp_path / "link.mp4").symlink_to(tmp_path / "v.mp4")
    paths = (tmp_path / "v.mp4", tmp_path / other)
    sources = [TarMember(path, "a.mp4", 512, 99) if in_tar else path for path in paths]
    one, two = (replace(_videos([100])[0].info, path=source) for source in sources)
    train, held_out = split_videos([Span(one, 0, 59), Span(two, 40, 99), Span(one, 85, 95)], 0.1, 9)
    assert (_parts(train), _parts(held_out)) == ([(0, 59), (40, 89)], [(90, 99)])
    train, held_out = split_videos([Span(one, 40, 99), Span(two, 90, 97)], 0.2, 9)
    assert (_parts(train), _parts(held_out)) == ([(40, 87)], [(88, 99)])


def test_images_are_held_out_whole() -> None:
    train, held_out = split_videos(_images(20), 0.1, 17)
    assert [span.info.path.name for span in held_out] == ["5.png", "15.png"]
    assert len(train) == 18
    assert [len(part) for part in split_videos(_images(2), 0.1, 17)] == [1, 1]
    with pytest.raises(DataError, match="two images or more, but got 1 of them"):
        split_videos(_images(1), 0.1, 17)


def test_images_beside_videos() -> None:
    train, held_out = split_videos(_images(20) + _videos([100]), 0.1, 9)
    assert [span.info.path.name for span in train if not span.info.is_image] == ["0.mp4"]
    assert [span.info.path.name for span in held_out] == ["0.mp4", "5.png", "15.png"]
    train, held_out = split_videos(_images(1) + _videos([100]), 0.1, 9)
    assert (len(train), len(held_out)) == (2, 1)
