"""Several sizes of clips."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from telecine.autoencoders import CausalVAE, CausalVAEConfig
from telecine.data import Bucket, ClipConfig, ClipDataset, DataError, Span, check_buckets
from telecine.data.bucket import draw_bucket

BUCKETS = (Bucket(5, 32, 40, weight=3), Bucket(3, 48, 32), Bucket(9, 16, 16))
CONFIG = ClipConfig(num_frames=5, height=32, width=40, buckets=BUCKETS, num_workers=0)


def test_each_step_has_one_size_by_its_weight(spans: list[Span]) -> None:
    dataset, again = ClipDataset(spans, CONFIG, seed=2), ClipDataset(spans, CONFIG, seed=2)
    steps = range(2000)
    counts = Counter(dataset.bucket_of(step) for step in steps)
    assert set(counts) == set(BUCKETS)
    assert 1100 < counts[BUCKETS[0]] < 1300
    assert 330 < counts[BUCKETS[1]] < 470
    assert [dataset.bucket_of(step) for step in steps] == [again.bucket_of(step) for step in steps]
    other = ClipDataset(spans, CONFIG, seed=3)
    assert [dataset.bucket_of(step) for step in steps] != [other.bucket_of(step) for step in steps]
    for step in range(8):
        for index in (7, 8):
            assert dataset[step, index]["video"].shape == (3, *dataset.bucket_of(step).shape)


@pytest.mark.parametrize("stride", [1, 2])
def test_clips_of_each_size_stay_inside_their_span(spans: list[Span], stride: int) -> None:
    dataset = ClipDataset(spans, replace(CONFIG, stride=stride))
    last = {str(span.info.path): span.last_frame for span in spans}
    for step in range(30):
        clip = dataset[step]
        assert clip["start"] + (clip["video"].shape[1] - 1) * stride <= last[clip["source"]]


def test_cached_clips_equal_those_read(spans: list[Span]) -> None:
    cached, read = ClipDataset(spans, replace(CONFIG, cache=True)), ClipDataset(spans, CONFIG)
    for i in range(8):
        assert torch.equal(cached[i]["video"], read[i]["video"])


def test_a_size_that_no_video_is_long_enough_for(spans: list[Span]) -> None:
    with pytest.raises(DataError, match="at least one span of 65 frames"):
        ClipDataset(spans, replace(CONFIG, buckets=(*BUCKETS, Bucket(65, 16, 16))))


@settings(deadline=None)
@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5), seed=st.integers(0, 2**40))
def test_a_draw_is_one_of_them(weights: list[float], seed: int) -> None:
    buckets = [Bucket(1, 8, 8, weight) for weight in weights]
    assert draw_bucket(buckets, torch.Generator().manual_seed(seed)) in buckets


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("num_frames", 0, ValueError),
        ("height", 2.5, TypeError),
        ("width", -1, ValueError),
        ("weight", 0.0, ValueError),
        ("weight", float("nan"), ValueError),
        ("weight", float("inf"), ValueError),
    ],
)
def test_a_bucket_is_checked(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"`{name}` must be .*, but got {value}"):
        Bucket(**{"num_frames": 1, "height": 8, "width": 8, name: value})


def test_the_main_size_is_one_of_them() -> None:
    assert CONFIG.sizes == BUCKETS
    assert ClipConfig().sizes == (ClipConfig().main,) == (Bucket(17, 256, 256),)
    message = r"`buckets` must be sizes with 17x256x256 among them, but got 5x32x40, .*Set num_frames, height and width"
    with pytest.raises(ValueError, match=message):
        ClipConfig(buckets=BUCKETS)


def test_buckets_are_read_from_yaml() -> None:
    parser = ArgumentParser()
    parser.add_argument("--clips", type=ClipConfig)
    parser.add_argument("--config", action="config")
    text = """
    clips: {num_frames: 5, height: 32, width: 40, image_ratio: 0.25, num_workers: 0, buckets: [
      {num_frames: 5, height: 32, width: 40, weight: 3},
      {num_frames: 3, height: 48, width: 32},
      {num_frames: 9, height: 16, width: 16}]}
    """
    parsed = parser.instantiate(parser.parse_args([f"--config={text}"])).clips
    assert parsed == replace(CONFIG, image_ratio=0.25)
    assert asdict(parsed)["buckets"][0] == {"num_frames": 5, "height": 32, "width": 40, "weight": 3.0}


def test_a_model_is_asked_about_every_size() -> None:
    model = CausalVAE(
        CausalVAEConfig(
            time_compression=4,
            spatial_compression=4,
            latent_channels=4,
            patch_size=2,
            base_channels=8,
            channel_multipliers=(1, 1, 2),
            blocks_per_level=1,
        )
    )
    fine = [Bucket(17, 32, 32), Bucket(1, 64, 32)]
    check_buckets(fine, model, images=True)
    with pytest.raises(ValueError, match=r"a clip of 16x32x32\. .*17.*larger size that it accepts is 17x32x32\."):
        check_buckets([*fine, Bucket(16, 32, 32)], model, images=False)
    with pytest.raises(ValueError, match=r"a clip of 17x30x32\. .*accepts is 17x32x32"):
        check_buckets([*fine, Bucket(17, 30, 32)], model, images=False)


class NoStills:
    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        if num_frames < 4:
            raise ValueError(f"{num_frames} frames are not 4k.")

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        return max(4, num_frames), height, width


def test_a_model_is_asked_about_images() -> None:
    check_buckets([Bucket(8, 32, 32)], NoStills(), images=False)
    with pytest.raises(ValueError, match=r"but got an image of 1x32x32\. 1 frames are not 4k\. .*accepts is 4x32x32"):
        check_buckets([Bucket(8, 32, 32)], NoStills(), images=True)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    crop=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    jitter=st.floats(1, 2),
)
def test_the_crop_is_covered(size: tuple[int, int], crop: tuple[int, int], jitter: float) -> None:
    info = type("Info", (), {"height": size[0], "width": size[1]})()
    height, width = Bucket(1, *crop).covered_by(info, jitter)
    assert height >= crop[0]
    assert width >= crop[1]
    # One side fits exactly, up to rounding and the zoom: nothing is decoded larger than needed.
    assert height <= crop[0] * jitter + 1 or width <= crop[1] * jitter + 1
