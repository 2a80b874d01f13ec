"""Gaussian and discrete bottlenecks of `CausalVAE` on held-out clips of the demo: a Markdown table.

    python benchmarks/bottlenecks.py --runs runs/bottlenecks

Every run is the demo (`telecine train` without arguments) without a GAN and with fewer updates. Runs differ only in the
bottleneck and their seed; "linear start" is the autoencoder before its first update. The latent of a Gaussian
bottleneck has no finite number of bits. To compare it with codes, "rounded" is the trained model with each channel of
the posterior's mean rounded to as many evenly spaced values as the codes have; their distance is the one with the
smallest squared error on training clips. Neither the encoder nor the decoder is trained for that. Usage and entropy are
those of the codes of all held-out clips, means over the codes of a position. Finished runs are stored in `--runs`, and
not repeated.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from latents import linear_start, trained, without_gan
from measure import machine, spread, table
from torch import Tensor, nn

from telecine.autoencoders import CausalVAE
from telecine.autoencoders.bottleneck import Bottleneck
from telecine.perceptual import LPIPS
from telecine.settings import CausalVAEConfig, TrainConfig
from telecine.training.build import Clips, build_autoencoder, build_clips
from telecine.training.validation import validate
from training import SMOKE, demo_config

GAUSSIAN = "gaussian"
BOTTLENECKS: dict[str, dict[str, Any]] = {
    GAUSSIAN: {},
    "fsq": {"bottleneck": "fsq", "fsq_levels": (8, 5, 5, 5)},
    "lfq": {"bottleneck": "lfq", "lfq_bits": 8},
}
# The bottlenecks whose number of values the Gaussian latent is rounded to.
ROUNDED = ("fsq", "lfq")
SMALL: dict[str, dict[str, Any]] = {"fsq": {"fsq_levels": (5, 4)}, "lfq": {"lfq_bits": 2}}
# Weight of the auxiliary losses, which FSQ has none of.
AUX_WEIGHTS = {"fsq": 0.0, "lfq": 1.0}
COLUMNS = {
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "lpips_alex": ("LPIPS-Alex", 3),
    "codes_used": ("codes used", 3),
    "code_entropy": ("entropy of a code, bits", 2),
}
# Distances of the rounded values that are tried, in standard deviations of the channel.
DISTANCES = torch.linspace(0.1, 2, 96).tolist()


class Rounding(Bottleneck):
    """Rounds each channel of a latent to evenly spaced values around its mean.

    Args:
        config: Of an autoencoder whose codes have as many values.
        latents: What the distance of the values is chosen on, `(B, C, t, h, w)`.
    """

    def __init__(self, config: CausalVAEConfig, latents: Tensor) -> None:
        super().__init__(nn.Identity(), config)
        self.levels = levels_of(config)
        levels = torch.tensor(self.levels * (config.latent_channels // config.code_channels))
        self.num_values = levels.view(-1, 1, 1, 1)
        rows = latents.transpose(0, 1).flatten(1)
        self.mean = rows.mean(1).view(-1, 1, 1, 1)
        std = rows.std(1).view(-1, 1, 1, 1)
        errors = torch.stack([self._error(latents, distance * std) for distance in DISTANCES])
        self.distance = torch.tensor(DISTANCES)[errors.argmin(0)].view(-1, 1, 1, 1) * std

    def _error(self, latents: Tensor, distance: Tensor) -> Tensor:
        """Return the squared error of each channel."""
        self.distance = distance
        return (self.quantize(latents) - latents).square().mean((0, 2, 3, 4))

    def _numbers(self, latent: Tensor) -> Tensor:
        """Return the number of each channel's value, from 0."""
        number = ((latent - self.mean) / self.distance + self.num_values / 2).floor()
        return number.clamp(min=torch.zeros(()), max=self.num_values - 1)

    def quantize(self, latent: Tensor) -> Tensor:
        """Return the rounded latent."""
        return self.mean + self.distance * (self._numbers(latent) - (self.num_values - 1) / 2)

    def indices(self, latent: Tensor) -> Tensor:
        """Return the number of each code `(B, codes, t, h, w)`."""
        numbers = self._codes(self._numbers(latent))
        places = torch.tensor([math.prod(self.levels[:place]) for place in range(len(self.levels))])
        return (numbers * places).sum(-1).long()


def levels_of(config: CausalVAEConfig) -> list[int]:
    """Return the number of values of each channel of a code."""
    return list(config.fsq_levels) if config.bottleneck == "fsq" else [2] * config.lfq_bits


def bits_of(config: CausalVAEConfig) -> float:
    """Return the bits of a position's codes, all equally long."""
    return config.latent_channels // config.code_channels * math.log2(config.codebook_size)


def settings_of(name: str, seed: int, steps: int, folder: Path, smoke: bool) -> TrainConfig:
    """Return the settings of a run."""
    changes: Mapping[str, Any] = SMOKE if smoke else {}
    small = SMALL.get(name, {}) if smoke else {}
    causal_vae = {**changes.get("causal_vae", {}), **BOTTLENECKS[name], **small}
    config = demo_config({**changes, "causal_vae": causal_vae})
    aux_weight = AUX_WEIGHTS.get(config.causal_vae.bottleneck, config.objective.quantizer_aux_loss_weight)
    config = replace(config, objective=replace(config.objective, quantizer_aux_loss_weight=aux_weight))
    return without_gan(config, seed, steps, folder / f"{name}-{seed}")


def measure(model: CausalVAE, clips: Clips, lpips: nn.Module) -> dict[str, float]:
    """Return the measures of a model on held-out clips."""
    found = validate(model, clips.val, {"lpips_alex": lpips})
    return found.metrics | found.latent


@torch.no_grad()
def rounded(model: CausalVAE, codes: CausalVAEConfig, clips: Clips, num_clips: int) -> CausalVAE:
    """Return a model with its latent rounded to as many values as codes have."""
    videos = (clips.train[index]["video"][None] for index in range(num_clips))
    latents = torch.cat([model.eval().encode(video).mode() for video in videos])
    model.bottleneck = Rounding(codes, latents)
    return model


def rows_of(name: str, bits: str, runs: Sequence[Mapping[str, float]], start: Mapping[str, float]) -> list[list[str]]:
    """Return the rows of a bottleneck: its linear start, and its runs."""
    rows = []
    for title, found in ((f"{name}, linear start", [start]), (name, runs)):
        cells = [
            spread([run[key] for run in found], digits) if key in found[0] else ""
            for key, (_, digits) in COLUMNS.items()
        ]
        rows.append([title, bits, *cells])
    return rows


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/bottlenecks"), help="folder of the runs")
    parser.add_argument("--steps", type=int, default=600, help="updates of a run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and two updates, to test the command")
    return parser.parse_args()


def main() -> None:
    """Train, measure and print."""
    arguments = parse_arguments()
    steps, seeds = 2 if arguments.smoke else arguments.steps, arguments.seeds
    lpips = LPIPS("alex")
    configs = {
        name: [settings_of(name, seed, steps, arguments.runs, arguments.smoke) for seed in seeds]
        for name in BOTTLENECKS
    }
    gaussian = configs[GAUSSIAN][0]
    clips = build_clips(gaussian, build_autoencoder(gaussian))
    rows = []
    for name, (config, *_) in configs.items():
        start = measure(linear_start(config, clips), clips, lpips)
        runs = [measure(trained(config), clips, lpips) for config in configs[name]]
        bits = "no limit" if name == GAUSSIAN else f"{bits_of(config.causal_vae):.1f}"
        rows += rows_of(name, bits, runs, start)
    for name in ROUNDED:
        codes = configs[name][0].causal_vae
        models = [linear_start(gaussian, clips), *map(trained, configs[GAUSSIAN])]
        start, *runs = (measure(rounded(model, codes, clips, gaussian.latent_clips), clips, lpips) for model in models)
        rows += rows_of(f"{GAUSSIAN}, rounded as {name}", f"{bits_of(codes):.1f}", runs, start)
    print(f"{steps} updates, seeds {seeds}; {machine()}\n")
    print(table(["bottleneck", "bits of a position", *(title for title, _ in COLUMNS.values())], rows))


if __name__ == "__main__":
    main()
