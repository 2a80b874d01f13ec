"""Settings of tiny runs: 5 frames of 32 x 32 pixels of a real clip."""

import runpy
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from telecine import Ramp
from telecine.data import index_video, read_clip, sample_videos
from telecine.settings import (
    CausalVAEConfig,
    ClipConfig,
    DiscriminatorConfig,
    GANConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PenaltyConfig,
    PerceptualConfig,
    TrainConfig,
)
from telecine.settings.errors import validate
from telecine.video.write import write_video

leave_pictures_out = runpy.run_path(str(Path(__file__).with_name("no_pictures.py")))[
    "leave_pictures_out"
]

# Every term, and every option with a state between steps. The weights change in various ways.
EVERY_TERM = validate(
    ObjectiveConfig,
    dict(
        disc_start=1,
        gan={
            "disc_train_start": 0,
            "loss": "relativistic",
            "augment": ("color", "translation", "cutout"),
            "feature_matching_loss_weight": 0.2,
            "lecam_loss_weight": Ramp(0.1, steps=2, initial=0.05),
        },
        reconstruction={"loss": "l1", "learn_logvar": True},
        perceptual_weight=Ramp(1.0, steps=3, initial=0.5),
        perceptual={"net": "alex", "num_frames": 2, "chunk_size": 1},
        terms={
            "gram": Ramp(1e-4, start=1),
            "wavelet": {"weight": 0.5, "params": {"levels": 2}},
            "temporal": Ramp(0.0, start=3, initial=0.5),
        },
        adversarial_loss_weight=Ramp(0.5, steps=2, initial=0.1),
        multiscale_adversarial_loss_weight=0.1,
        adaptive_weight={"reference": "recon_and_perceptual", "at": "reconstruction"},
        grad_penalty_loss_weight=Ramp(10.0, steps=4, initial=1.0),
        penalty={"kind": "r1_and_r2", "every": 2},
        quantizer_aux_loss_weight=Ramp(1e-4, steps=4, initial=1e-6),
    ),
)
EVERY_DISCRIMINATOR = DiscriminatorConfig(
    video="first_frame", image="patch", num_scales=1, dim=2, norm="spectral"
)


@pytest.fixture(scope="session", autouse=True)
def recorded_once():
    """Let all runs share what takes as long as an update: the packages and revision, and which settings need quotes.

    The end of a run collects garbage once, after Accelerate has freed what it holds, not a second time before.
    """
    from telecine.runs import saved_settings
    from telecine.training import records

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "environment", cache(records.environment))
        patch.setattr(saved_settings, "parse_yaml", cache(saved_settings.parse_yaml))
        patch.setattr("accelerate.utils.memory.gc", SimpleNamespace(collect=lambda: 0))
        yield


@pytest.fixture(scope="module", autouse=True)
def runs_without_shape_checks(shape_checks_off):
    """Run as for users. `tests/objective`, `tests/losses` and `tests/discriminators` check shape types."""
    with shape_checks_off():
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: sums have one order, so that runs can be compared bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def with_pictures(monkeypatch):
    """Make the runs of a test draw and encode pictures. Previews, whose encoding takes the most time, are short."""
    monkeypatch.setattr("telecine.report.clips.MIN_SECONDS", 0.1)


@pytest.fixture(autouse=True)
def without_pictures(request, monkeypatch):
    """Skip pictures, which take most of the time of a tiny run, except in tests that use `with_pictures`."""
    if "with_pictures" not in request.fixturenames:
        leave_pictures_out(monkeypatch.setattr)


@pytest.fixture
def few_clips(monkeypatch):
    """Fit linear baselines to a few clips."""
    monkeypatch.setattr("telecine.training.baseline.NUM_CLIPS", 12)


@pytest.fixture(scope="session")
def small_video(tmp_path_factory):
    """Return a real video of 60 frames at 64 x 48 pixels, which takes a small part of the time to decode."""
    path = tmp_path_factory.mktemp("video") / "face.mp4"
    frames = read_clip(index_video(sample_videos()[0]), 0, 60, size=(48, 64))
    write_video(path, frames, fps=25)
    return path


@pytest.fixture(scope="session")
def tiny_config(small_video):
    """Return a function that creates the settings of a tiny run in a folder."""

    def make(folder):
        return TrainConfig(
            data=str(small_video),
            output_dir=str(folder / "run"),
            steps=6,
            trackers=(),
            batch_size=2,
            device="cpu",
            log_every=2,
            val_every=3,
            val_clips=2,
            save_every=3,
            latent_clips=2,
            clips=ClipConfig(num_frames=5, height=32, width=32, num_workers=0),
            linear_baseline=False,
            linear_start=False,
            causal_vae=CausalVAEConfig(
                time_compression=4,
                spatial_compression=4,
                latent_channels=4,
                patch_size=4,  # one level: most of the time of a tiny run is that of operators, not of pixels
                channel_multipliers=(1,),
                base_channels=8,
                blocks_per_level=1,
            ),
            objective=ObjectiveConfig(
                disc_start=2,
                adversarial_loss_weight=0.5,
                grad_penalty_loss_weight=10.0,
                quantizer_aux_loss_weight=1e-6,
                gan=GANConfig(disc_train_start=1),
                penalty=PenaltyConfig(every=2),
                perceptual=PerceptualConfig(net="alex"),
            ),
            discriminator=DiscriminatorConfig(dim=2, video="patch"),
            optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2, ema_decay=0.9),
        )

    return make


@pytest.fixture
def tiny(tmp_path, cached_weights, tiny_config):
    """Return a function that creates the settings of a tiny run, with changes."""

    def make(**changes):
        return replace(tiny_config(tmp_path), **changes)

    return make


@pytest.fixture
def everything():
    """Return settings that turn every term on."""
    return {"objective": EVERY_TERM, "discriminator": EVERY_DISCRIMINATOR}
