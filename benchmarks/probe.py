"""Probe the latents of a model, of the linear autoencoder of the same size, and noise in their place.

    python benchmarks/videos.py runs/videos
    telecine train --config demo --steps 600 --objective.adversarial_loss_weight 0 --discriminator.video none
    python benchmarks/probe.py runs/demo runs/videos -o runs/probe

Each transformer trains on the same clips of the videos that the demo is trained on, with as many updates, and is
measured on those of five videos that neither has seen. It writes the page of `telecine latents --probe`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from telecine.autoencoders import CausalVAE, DeterministicPosterior
from telecine.base.shapes import Video
from telecine.base.terminal import PlainConsole
from telecine.data import ClipDataset
from telecine.evaluation.latent_page import write_latents
from telecine.evaluation.latents import measure_latent_spaces
from telecine.evaluation.source import model_source
from telecine.settings import LatentsConfig, ProbeConfig
from telecine.training.clips import find_spans
from telecine.training.probe import add_probes

NUM_FITTED = 300


class Linear(CausalVAE):
    """The best linear autoencoder: principal components of patches, whitened."""


class Noise(CausalVAE):
    """Has noise in the place of its latent, which depends on the video alone."""

    def encode(self, video: Video) -> DeterministicPosterior:
        """Return noise of the size of the latent."""
        mean = super().encode(video).mode()
        seeds = video.double().flatten(1).sum(1).mul(1e6).long().tolist()
        noise = [torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(abs(seed))) for seed in seeds]
        return DeterministicPosterior(torch.stack(noise).to(mean))

    def decode(self, latent: Tensor, noise: Video | None = None) -> Video:
        """Return grey."""
        return torch.zeros_like(super().decode(latent))


def controls(model: CausalVAE, data: str, config: LatentsConfig) -> list[CausalVAE]:
    """Return the linear autoencoder of a model's size, fitted to clips of `data`, and the noise."""
    clips = model_source(model, config, torch.device("cpu")).clips
    videos = ClipDataset(find_spans(data, data, clips).train, clips)
    torch.manual_seed(0)
    linear, noise = Linear(model.config), Noise(model.config)
    fitted = model.linear_autoencoder(clips.num_frames, clips.height, clips.width)
    linear.start_from(fitted.fit(videos[number]["video"][None] for number in range(NUM_FITTED)))
    return [linear, noise]


def main() -> None:
    """Train, measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of the demo's run")
    parser.add_argument("videos", type=Path, help="folder of benchmarks/videos.py")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--features", help="network of the Frechet distances")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data, unseen = str(options.videos / "seen"), str(options.videos / "unseen")
    probe = ProbeConfig(
        val_data=unseen, steps=options.steps, num_clips=256, seed=options.seed, features=options.features
    )
    config = LatentsConfig(data=data, probe=probe, num_frames=9, height=64, width=64, max_clips=30, device="cpu")
    model = model_source(options.run, config, torch.device("cpu")).model
    models = [options.run, *controls(model, data, config)]
    console = PlainConsole()
    report = add_probes(measure_latent_spaces(models, config), models, config, options.output, console)
    report.print_to(console)
    console.print(f"written to {write_latents(report, options.output)}")


if __name__ == "__main__":
    main()
