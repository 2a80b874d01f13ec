"""Validation clips are always the same, and what `val_data` has is not trained on."""

from dataclasses import replace
from pathlib import Path

import pytest

from telecine.data import (
    DataError,
    index_video,
    read_validation_clips,
    whole_video,
)
from telecine.settings import Bucket, ClipConfig

from .indexed import images, video, videos, without_held_out
from .videos import assert_same_clips, damage, moving_frames, write_images, write_video

CONFIG = ClipConfig(num_frames=5, height=32, width=40, num_workers=0, scale_jitter=1.5)


def test_validation_clips_are_always_the_same(spans):
    clips = read_validation_clips(spans, CONFIG, 5)
    assert_same_clips(clips, read_validation_clips(spans, CONFIG, 5))
    several_sizes = replace(CONFIG, buckets=(Bucket(9, 16, 16), Bucket(5, 32, 40)))
    assert_same_clips(clips, read_validation_clips(spans, several_sizes, 5))
    places = [(Path(clip["source"]).name, clip["start"]) for clip in clips]
    assert places == [
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
    assert [Path(clip["source"]).name for clip in read_validation_clips(spans, CONFIG, 1)] == [
        "long.mp4"
    ]
    with pytest.raises(ValueError, match="`max_clips` must be a positive int"):
        read_validation_clips(spans, CONFIG, 0)


def test_validation_clips_are_centre_crops(spans):
    config = ClipConfig(num_frames=12, height=24, width=64, num_workers=0)
    (clip,) = read_validation_clips(spans[:1], config, 1)
    (whole,) = read_validation_clips(spans[:1], replace(config, height=48), 1)
    assert (clip["video"] == whole["video"][:, :, 12:36]).all()


def test_validation_on_images(tmp_path, spans):
    files = [whole_video(index_video(path)) for path in write_images(tmp_path, 3)]
    assert {
        Path(clip["source"]).suffix for clip in read_validation_clips(files + spans, CONFIG, 4)
    } == {".mp4"}
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
        DataError,
        match=r"`data` must be .*, but got none; the longest has 60 frames, .*damaged\.mp4\. ",
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
    assert without_held_out([two], [replace(last, last_frame=24), part]) == left, (
        "in any order, also overlapping"
    )
    caplog.clear()
    assert without_held_out([one, first], [last]) == [one, first]
    assert not caplog.text
    (image,) = images(1)
    assert without_held_out([image, one], [image]) == [one]
    assert without_held_out([one], [one]) == [one]
    assert "`val_data` has all of `data`: validation is on what is trained on" in caplog.text


def test_frames_of_copies_of_what_is_held_out_are_not_trained_on():
    train = [video("a.mp4", 40, "a"), video("copy.mp4", 40, "a"), video("b.mp4", 40, "b")]
    part = replace(train[0], first_frame=15)
    left = [replace(span, last_frame=14) for span in train[:2]]
    assert without_held_out(train, [part]) == [*left, train[2]]
    unknown = [video("c.mp4"), video("d.mp4")]
    assert without_held_out(unknown, unknown[:1]) == unknown[1:], "which were not compared"
