"""Decoded frames kept in memory."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from telecine.data import ClipDataset, Span, index_video, read_clip, tar_members, whole_video
from telecine.data.dataset import DecodedCache, num_cached_bytes
from telecine.settings import Bucket, ClipConfig

from .videos import assert_same_clips, damage, moving_frames, numbered_frames, numbers_of, write_video

CONFIG = ClipConfig(num_frames=3, height=48, width=64, num_workers=0, cache=True)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_cached_clip_equals_a_decoded_one(spans: list[Span], stride: int) -> None:
    config = replace(CONFIG, height=24, width=30, stride=stride, scale_jitter=1.5)
    (bucket,) = config.train_buckets
    cache = DecodedCache(spans, config)
    for span, start in zip(spans, (5, 20), strict=True):
        decoded = read_clip(span.info, start, 3, stride, bucket.decode_size(span.info.height, span.info.width, 1.5))
        assert torch.equal(cache.read(span, start, bucket), decoded)


def test_num_bytes(spans: list[Span]) -> None:
    buckets = (Bucket(3, 48, 64), Bucket(5, 48, 64), Bucket(3, 24, 32))
    config = replace(CONFIG, buckets=buckets)
    short = 12 * 3 * (48 * 64 + 24 * 32)
    for some in (spans[:1], spans):
        cache = DecodedCache(some, config)
        clips = [cache.read(span, span.first_frame, bucket) for span in some for bucket in buckets]
        sizes = {clip.untyped_storage().data_ptr(): clip.untyped_storage().nbytes() for clip in clips}
        assert len(sizes) == 2 * len(some), "clips of both lengths are views of the same frames"
        assert sum(sizes.values()) == num_cached_bytes(some, config)
    assert num_cached_bytes(spans, config) > num_cached_bytes(spans[:1], config) == short


def test_frames_that_do_not_fit_in_memory(spans: list[Span], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"`cache` must be off .* GiB of decoded frames.*Turn it off"):
        DecodedCache(spans, replace(CONFIG, height=1_000_000, width=1_000_000))
    # The frames of the short video take 12 * 3 * 48 * 64 = 110592 bytes, 0.8 of 138240.
    monkeypatch.setattr("telecine.data.dataset.machine_memory", lambda: 138240)
    DecodedCache(spans[:1], CONFIG)
    monkeypatch.setattr("telecine.data.dataset.machine_memory", lambda: 138239)
    with pytest.raises(ValueError, match=r"more than 80% of 0\.0 GiB of memory, but got on for 0\.0 GiB"):
        DecodedCache(spans[:1], CONFIG)


def test_every_process_of_a_machine_keeps_the_frames(spans: list[Span], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telecine.data.dataset.machine_memory", lambda: 3 * 138240)
    for num_processes in (1, 3):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_processes))
        DecodedCache(spans[:1], CONFIG)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"but got on for 0\.0 GiB of decoded frames in each of 4 processes\. "):
        DecodedCache(spans[:1], CONFIG)


def test_clips_of_a_damaged_video_are_those_without_a_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "damaged.mp4", moving_frames(60), "libx264", g="10")
    bad = whole_video(index_video(damage(path, 0.45, 0.6)))
    cached, decoded = (ClipDataset([bad], replace(CONFIG, cache=cache)) for cache in (True, False))
    assert "not cached:" in caplog.text
    assert_same_clips([cached[index] for index in range(8)], [decoded[index] for index in range(8)])


def test_tar_members_of_the_same_name_are_cached_separately(tmp_path: Path) -> None:
    frames = numbered_frames(10)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for first in (0, 5):
            tar.add(write_video(tmp_path / "source.mp4", frames[first : first + 5]), "same.mp4")
    members = [whole_video(index_video(member)) for member in tar_members(tmp_path / "a.tar")]
    cache = DecodedCache(members, CONFIG)
    (bucket,) = CONFIG.train_buckets
    assert [numbers_of(cache.read(span, 0, bucket)) for span in members] == [[0, 1, 2], [5, 6, 7]]


def test_spans_of_one_video_are_cached_separately(tmp_path: Path) -> None:
    info = index_video(write_video(tmp_path / "a.mp4", numbered_frames(12)))
    spans = [Span(info, 0, 4), Span(info, 0, 6), Span(info, 4, 6)]
    cache = DecodedCache(spans, CONFIG)
    (bucket,) = CONFIG.train_buckets
    clips = [cache.read(span, start, bucket) for span, start in zip(spans, (2, 4, 4), strict=True)]
    assert [numbers_of(clip) for clip in clips] == [[2, 3, 4], [4, 5, 6], [4, 5, 6]]
