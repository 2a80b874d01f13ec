"""The clips to validate on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from telecine.data import Bucket, ClipConfig, ClipDataset, DataError, Span, split_videos, validation_clips, whole_video
from telecine.data.image import index_image

from .videos import assert_same_clips, write_images

CONFIG = ClipConfig(num_frames=5, height=32, width=40, num_workers=0, scale_jitter=1.5)


def test_validation_clips_are_the_same_every_time(spans: list[Span]) -> None:
    clips = validation_clips(spans, CONFIG, 5)
    assert_same_clips(clips, validation_clips(spans, CONFIG, 5))
    assert [(Path(clip["source"]).name, clip["start"]) for clip in clips] == [
        ("short.mp4", 0),
        ("short.mp4", 7),
        ("long.mp4", 4),
        ("long.mp4", 17),
        ("long.mp4", 31),
    ]
    assert all(clip["video"].shape == (3, 5, 32, 40) for clip in clips)
    # Not even two more fit without overlapping in the short one.
    assert len(validation_clips(spans, CONFIG, 100)) == 2 + 6
    assert [clip["start"] for clip in validation_clips(spans, CONFIG, 2)] == [3, 17]
    assert len(validation_clips(spans, CONFIG, 1)) == 1
    with pytest.raises(ValueError, match="`max_clips` must be at least 1"):
        validation_clips(spans, CONFIG, 0)


def test_split_and_validation_fit_together(spans: list[Span]) -> None:
    train, held_out = split_videos([whole_video(span.info) for span in spans], CONFIG.val_fraction, CONFIG.clip_span)
    assert len(ClipDataset(train, CONFIG).spans) == 2
    assert len(validation_clips(held_out, CONFIG, 4)) == 2


def test_of_several_sizes_the_main_one(spans: list[Span]) -> None:
    config = replace(CONFIG, buckets=(Bucket(9, 16, 16), Bucket(5, 32, 40)))
    assert_same_clips(validation_clips(spans, config, 3), validation_clips(spans, CONFIG, 3))


def test_images_where_there_is_nothing_else(tmp_path: Path, spans: list[Span]) -> None:
    images = [whole_video(index_image(path)) for path in write_images(tmp_path, 3)]
    assert {Path(clip["source"]).suffix for clip in validation_clips(images + spans, CONFIG, 4)} == {".mp4"}
    for config, used in ((CONFIG, images), (replace(CONFIG, image_ratio=1.0), images + spans)):
        clips = validation_clips(used, config, 4)
        assert [Path(clip["source"]).name for clip in clips] == ["0.png", "1.png", "2.png"]
        assert {clip["video"].shape for clip in clips} == {(3, 1, 32, 40)}
    with pytest.raises(DataError, match="held-out videos with a decodable clip of 5 frames"):
        validation_clips([], CONFIG, 4)
