"""A clip is a function of (seed, index), whoever reads it, from a file or from memory."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from telecine.data import (
    Clip,
    ClipConfig,
    ClipDataset,
    DataError,
    DecodedCache,
    IndexSampler,
    Span,
    bytes_from_video,
    clip_loader,
    index_video,
    num_cached_bytes,
    read_clip,
    split_videos,
    validation_clips,
    video_from_bytes,
)

from .videos import damage, moving_frames, numbered_frames, numbers_of, write_video

CONFIG = ClipConfig(num_frames=5, height=32, width=40, num_workers=0, scale_jitter=1.5)


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> list[Span]:
    folder = tmp_path_factory.mktemp("clips")
    short = index_video(write_video(folder / "short.mp4", moving_frames(12), g="5"))
    long = index_video(write_video(folder / "long.mp4", moving_frames(40, 36, 90, seed=1), g="10"))
    return [Span(short, 0, 11), Span(long, 4, 35)]


def assert_equal(first: list[Clip], second: list[Clip]) -> None:
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert (a["source"], int(a["start"])) == (b["source"], int(b["start"]))
        assert torch.equal(a["video"], b["video"])


def test_an_item(spans: list[Span]) -> None:
    item = ClipDataset(spans, CONFIG)[0]
    assert item["video"].shape == (3, 5, 32, 40)
    assert item["video"].dtype == torch.float32
    assert item["video"].is_contiguous()
    assert -1 <= item["video"].min() < item["video"].max() <= 1
    assert Path(item["source"]).name in {"short.mp4", "long.mp4"}


def test_items_depend_on_seed_and_index_alone(spans: list[Span]) -> None:
    dataset, again = ClipDataset(spans, CONFIG, seed=3), ClipDataset(spans, CONFIG, seed=3)
    assert_equal([dataset[i] for i in (5, 0, 10**12)], [again[i] for i in (5, 0, 10**12)])
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
        sampler=IndexSampler(0, 8),
        num_workers=WORKERS[method],
        multiprocessing_context=method,
    )
    assert_equal(list(loader), [dataset[i] for i in range(8)])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_goes_on_where_it_was(spans: list[Span], num_workers: int) -> None:
    dataset = ClipDataset(spans, replace(CONFIG, num_workers=num_workers))
    whole = list(clip_loader(dataset, batch_size=2, start_step=0, num_steps=5))
    rest = list(clip_loader(dataset, batch_size=2, start_step=3, num_steps=5))
    assert (len(whole), len(rest)) == (5, 2)
    assert whole[0]["video"].shape == (2, 3, 5, 32, 40)
    for a, b in zip(whole[3:], rest, strict=True):
        assert torch.equal(a["video"], b["video"])
        assert a["source"] == b["source"]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("jitter", [1.0, 1.5])
def test_cached_clips_equal_those_read(spans: list[Span], stride: int, jitter: float) -> None:
    config = replace(CONFIG, stride=stride, scale_jitter=jitter)
    cached, read = ClipDataset(spans, replace(config, cache=True)), ClipDataset(spans, config)
    assert cached.cache is not None
    assert read.cache is None
    assert cached.cache.num_bytes == num_cached_bytes(spans, config)
    assert_equal([cached[i] for i in range(6)], [read[i] for i in range(6)])


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
    draws = [dataset._draw(i, 0) for i in range(3600)]
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
    index = next(i for i in range(20) if dataset._draw(i, 0).flip)
    frames = read_clip(spans[0].info, dataset[index]["start"], 5)
    assert torch.equal(dataset[index]["video"], video_from_bytes(frames).flip(-1))


def test_broken_parts_are_replaced_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "damaged.mp4", moving_frames(60), "libx264", g="10")
    info = index_video(damage(path, 0.45, 0.6))
    config = ClipConfig(num_frames=2, height=32, width=32, num_workers=0)
    dataset, again = ClipDataset([Span(info, 0, 59)], config), ClipDataset([Span(info, 0, 59)], config)
    items = [dataset[i] for i in range(20)]
    assert caplog.text.count("damaged.mp4") == 1
    assert_equal(items, [again[i] for i in range(20)])
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


def test_validation_clips_are_the_same_every_time(spans: list[Span]) -> None:
    clips = validation_clips(spans, CONFIG, 5)
    assert_equal(clips, validation_clips(spans, CONFIG, 5))
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
    train, held_out = split_videos([span.info for span in spans], CONFIG.val_fraction, CONFIG.clip_span)
    assert len(ClipDataset(train, CONFIG).spans) == 2
    assert len(validation_clips(held_out, CONFIG, 4)) == 2


@given(start=st.integers(0, 50), more=st.integers(0, 50))
def test_index_sampler(start: int, more: int) -> None:
    sampler = IndexSampler(start, start + more)
    assert list(sampler) == list(sampler) == list(range(start, start + more))
    assert len(sampler) == more


def test_index_sampler_refuses_to_go_back() -> None:
    with pytest.raises(ValueError, match=r"`start` must be from 0 to `stop` \(3\), but got 4"):
        IndexSampler(4, 3)


def test_bytes_survive_the_way_to_the_unit_range_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 2, 8, 16, 1).expand(2, -1, -1, -1, 3)
    video = video_from_bytes(frames)
    assert video.shape == (2, 3, 2, 8, 16)
    assert (video.min(), video.max()) == (-1, 1)
    assert torch.equal(bytes_from_video(video), frames)
    assert torch.equal(bytes_from_video(video.double()), frames)
    assert bytes_from_video(torch.tensor([-9.0, 9.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]
    with pytest.raises(ValueError, match="`frames` must be uint8"):
        video_from_bytes(video)
    with pytest.raises(ValueError, match="`video` must be floating point"):
        bytes_from_video(frames)


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
    ],
)
def test_settings_are_checked(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"`{name}` must be .*, but got {value}"):
        ClipConfig(**{name: value})


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    crop=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    jitter=st.floats(1, 2),
)
def test_the_crop_is_covered(size: tuple[int, int], crop: tuple[int, int], jitter: float) -> None:
    config = ClipConfig(height=crop[0], width=crop[1], scale_jitter=jitter)
    info = type("Info", (), {"height": size[0], "width": size[1]})()
    height, width = config.decode_size(info)
    assert height >= crop[0]
    assert width >= crop[1]
    # One side fits exactly, up to rounding and the zoom: nothing is decoded larger than needed.
    assert height <= crop[0] * jitter + 1 or width <= crop[1] * jitter + 1
