"""Buckets are drawn by their weights, and a model is checked for each."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.autoencoders import CausalVAE
from telecine.data.clip import check_buckets
from telecine.data.dataset import _draw_bucket
from telecine.settings import Bucket, CausalVAEConfig

BUCKETS = (Bucket(5, 32, 40, weight=3), Bucket(3, 48, 32), Bucket(9, 16, 16))


def test_draws_follow_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = Counter(_draw_bucket(BUCKETS, generator) for _ in range(2000))
    assert set(counts) == set(BUCKETS)
    assert 1100 < counts[BUCKETS[0]] < 1300
    assert 330 < counts[BUCKETS[1]] < 470


@settings(deadline=None)
@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5), seed=st.integers(0, 2**40))
def test_a_draw_is_one_of_the_buckets(weights: list[float], seed: int) -> None:
    buckets = [Bucket(1, 8, 8, weight) for weight in weights]
    assert _draw_bucket(buckets, torch.Generator().manual_seed(seed)) in buckets


def test_a_draw_at_the_end_of_the_range_is_the_last_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product of a draw below 1 and the total weight can round up to the total weight."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.tensor(1.0, dtype=torch.float64))
    assert _draw_bucket(BUCKETS, torch.Generator()) == BUCKETS[-1]


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
