"""Clip settings and buckets."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from telecine.autoencoders import CausalVAE
from telecine.data import VideoInfo
from telecine.data.buckets import check_buckets, draw_bucket
from telecine.settings import Bucket, CausalVAEConfig, ClipConfig

BUCKETS = (Bucket(5, 32, 40, weight=3), Bucket(3, 48, 32), Bucket(9, 16, 16))


def test_draws_follow_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = Counter(draw_bucket(BUCKETS, generator) for _ in range(2000))
    assert set(counts) == set(BUCKETS)
    assert 1100 < counts[BUCKETS[0]] < 1300
    assert 330 < counts[BUCKETS[1]] < 470


@settings(deadline=None)
@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5), seed=st.integers(0, 2**40))
def test_a_draw_is_one_of_the_buckets(weights: list[float], seed: int) -> None:
    buckets = [Bucket(1, 8, 8, weight) for weight in weights]
    assert draw_bucket(buckets, torch.Generator().manual_seed(seed)) in buckets


def test_a_draw_at_the_end_of_the_range_is_the_last_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product of a draw below 1 and the total weight can round up to the total weight."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.tensor(1.0, dtype=torch.float64))
    assert draw_bucket(BUCKETS, torch.Generator()) == BUCKETS[-1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_frames", 0),
        ("height", 2.5),
        ("width", -1),
        ("weight", 0.0),
        ("weight", float("nan")),
        ("weight", float("inf")),
    ],
)
def test_invalid_bucket(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be .*, but got {value}"):
        Bucket(**{"num_frames": 1, "height": 8, "width": 8, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_frames", 0),
        ("height", 0),
        ("width", -4),
        ("stride", 0),
        ("num_workers", -1),
        ("num_clips", 0),
        ("max_pixels", 0),
        ("max_pixels", 178_956_971),
        ("timeout", 0.0),
        ("scale_jitter", 0.9),
        ("scale_jitter", 8.1),
        ("scale_jitter", float("nan")),
        ("val_fraction", 0.0),
        ("val_fraction", 0.6),
        ("image_ratio", -0.1),
        ("image_ratio", 1.5),
    ],
)
def test_invalid_setting(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be .*, but got {value}"):
        ClipConfig(**{name: value})


def test_limits_are_valid() -> None:
    ClipConfig(num_workers=0, scale_jitter=8.0, val_fraction=0.5, image_ratio=1.0)
    Bucket(1, 1, 1)


def test_the_buckets_must_include_the_validation_size() -> None:
    assert ClipConfig(num_frames=5, height=32, width=40, buckets=BUCKETS).train_buckets == BUCKETS
    assert ClipConfig().train_buckets == (ClipConfig().val_bucket,) == (Bucket(17, 256, 256),)
    message = r"`buckets` must be clip sizes that include 17x256x256, but got 5x32x40, .*Set num_frames, height and"
    with pytest.raises(ValueError, match=message):
        ClipConfig(buckets=BUCKETS)


def test_images_zoom_and_cache_are_off_by_default() -> None:
    config = ClipConfig()
    assert (config.image_ratio, config.stride, config.random_flip, config.scale_jitter) == (0, 1, True, 1)
    assert not config.random_orientation
    with pytest.raises(ValueError, match=r"`random_orientation` must be false for clips that are not square"):
        ClipConfig(height=64, width=48, random_orientation=True)
    assert not config.cache


def test_clip_span() -> None:
    config = ClipConfig(num_frames=5, stride=3)
    assert config.clip_span == 13
    assert config.span_of(Bucket(1, 8, 8)) == 1


def test_buckets_are_parsed_from_yaml() -> None:
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
    expected = ClipConfig(num_frames=5, height=32, width=40, buckets=BUCKETS, image_ratio=0.25, num_workers=0)
    assert parsed == expected
    assert asdict(parsed)["buckets"][0] == {"num_frames": 5, "height": 32, "width": 40, "weight": 3.0}


def test_a_model_is_checked_for_every_bucket() -> None:
    model = CausalVAE(
        CausalVAEConfig(
            time_compression=4,
            spatial_compression=4,
            latent_channels=4,
            patch_size=2,
            base_channels=8,
            blocks_per_level=1,
        )
    )
    valid = [Bucket(17, 32, 32), Bucket(1, 64, 32)]
    check_buckets(valid, model, images=True)
    with pytest.raises(ValueError, match=r"a clip of 16x32x32\. .*17.*next larger accepted size is 17x32x32\."):
        check_buckets([*valid, Bucket(16, 32, 32)], model, images=False)
    with pytest.raises(ValueError, match=r"a clip of 17x30x32\. .*accepted size is 17x32x32"):
        check_buckets([*valid, Bucket(17, 30, 32)], model, images=False)


class VideoOnly:
    """Accepts clips of 4 frames or more."""

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        if num_frames < 4:
            raise ValueError(f"{num_frames} frames are too few.")

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        return max(4, num_frames), height, width


def test_a_model_is_checked_for_images() -> None:
    check_buckets([Bucket(8, 32, 32)], VideoOnly(), images=False)
    message = r"but got an image of 1x32x32\. 1 frames are too few\. .*accepted size is 4x32x32"
    with pytest.raises(ValueError, match=message):
        check_buckets([Bucket(8, 32, 32)], VideoOnly(), images=True)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    crop=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    zoom=st.floats(1, 2),
)
def test_the_decode_size_covers_the_crop(size: tuple[int, int], crop: tuple[int, int], zoom: float) -> None:
    info: VideoInfo = type("Info", (), {"height": size[0], "width": size[1]})()
    height, width = Bucket(1, *crop).decode_size(info, zoom)
    assert height >= crop[0]
    assert width >= crop[1]
    # One side fits exactly, up to rounding and the zoom, so no frame is decoded larger than needed.
    assert height <= crop[0] * zoom + 1 or width <= crop[1] * zoom + 1
    # The aspect ratio stays, up to rounding.
    assert abs(height * size[1] - width * size[0]) <= max(size) + 1 or height == crop[0] or width == crop[1]


def test_whether_pixels_are_varied() -> None:
    assert not ClipConfig(random_flip=False).augments
    for change in ({"random_flip": True}, {"random_orientation": True}, {"scale_jitter": 1.5}):
        assert ClipConfig(**{"random_flip": False, **change}).augments
