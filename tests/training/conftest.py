"""Runs small enough for a test: 5 frames of 32 x 32 pixels of a real clip."""

from dataclasses import replace

import pytest
import torch

from telecine.autoencoders import CausalVAEConfig
from telecine.data import ClipConfig, sample_videos
from telecine.training import DiscriminatorConfig, ObjectiveConfig, OptimizerConfig, TrainConfig


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, so that runs can be compared bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path, cached_weights):
    """Return a function that makes the settings of a tiny run, with changes."""

    def make(**changes):
        config = TrainConfig(
            data=str(sample_videos()[0]),
            run=str(tmp_path / "run"),
            steps=6,
            batch_size=2,
            device="cpu",
            log_every=2,
            val_every=3,
            val_clips=2,
            save_every=3,
            clips=ClipConfig(num_frames=5, height=32, width=32, num_workers=0),
            model=CausalVAEConfig(
                time_compression=4,
                spatial_compression=4,
                latent_channels=4,
                patch_size=2,
                base_channels=8,
                channel_multipliers=(1, 1, 2),
                blocks_per_level=1,
            ),
            objective=ObjectiveConfig(disc_start=2, disc_train_start=1, grad_penalty_every=2),
            discriminator=DiscriminatorConfig(dim=2),
            optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2, ema_decay=0.9),
        )
        return replace(config, **changes)

    return make
