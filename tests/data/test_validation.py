"""Held-out spans share no frame with training spans, and validation clips are always the same."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.data import (
    DataError,
    Span,
    TarMember,
    VideoInfo,
    index_video,
    read_validation_clips,
    split_videos,
    whole_video,
    without_held_out,
)
from telecine.settings import Bucket, ClipConfig

from .videos import assert_same_clips, damage, moving_frames, write_images, write_video

CONFIG = ClipConfig(num_frames=5, height=32, width=40, num_workers=0, scale_jitter=1.5)


def _videos(lengths: list[int]) -> list[Span]:
    infos = [
        VideoInfo(Path(f"{i}.mp4"), 64, 48, 25.0, array("q", range(length)), array("q", [0]))
        for i, length in enumerate(lengths)
    ]
    return [whole_video(info) for info in infos]


def _images(count: int) -> list[Span]:
    one = array("q", [0])
    return [whole_video(VideoInfo(Path(f"{i}.png"), 64, 48, 1.0, one, one, is_image=True)) for i in range(count)]


def _frames(spans: list[Span]) -> set[tuple[str, int]]:
    return {(str(span.info.path), frame) for span in spans for frame in range(span.first_frame, span.last_frame + 1)}


def _ranges(spans: list[Span]) -> list[tuple[int, int]]:
    return [(span.first_frame, span.last_frame) for span in spans]


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=14),
    fraction=st.floats(0.01, 0.5),
    clip_span=st.integers(1, 20),
)
@pytest.mark.slow
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
    # Videos too short for a validation clip are kept for training, where a clip of another size may fit.
    assert _frames(train) | _frames(held_out) == _frames(videos)
    assert all(span.num_frames >= min(clip_span, span.info.num_frames) for span in train)
    assert all(span.num_frames >= clip_span for span in held_out)
    assert (train, held_out) == split_videos(videos, fraction, clip_span)


def test_many_videos_are_held_out_whole() -> None:
    train, held_out = split_videos(_videos([30] * 20), 0.1, 9)
    assert [span.info.path.name for span in held_out] == ["5.mp4", "15.mp4"]
    assert len(train) == 18
    assert len(split_videos(_videos([30] * 10), 0.01, 9)[1]) == 1
    assert len(split_videos(_videos([30] * 9), 0.01, 9)[1]) == 9


def test_the_end_of_each_of_few_videos_is_held_out() -> None:
    train, held_out = split_videos(_videos([100, 40, 10, 18]), 0.2, 9)
    assert _ranges(train) == [(0, 79), (0, 30), (0, 9), (0, 8)]
    assert _ranges(held_out) == [(80, 99), (31, 39), (9, 17)]


def test_nothing_is_long_enough() -> None:
    message = r"long enough for a clip of 17 frames, .* but got at most 12 frames, in 1\.mp4\. .*smaller stride\."
    with pytest.raises(DataError, match=message):
        split_videos(_videos([5, 12]), 0.1, 17)
    message = r"held-out clip of 17 frames, 34 together, but got at most 20 .*smaller stride, or 10 videos or more\."
    with pytest.raises(DataError, match=message):
        split_videos(_videos([5, 20]), 0.1, 17)
    with pytest.raises(DataError, match="`data` must be a video or two images, but got nothing"):
        split_videos([], 0.1, 17)


def test_spans_of_one_video_are_split_at_one_frame() -> None:
    info = _videos([1000])[0].info
    train, held_out = split_videos([Span(info, 0, 49), Span(info, 30, 129), Span(info, 200, 249)], 0.2, 9)
    assert _ranges(train) == [(0, 49), (30, 129), (200, 213)]
    assert _ranges(held_out) == [(214, 249)]
    same = [Span(info, 0, 99)] * 10
    train, held_out = split_videos(same, 0.1, 9)
    assert (_ranges(train), _ranges(held_out)) == ([(0, 89)] * 10, [(90, 99)] * 10)
    # Parts that are too short for a clip are dropped.
    train, held_out = split_videos([Span(info, 0, 49), Span(info, 40, 49), Span(info, 30, 44)], 0.2, 9)
    assert (_ranges(train), _ranges(held_out)) == ([(0, 39), (30, 39)], [(40, 49), (40, 49)])


def test_spans_that_are_too_short_for_a_validation_clip_are_trained_on_up_to_the_held_out_end() -> None:
    info = _videos([240])[0].info
    scenes = [Span(info, 12 * i, 12 * i + 11) for i in range(15)] + [Span(info, 180, 219), Span(info, 195, 205)]
    train, held_out = split_videos(scenes, 0.1, 17)
    assert _ranges(held_out) == [(203, 219)]
    assert _ranges(train) == [(180, 202), *_ranges(scenes[:15]), (195, 202)]


def test_all_spans_of_a_video_are_held_out_together() -> None:
    videos = [part for span in _videos([100] * 10) for part in (Span(span.info, 0, 59), Span(span.info, 40, 99))]
    train, held_out = split_videos(videos, 0.1, 9)
    assert (len(train), len(held_out)) == (18, 2)
    assert {span.info.path.name for span in held_out} == {"5.mp4"}
    # That includes its short spans.
    short = [Span(video.info, 0, 3) for video in videos[10:14]]
    train, _ = split_videos(videos + short, 0.1, 9)
    assert len(train) == 18 + 2


@pytest.mark.parametrize("other", ["sub/../v.mp4", "link.mp4"])
@pytest.mark.parametrize("in_tar", [False, True])
def test_several_paths_of_one_file_are_one_video(tmp_path: Path, other: str, in_tar: bool) -> None:
    (tmp_path / "link.mp4").symlink_to(tmp_path / "v.mp4")
    paths = (tmp_path / "v.mp4", tmp_path / other)
    sources = [TarMember(path, "a.mp4", 512, 99) if in_tar else path for path in paths]
    one, two = (replace(_videos([100])[0].info, path=source) for source in sources)
    train, held_out = split_videos([Span(one, 0, 59), Span(two, 40, 99), Span(one, 85, 95)], 0.1, 9)
    assert (_ranges(train), _ranges(held_out)) == ([(0, 59), (40, 89)], [(90, 99)])
    train, held_out = split_videos([Span(one, 40, 99), Span(two, 90, 97)], 0.2, 9)
    assert (_ranges(train), _ranges(held_out)) == ([(40, 87)], [(88, 99)])


def test_images_are_held_out_whole() -> None:
    train, held_out = split_videos(_images(20), 0.1, 17)
    assert [span.info.path.name for span in held_out] == ["5.png", "15.png"]
    assert len(train) == 18
    assert [len(part) for part in split_videos(_images(2), 0.1, 17)] == [1, 1]
    with pytest.raises(DataError, match="a video or two images, but got one image"):
        split_videos(_images(1), 0.1, 17)


def test_images_and_videos_are_split_separately() -> None:
    train, held_out = split_videos(_images(20) + _videos([100]), 0.1, 9)
    assert [span.info.path.name for span in train if not span.info.is_image] == ["0.mp4"]
    assert [span.info.path.name for span in held_out] == ["0.mp4", "5.png", "15.png"]
    assert [len(part) for part in split_videos(_images(2) + _videos([100]), 0.1, 9)] == [2, 2]
    for images in (_images(1), _images(1) * 2):  # a list may name a file twice
        assert [len(part) for part in split_videos(images + _videos([100]), 0.1, 9)] == [1 + len(images), 1]


def test_validation_clips_are_always_the_same(spans: list[Span]) -> None:
    clips = read_validation_clips(spans, CONFIG, 5)
    assert_same_clips(clips, read_validation_clips(spans, CONFIG, 5))
    assert [(Path(clip["source"]).name, clip["start"]) for clip in clips] == [
        ("short.mp4", 0),
        ("short.mp4", 7),
        ("long.mp4", 4),
        ("long.mp4", 17),
        ("long.mp4", 31),
    ]
    assert all(clip["video"].shape == (3, 5, 32, 40) for clip in clips)
    # The short video has room for two clips without overlap, the long one for six.
    assert len(read_validation_clips(spans, CONFIG, 100)) == 2 + 6
    assert [clip["start"] for clip in read_validation_clips(spans, CONFIG, 2)] == [3, 17]
    assert [Path(clip["source"]).name for clip in read_validation_clips(spans, CONFIG, 1)] == ["long.mp4"]
    with pytest.raises(ValueError, match="`max_clips` must be a positive int"):
        read_validation_clips(spans, CONFIG, 0)


def test_validation_clips_are_centre_crops(spans: list[Span]) -> None:
    config = ClipConfig(num_frames=12, height=24, width=64, num_workers=0)
    (clip,) = read_validation_clips(spans[:1], config, 1)
    (whole,) = read_validation_clips(spans[:1], replace(config, height=48), 1)
    assert (clip["video"] == whole["video"][:, :, 12:36]).all()


def test_validation_clips_have_the_validation_size(spans: list[Span]) -> None:
    config = replace(CONFIG, buckets=(Bucket(9, 16, 16), Bucket(5, 32, 40)))
    assert_same_clips(read_validation_clips(spans, config, 3), read_validation_clips(spans, CONFIG, 3))


def test_validation_on_images(tmp_path: Path, spans: list[Span]) -> None:
    images = [whole_video(index_video(path)) for path in write_images(tmp_path, 3)]
    assert {Path(clip["source"]).suffix for clip in read_validation_clips(images + spans, CONFIG, 4)} == {".mp4"}
    for config, used in ((CONFIG, images), (replace(CONFIG, image_ratio=1.0), images + spans)):
        clips = read_validation_clips(used, config, 4)
        assert [Path(clip["source"]).name for clip in clips] == ["0.png", "1.png", "2.png"]
        assert {clip["video"].shape for clip in clips} == {(3, 1, 32, 40)}
    with pytest.raises(DataError, match="held-out files with a decodable clip of 5 frames"):
        read_validation_clips([], CONFIG, 4)


def test_corrupt_validation_clips_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "damaged.mp4", moving_frames(60), "libx264", g="10")
    span = whole_video(index_video(damage(path, 0.45, 0.6)))
    config = ClipConfig(num_frames=2, height=32, width=32, num_workers=0)
    assert 0 < len(read_validation_clips([span], config, 10)) < 10
    assert "skipping a validation clip" in caplog.text
    path.unlink()
    with pytest.raises(DataError, match=r"but got none; the longest has 60 frames, .*damaged\.mp4\. "):
        read_validation_clips([span], config, 10)


def test_the_setting_of_held_out_videos_that_are_too_short_is_named(spans: list[Span]) -> None:
    message = "`val_data` must be held-out files with a decodable clip of 99 frames, but got none; the longest has"
    with pytest.raises(DataError, match=message):
        read_validation_clips(spans, replace(CONFIG, num_frames=99), 4, name="val_data")


def test_what_is_held_out_is_not_trained_on(caplog):
    one, two, three = _videos([40, 40, 40])
    assert without_held_out([one, two, three], [three]) == [one, two]
    assert "40 of 120 frames are in `val_data`, and not trained on" in caplog.text
    first, last = replace(two, last_frame=19), replace(two, first_frame=20)
    part = replace(two, first_frame=15, last_frame=29)
    left = [replace(two, last_frame=14), replace(two, first_frame=30)]
    assert without_held_out([one, first, last], [part]) == [one, *left]
    assert without_held_out([one, two], [part]) == [one, *left]
    assert without_held_out([two], [replace(last, last_frame=24), part]) == left, "in any order, also overlapping"
    assert without_held_out([one, first], [last]) == [one, first]
    (image,) = _images(1)
    assert without_held_out([image, one], [image]) == [one]
    assert without_held_out([one], [one]) == [one]
    assert "`val_data` has all of `data`: validation is on what is trained on" in caplog.text
