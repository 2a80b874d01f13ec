"""Frames by number or by time, of constant and of variable frame rates, and of rates that are too low."""

from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from telecine.data import (
    ClipDataset,
    ClipFrames,
    DataError,
    Span,
    VideoInfo,
    bytes_from_video,
    index_video,
    read_validation_clips,
    whole_video,
)
from telecine.data.span_table import SpanTable
from telecine.settings import ClipConfig

from .indexed import split_videos
from .videos import numbered_frames, numbers_of, write_video

CONFIG = ClipConfig(5, 48, 64, num_workers=0, random_flip=False)


def indexed(pts, fps, time_base=0.001, name="a.mp4"):
    """Return the index of a video with these timestamps."""
    return VideoInfo(Path(name), 64, 48, fps, array("q", pts), array("q", [0]), time_base=time_base)


def constant(fps, num_frames=300):
    return indexed([round(number * 90_000 / fps) for number in range(num_frames)], fps, 1 / 90_000)


@pytest.mark.parametrize(
    ("source_fps", "fps", "expected"),
    [
        (30, 30, [7, 8, 9, 10, 11]),
        (29.97, 30, [7, 8, 9, 10, 11]),
        (30, 15, [7, 9, 11, 13, 15]),
        (
            30,
            24,
            [7, 8, 9, 11, 12],
        ),  # 7, 8.25, 9.5, 10.75, 12: of two equally near ones the earlier
        (30, 20, [7, 8, 10, 11, 13]),
        (60, 24, [7, 9, 12, 14, 17]),
        (24, 25, [7, 8, 9, 10, 11]),
    ],
)
def test_frames_are_nearest_in_time(source_fps, fps, expected):
    frames = ClipFrames(5, fps=fps)
    assert list(frames.indices(constant(source_fps), 7)) == expected
    assert frames.last_index(constant(source_fps), 7) == expected[-1]


def test_a_variable_frame_rate():
    info = indexed([0, 40, 80, 300, 310, 320, 330, 500, 520, 540, 560], 10 / 0.56)
    frames = ClipFrames(5, fps=10)
    assert list(frames.indices(info, 0)) == [0, 2, 3, 3, 6]  # of 0, 100, ..., 400 ms
    assert list(frames.indices(info, 2)) == [2, 2, 3, 6, 7]
    assert frames.num_starts(whole_video(info)) == 3, "a clip from 300 ms on ends after the video"
    assert frames.num_starts(Span(info, 0, 6)) == 1


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_an_integer_part_of_a_constant_rate_is_a_stride(stride):
    by_number = ClipFrames(5, stride)
    for source_fps in (24, 25, 30000 / 1001):
        info = constant(source_fps)
        by_time = ClipFrames(5, fps=source_fps / stride)
        for span in (whole_video(info), Span(info, 10, 30), Span(info, 0, 4 * stride - 1)):
            assert by_time.num_starts(span) == by_number.num_starts(span)
        assert list(by_time.indices(info, 9)) == list(by_number.indices(info, 9))
        assert by_time.num_source_frames(info) == by_number.num_source_frames(info)


def test_timestamps_that_do_not_increase_count_as_evenly_spaced():
    info = indexed([0, 120, 40, 80, 160, 280, 200, 240, 320, 360], 25)
    assert list(ClipFrames(3, fps=12.5).indices(info, 1)) == [1, 3, 5]
    assert ClipFrames(3, fps=12.5).num_starts(whole_video(info)) == 6


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("container", ["mp4", "mkv", "avi"])
def test_clips_have_the_frame_rate_of_the_setting(tmp_path, container, cache):
    path = write_video(tmp_path / f"a.{container}", numbered_frames(60), fps=30, g="10")
    config = replace(CONFIG, fps=10, cache=cache)
    dataset = ClipDataset([whole_video(index_video(path))], config)
    starts = set()
    for number in range(30):
        clip = dataset[number]
        numbers = numbers_of(bytes_from_video(clip["video"]))
        starts.add(clip["start"])
        offsets = [after - numbers[0] for after in numbers]
        assert (numbers[0], offsets, clip["fps"]) == (clip["start"], [0, 3, 6, 9, 12], 10)
    assert max(starts) <= 47


def test_repeated_frames_are_decoded_once_and_shown_again(tmp_path):
    path = write_video(tmp_path / "a.mkv", numbered_frames(6), pts=[0, 40, 80, 400, 440, 480])
    info = index_video(path)
    dataset = ClipDataset([whole_video(info)], replace(CONFIG, fps=10, num_frames=4))
    starts = {dataset[number]["start"]: dataset[number]["video"] for number in range(30)}
    assert numbers_of(bytes_from_video(starts[0])) == [0, 2, 2, 3]
    assert torch.equal(starts[0][:, 1], starts[0][:, 2])


def test_videos_with_fewer_frames_a_second_are_named_and_not_used(caplog):
    spans = [whole_video(constant(fps)) for fps in (15, 22.9, 24, 30)]
    spans = [
        replace(span, info=replace(span.info, source=Path(f"{number}.mp4")))
        for number, span in enumerate(spans)
    ]
    config = replace(CONFIG, fps=24)
    assert list(ClipDataset(spans, config).spans) == spans[1:]
    assert SpanTable.of(spans).log_too_short(ClipFrames.shortest(config)) == 1
    assert caplog.messages == [
        "1 of 4 files have no clip of 5 frames at 24 a second, and are not used: "
        "0.mp4 (15 frames a second)"
    ]
    with pytest.raises(
        DataError, match=r"a clip of 5 frames at 60 a second, .* 57 frames a second"
    ):
        split_videos(spans, replace(CONFIG, fps=60))


@pytest.mark.parametrize("num_videos", [3, 20])
def test_held_out_parts_have_clips_by_time(num_videos):
    spans = []
    for number in range(num_videos):
        info = replace(constant((24, 50, 25)[number % 3], 250), source=Path(f"{number}.mp4"))
        spans.append(whole_video(info))
    config = replace(CONFIG, num_frames=17, fps=12, val_fraction=0.05)
    frames = ClipFrames.of(config.val_bucket, config)
    train, held_out = split_videos(spans, config)
    for span in train + held_out:
        assert frames.fits(span)
    if num_videos == 3:
        assert [span.num_frames for span in held_out] == [33, 68, 34]
        gaps = [250 - a.num_frames - b.num_frames for a, b in zip(train, held_out, strict=True)]
        assert gaps == [33, 68, 34], "the frames of a clip"


def test_validation_clips_by_time(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered_frames(60), fps=30, g="10")
    config = replace(CONFIG, fps=10)
    clips = read_validation_clips([whole_video(index_video(path))], config, 4)
    starts = [clip["start"] for clip in clips]
    assert starts == [0, 15, 31, 47]
    for clip in clips:
        first = clip["start"]
        expected = [first, first + 3, first + 6, first + 9, first + 12]
        assert numbers_of(bytes_from_video(clip["video"])) == expected
