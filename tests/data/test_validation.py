"""Held-out spans share no frame with training spans, and validation clips are always the same."""

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
ONE = array("q", [0])


def videos(*lengths):
    """Return spans of videos `0.mp4`, `1.mp4`, ... with these numbers of frames."""
    infos = [
        VideoInfo(Path(f"{i}.mp4"), 64, 48, 25.0, array("q", range(length)), ONE) for i, length in enumerate(lengths)
    ]
    return [whole_video(info) for info in infos]


def images(count):
    return [whole_video(VideoInfo(Path(f"{i}.png"), 64, 48, 1.0, ONE, ONE, is_image=True)) for i in range(count)]


def frames(spans):
    return {(str(span.info.path), frame) for span in spans for frame in range(span.first_frame, span.last_frame + 1)}


def ranges(spans):
    return [(span.first_frame, span.last_frame) for span in spans]


def names(spans):
    return [span.info.path.name for span in spans]


def split_ranges(spans, val_fraction, clip_span):
    train, held_out = split_videos(spans, val_fraction, clip_span)
    return ranges(train), ranges(held_out)


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=14),
    fraction=st.floats(0.01, 0.5),
    clip_span=st.integers(1, 20),
)
@pytest.mark.slow
def test_spans_are_disjoint_and_long_enough(lengths, fraction, clip_span):
    spans = videos(*lengths)
    try:
        train, held_out = split_videos(spans, fraction, clip_span)
    except DataError:
        usable = [length for length in lengths if length >= clip_span]
        assert len(usable) < 10
        assert all(length < 2 * clip_span for length in usable)
        return
    assert train
    assert held_out
    assert not frames(train) & frames(held_out)
    # Videos too short for a validation clip are kept for training, where a clip of another size may fit.
    assert frames(train) | frames(held_out) == frames(spans)
    assert all(span.num_frames >= min(clip_span, span.info.num_frames) for span in train)
    assert all(span.num_frames >= clip_span for span in held_out)
    assert (train, held_out) == split_videos(spans, fraction, clip_span)


@pytest.mark.parametrize("kind", [images, lambda count: videos(*[30] * count)])
def test_many_files_are_held_out_whole(kind):
    train, held_out = split_videos(kind(20), 0.1, 9)
    assert [Path(name).stem for name in names(held_out)] == ["5", "15"]
    assert len(train) == 18
    assert len(split_videos(kind(10), 0.01, 9)[1]) == 1


def test_the_end_of_each_of_few_videos_is_held_out():
    expected = ([(0, 79), (0, 30), (0, 9), (0, 8)], [(80, 99), (31, 39), (9, 17)])
    assert split_ranges(videos(100, 40, 10, 18), 0.2, 9) == expected
    assert len(split_videos(videos(*[30] * 9), 0.01, 9)[1]) == 9


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (videos(5, 12), r"clip of 17 frames, .* but got at most 12 frames, in 1\.mp4\. .*smaller stride\."),
        (videos(5, 20), "clip of 17 frames, 34 together, but got at most 20 .*stride, or 10 videos or more"),
        ([], "`data` must be a video or two images, but got nothing"),
        (images(1), "`data` must be a video or two images, but got one image"),
    ],
)
def test_nothing_can_be_held_out(spans, message):
    with pytest.raises(DataError, match=message):
        split_videos(spans, 0.1, 17)


def test_spans_of_one_video_are_split_at_one_frame():
    (video,) = videos(1000)

    def parts(*limits):
        return [Span(video.info, first, last) for first, last in limits]

    spans = parts((0, 49), (30, 129), (200, 249))
    assert split_ranges(spans, 0.2, 9) == ([(0, 49), (30, 129), (200, 213)], [(214, 249)])
    same = parts((0, 99)) * 10
    assert split_ranges(same, 0.1, 9) == ([(0, 89)] * 10, [(90, 99)] * 10)
    too_short = parts((0, 49), (40, 49), (30, 44))  # parts that are too short for a clip are dropped
    assert split_ranges(too_short, 0.2, 9) == ([(0, 39), (30, 39)], [(40, 49), (40, 49)])
    # Spans that are too short for a validation clip are trained on up to the held-out end.
    scenes = parts(*((12 * i, 12 * i + 11) for i in range(15)), (180, 219), (195, 205))
    assert split_ranges(scenes, 0.1, 17) == ([(180, 202), *ranges(scenes[:15]), (195, 202)], [(203, 219)])


def test_all_spans_of_a_video_are_held_out_together():
    spans = []
    for video in videos(*[100] * 10):
        spans += [replace(video, last_frame=59), replace(video, first_frame=40)]
    train, held_out = split_videos(spans, 0.1, 9)
    assert (len(train), names(held_out)) == (18, ["5.mp4"] * 2)
    short = [Span(span.info, 0, 3) for span in spans[10:14]]  # two of the held-out video
    assert len(split_videos(spans + short, 0.1, 9)[0]) == 18 + 2


@pytest.mark.parametrize("other", ["sub/../v.mp4", "link.mp4"])
@pytest.mark.parametrize("in_tar", [False, True])
def test_several_paths_of_one_file_are_one_video(tmp_path, other, in_tar):
    (tmp_path / "link.mp4").symlink_to(tmp_path / "v.mp4")
    sources = [tmp_path / "v.mp4", tmp_path / other]
    if in_tar:
        sources = [TarMember(path, "a.mp4", 512, 99) for path in sources]
    (video,) = videos(100)
    one, two = (replace(video.info, path=source) for source in sources)
    spans = [Span(one, 0, 59), Span(two, 40, 99), Span(one, 85, 95)]
    assert split_ranges(spans, 0.1, 9) == ([(0, 59), (40, 89)], [(90, 99)])
    assert split_ranges([Span(one, 40, 99), Span(two, 90, 97)], 0.2, 9) == ([(40, 87)], [(88, 99)])


def test_images_and_videos_are_split_separately():
    train, held_out = split_videos(images(20) + videos(100), 0.1, 9)
    assert [name for name in names(train) if name.endswith("mp4")] == ["0.mp4"]
    assert names(held_out) == ["0.mp4", "5.png", "15.png"]
    for spans, num_train, num_held_out in (
        (images(2), 1, 1),
        (images(2) + videos(100), 2, 2),
        (images(1) + videos(100), 2, 1),
        (images(1) * 2 + videos(100), 3, 1),  # a list may name a file twice
    ):
        assert [len(part) for part in split_videos(spans, 0.1, 9)] == [num_train, num_held_out]


def test_validation_clips_are_always_the_same(spans):
    clips = read_validation_clips(spans, CONFIG, 5)
    assert_same_clips(clips, read_validation_clips(spans, CONFIG, 5))
    several_sizes = replace(CONFIG, buckets=(Bucket(9, 16, 16), Bucket(5, 32, 40)))
    assert_same_clips(clips, read_validation_clips(spans, several_sizes, 5))
    places = [(Path(clip["source"]).name, clip["start"]) for clip in clips]
    assert places == [("short.mp4", 0), ("short.mp4", 7), ("long.mp4", 4), ("long.mp4", 17), ("long.mp4", 31)]
    assert all(clip["video"].shape == (3, 5, 32, 40) for clip in clips)
    # The short video has room for two clips without overlap, the long one for six.
    assert len(read_validation_clips(spans, CONFIG, 100)) == 2 + 6
    assert [clip["start"] for clip in read_validation_clips(spans, CONFIG, 2)] == [3, 17]
    assert [Path(clip["source"]).name for clip in read_validation_clips(spans, CONFIG, 1)] == ["long.mp4"]
    with pytest.raises(ValueError, match="`max_clips` must be a positive int"):
        read_validation_clips(spans, CONFIG, 0)


def test_validation_clips_are_centre_crops(spans):
    config = ClipConfig(num_frames=12, height=24, width=64, num_workers=0)
    (clip,) = read_validation_clips(spans[:1], config, 1)
    (whole,) = read_validation_clips(spans[:1], replace(config, height=48), 1)
    assert (clip["video"] == whole["video"][:, :, 12:36]).all()


def test_validation_on_images(tmp_path, spans):
    files = [whole_video(index_video(path)) for path in write_images(tmp_path, 3)]
    assert {Path(clip["source"]).suffix for clip in read_validation_clips(files + spans, CONFIG, 4)} == {".mp4"}
    for config, used in ((CONFIG, files), (replace(CONFIG, image_ratio=1.0), files + spans)):
        clips = read_validation_clips(used, config, 4)
        assert [Path(clip["source"]).name for clip in clips] == ["0.png", "1.png", "2.png"]
        assert {clip["video"].shape for clip in clips} == {(3, 1, 32, 40)}


def test_corrupt_validation_clips_are_skipped(tmp_path, caplog):
    path = write_video(tmp_path / "damaged.mp4", moving_frames(60), "libx264", g="10")
    span = whole_video(index_video(damage(path, 0.45, 0.6)))
    config = replace(CONFIG, num_frames=2)
    assert 0 < len(read_validation_clips([span], config, 10)) < 10
    assert "skipping a validation clip" in caplog.text
    path.unlink()
    with pytest.raises(
        DataError, match=r"`data` must be .*, but got none; the longest has 60 frames, .*damaged\.mp4\. "
    ):
        read_validation_clips([span], config, 10)
    message = "`val_data` must be held-out files with a decodable clip of 2 frames, but got none. "
    with pytest.raises(DataError, match=message):
        read_validation_clips([], config, 4, name="val_data")


def test_what_is_held_out_is_not_trained_on(caplog):
    one, two, three = videos(40, 40, 40)
    assert without_held_out([one, two, three], [three]) == [one, two]
    assert "40 of 120 frames are in `val_data`, and not trained on" in caplog.text
    first = replace(two, last_frame=19)
    last = replace(two, first_frame=20)
    part = replace(two, first_frame=15, last_frame=29)
    left = [replace(two, last_frame=14), replace(two, first_frame=30)]
    assert without_held_out([one, first, last], [part]) == [one, *left]
    assert without_held_out([one, two], [part]) == [one, *left]
    assert without_held_out([two], [replace(last, last_frame=24), part]) == left, "in any order, also overlapping"
    caplog.clear()
    assert without_held_out([one, first], [last]) == [one, first]
    assert not caplog.text
    (image,) = images(1)
    assert without_held_out([image, one], [image]) == [one]
    assert without_held_out([one], [one]) == [one]
    assert "`val_data` has all of `data`: validation is on what is trained on" in caplog.text
