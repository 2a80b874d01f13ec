"""A clip is a function of seed, step and index, whoever reads it, from a file or from memory."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from telecine.data import (
    ClipConfig,
    ClipDataset,
    DataError,
    DecodedCache,
    Span,
    bytes_from_video,
    index_video,
    num_cached_bytes,
    read_clip,
    validation_clips,
    video_from_bytes,
)

from .videos import assert_same_clips, damage, moving_frames, numbered_frames, numbers_of, write_video

CONFIG = ClipConfig(num_frames=5, height=32, width=40, num_workers=0, scale_jitter=1.5)


def test_an_item(spans: list[Span]) -> None:
    item = ClipDataset(spans, CONFIG)[0]
    assert item["video"].shape == (3, 5, 32, 40)
    assert item["video"].dtype == torch.float32
    assert item["video"].is_contiguous()
    assert -1 <= item["video"].min() < item["video"].max() <= 1
    assert Path(item["source"]).name in {"short.mp4", "long.mp4"}


def test_items_depend_on_seed_and_index_alone(spans: list[Span]) -> None:
    dataset, again = ClipDataset(spans, CONFIG, seed=3), ClipDataset(spans, CONFIG, seed=3)
    assert_same_clips([dataset[i] for i in (5, 0, 10**12)], [again[i] for i in (5, 0, 10**12)])
    other = ClipDataset(spans, CONFIG, seed=4)
    assert any(not torch.equal(dataset[i]["video"], other[i]["video"]) for i in range(3))
    assert not torch.equal(dataset[0]["video"], dataset[1]["video"])


WORKERS = {"fork": 2, "spawn": 1}  # a spawned process takes seconds to start


@pytest.mark.parametrize("method", [method for method in WORKERS if method in multiprocessing.get_all_start_methods()])
@pytest.mark.parametrize("cache", [False, True])
def test_workers_see_the_same(spans: list[Span], method: str, cache: bool) -> None:
    dataset = ClipDataset(spans, replace(CONFIG, cache=cache), seed=1)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(8),
        num_workers=WORKERS[method],
        multiprocessing_context=method,
    )
    assert_same_clips(list(loader), [dataset[i] for i in range(8)])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("jitter", [1.0, 1.5])
def test_cached_clips_equal_those_read(spans: list[Span], stride: int, jitter: float) -> None:
    config = replace(CONFIG, stride=stride, scale_jitter=jitter)
    cached, read = ClipDataset(spans, replace(config, cache=True)), ClipDataset(spans, config)
    assert cached.cache is not None
    assert read.cache is None
    assert cached.cache.num_bytes == num_cached_bytes(spans, config)
    assert_same_clips([cached[i] for i in range(6)], [read[i] for i in range(6)])


def test_a_cache_larger_than_memory_is_refused(spans: list[Span]) -> None:
    with pytest.raises(ValueError, match=r"`cache` must be off .* GiB of decoded frames.*Turn it off"):
        DecodedCache(spans, replace(CONFIG, height=1_000_000, width=1_000_000))


def test_clips_stay_inside_their_span(tmp_path: Path) -> None:
    info = index_video(write_video(tmp_path / "numbered.mp4", numbered_frames(40), g="10"))
    config = ClipConfig(num_frames=3, stride=4, height=48, width=64, num_workers=0)
    dataset = ClipDataset([Span(info, 10, 20)], config)
    starts = set()
    for i in range(40):
        numbers = numbers_of(bytes_from_video(dataset[i]["video"]))
        assert numbers == [numbers[0], numbers[0] + 4, numbers[0] + 8]
        starts.add(numbers[0])
    assert starts == {10, 11, 12}


def test_every_possible_clip_is_equally_likely(spans: list[Span]) -> None:
    dataset = ClipDataset(spans, CONFIG)
    draws = [dataset._draw(dataset._videos[5], i, 0) for i in range(3600)]
    counts = Counter((draw.span.info.path.name, draw.start) for draw in draws)
    assert len(counts) == 8 + 28
    assert 50 < min(counts.values()) <= max(counts.values()) < 150
    assert 1650 < sum(draw.flip for draw in draws) < 1950
    assert all(1 <= draw.window <= 1.5 and 0 <= draw.top <= 1 and 0 <= draw.left <= 1 for draw in draws)


def test_flip_and_zoom_can_be_turned_off(spans: list[Span]) -> None:
    config = ClipConfig(num_frames=5, height=48, width=64, random_flip=False, scale_jitter=1.0, num_workers=0)
    dataset = ClipDataset(spans[:1], config)
    for i in range(4):
        frames = read_clip(spans[0].info, dataset[i]["start"], 5)
        assert torch.equal(dataset[i]["video"], video_from_bytes(frames))


def test_flip_mirrors_left_and_right(spans: list[Span]) -> None:
    config = ClipConfig(num_frames=5, height=48, width=64, num_workers=0)
    dataset = ClipDataset(spans[:1], config)
    index = next(i for i in range(20) if dataset._draw(dataset._videos[5], i, 0).flip)
    frames = read_clip(spans[0].info, dataset[index]["start"], 5)
    assert torch.equal(dataset[index]["video"], video_from_bytes(frames).flip(-1))


def test_broken_parts_are_replaced_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "damaged.mp4", moving_frames(60), "libx264", g="10")
    info = index_video(damage(path, 0.45, 0.6))
    config = ClipConfig(num_frames=2, height=32, width=32, num_workers=0)
    dataset, again = ClipDataset([Span(info, 0, 59)], config), ClipDataset([Span(info, 0, 59)], config)
    items = [dataset[i] for i in range(20)]
    assert caplog.text.count("damaged.mp4") == 1
    assert_same_clips(items, [again[i] for i in range(20)])
    clips = validation_clips([Span(info, 0, 59)], config, 10)
    assert 0 < len(clips) < 10
    assert "a validation clip is left out" in caplog.text


@pytest.mark.parametrize("cache", [False, True])
def test_nothing_decodable_any_more(tmp_path: Path, spans: list[Span], cache: bool) -> None:
    info = index_video(write_video(tmp_path / "gone.mp4", moving_frames(20)))
    info.path.unlink()
    config = replace(CONFIG, cache=cache)
    with pytest.raises(DataError, match="`data` must be decodable"):
        ClipDataset([Span(info, 0, 19)], config)[0]
    with pytest.raises(DataError, match="held-out videos with a decodable clip"):
        validation_clips([Span(info, 0, 19)], config, 3)
    # Beside a good one it is passed over.
    dataset = ClipDataset([Span(info, 0, 19), spans[0]], config)
    assert {Path(dataset[i]["source"]).name for i in range(8)} == {"short.mp4"}


def test_spans_shorter_than_a_clip(spans: list[Span]) -> None:
    long = replace(CONFIG, num_frames=13)
    assert {Path(ClipDataset(spans, long)[i]["source"]).name for i in range(8)} == {"long.mp4"}
    with pytest.raises(DataError, match="at least one span of 33 frames"):
        ClipDataset(spans, replace(CONFIG, num_frames=33))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("num_frames", 0, ValueError),
        ("height", 0, ValueError),
        ("width", -4, ValueError),
        ("stride", 0, ValueError),
        ("num_workers", -1, ValueError),
        ("num_frames", 1.5, TypeError),
        ("stride", True, TypeError),
        ("scale_jitter", 0.9, ValueError),
        ("scale_jitter", float("nan"), ValueError),
        ("val_fraction", 0.0, ValueError),
        ("val_fraction", 0.6, ValueError),
        ("image_ratio", -0.1, ValueError),
        ("image_ratio", 1.5, ValueError),
    ],
)
def test_settings_are_checked(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"`{name}` must be .*, but got {value}"):
        ClipConfig(**{name: value})
