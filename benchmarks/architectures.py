"""Autoencoders with about the same number of weights, trained from scratch for the same time with the same objective.

    python benchmarks/architectures.py                                     # every model, 5 minutes each
    python benchmarks/architectures.py --models wan wan22 --lr 3e-3 --minutes 1 -o figures/

Trains telecine's `CausalVAE` and the classes of CogVideoX, Wan 2.1 and Wan 2.2 in diffusers, small and with random
weights, on the clips of the demo with the demo's objective without a GAN. The learning rate falls as half a cosine over
the time, in which validations do not count. Prints the metrics of the averaged weights on the held-out clips beside
those of the linear baseline with the same latent, and writes `architectures.json` and a plot of PSNR and LPIPS.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan
from matplotlib.figure import Figure
from measure import machine, table
from torch import nn

from telecine.autoencoders import CausalVAE, VideoAutoencoder, as_video_autoencoder
from telecine.objective import VideoAutoencoderLoss
from telecine.perceptual import LPIPS
from telecine.settings import CausalVAEConfig, TrainConfig
from telecine.training import read_config
from telecine.training.baseline import NUM_CLIPS, fit_linear, measure_linear
from telecine.training.build import Clips, build_clips
from telecine.training.optim import MovingAverage
from telecine.training.validation import validate

METRICS = {"psnr": "PSNR", "ssim": "SSIM", "lpips_alex": "LPIPS-Alex", "lpips_vgg": "LPIPS-VGG"}
NUM_VALIDATIONS = 6
WARMUP_STEPS = 20


def telecine() -> CausalVAE:
    """Return the demo's autoencoder."""
    return CausalVAE(read_config("tiny_4x8x8").causal_vae)


def telecine_16() -> CausalVAE:
    """Return an autoencoder with the latent of Wan 2.2."""
    return CausalVAE(CausalVAEConfig(4, 16, 48, base_channels=64, channel_multipliers=(1, 1, 2), blocks_per_level=1))


def cogvideox() -> nn.Module:
    """Return a small model of CogVideoX's class."""
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(16, 32, 32, 48),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=16,
    )


def wan() -> nn.Module:
    """Return a small model of Wan 2.1's class."""
    return AutoencoderKLWan(base_dim=12, z_dim=16, num_res_blocks=1)


def wan22() -> nn.Module:
    """Return a small model of Wan 2.2's class."""
    sizes = {"in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}
    return AutoencoderKLWan(base_dim=12, z_dim=48, num_res_blocks=1, is_residual=True, **sizes)


# For each name: the title, how to build it, and whether it starts from the linear baseline.
MODELS: dict[str, tuple[str, Callable[[], nn.Module], bool]] = {
    "telecine": ("telecine, 4x8x8x16", telecine, True),
    "telecine_random": ("telecine, random start", telecine, False),
    "cogvideox": ("CogVideoX, 4x8x8x16", cogvideox, False),
    "wan": ("Wan 2.1, 4x8x8x16", wan, False),
    "telecine_16": ("telecine, 4x16x16x48", telecine_16, True),
    "wan22": ("Wan 2.2, 4x16x16x48", wan22, False),
}


@dataclass(frozen=True)
class Point:
    """A validation."""

    seconds: float
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Result:
    """A trained model."""

    title: str
    parameters: float
    """In millions."""
    linear: dict[str, float]
    """Metrics of the linear baseline."""
    points: list[Point]

    def row(self) -> list[str]:
        """Return a row of the table: the last metrics, and those of the linear baseline in brackets."""
        last = self.points[-1]
        values = [f"{last.metrics[name]:.3f} ({self.linear[name]:.3f})" for name in METRICS]
        return [self.title, f"{self.parameters:.2f} M", str(last.step), *values]


def objective_of(config: TrainConfig) -> VideoAutoencoderLoss:
    """Return the objective of `config` without discriminators."""
    arguments = replace(config.objective, adversarial_loss_weight=0.0).arguments()
    return VideoAutoencoderLoss(**arguments, discr_kwargs=None, discr_3d_kwargs=None)


def learning_rate(config: TrainConfig, lr: float, step: int, fraction: float) -> float:
    """Return the rate at a fraction of the time: a short warm-up, then half a cosine to a twentieth."""
    return lr * min(1.0, (step + 1) / WARMUP_STEPS) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * fraction)))


def train(
    model: VideoAutoencoder,
    clips: Clips,
    config: TrainConfig,
    perceptual: dict[str, nn.Module],
    lr: float,
    seconds: float,
) -> list[Point]:
    """Train for a time and return the validations, the first of which is before training."""
    loss_fn = objective_of(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=config.optimizer.betas, weight_decay=0.0)
    average = MovingAverage(model, config.optimizer.ema_decay)

    def validated(spent: float, step: int) -> Point:
        with average.applied():
            return Point(spent, step, validate(model, clips.val, perceptual).metrics)

    points, spent, step = [validated(0.0, 0)], 0.0, 0
    while spent < seconds:
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, lr, step, spent / seconds)
        first = step * config.batch_size
        video = torch.stack([clips.train[first + i]["video"] for i in range(config.batch_size)])
        output = model(video)
        loss, _ = loss_fn(video, output.video, 0, step, aux_losses=output.aux)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.grad_clip)
        optimizer.step()
        average.update()
        step += 1
        spent += time.perf_counter() - start
        if spent >= len(points) * seconds / NUM_VALIDATIONS:
            points.append(validated(spent, step))
    return points


def run(
    name: str, clips: Clips, config: TrainConfig, perceptual: dict[str, nn.Module], lr: float, seconds: float
) -> Result:
    """Build a model, fit its linear baseline, and train it."""
    title, build, from_linear = MODELS[name]
    torch.manual_seed(config.seed)
    model = as_video_autoencoder(build())
    linear = fit_linear(model, clips, NUM_CLIPS)
    assert linear is not None
    if from_linear:
        assert isinstance(model, CausalVAE)
        model.start_from(linear)
    baseline = measure_linear(linear, clips.val, perceptual, torch.device("cpu"))
    points = train(model, clips, config, perceptual, lr, seconds)
    return Result(title, sum(weight.numel() for weight in model.parameters()) / 1e6, baseline, points)


def draw(results: Sequence[Result], path: Path) -> None:
    """Plot PSNR and LPIPS over time, with the linear baselines as dotted lines."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("psnr", "lpips_alex"), strict=True):
        for index, result in enumerate(results):
            xs, ys = zip(*((point.seconds, point.metrics[metric]) for point in result.points), strict=True)
            axes.plot(xs, ys, marker="o", markersize=3, color=f"C{index}", label=result.title)
            axes.axhline(result.linear[metric], color=f"C{index}", linestyle=":", linewidth=1)
        axes.set(xlabel="seconds of training", title=METRICS[metric])
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.axes[1].set_yscale("log")
    figure.savefig(path)


def main() -> None:
    """Train the models and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--minutes", type=float, default=5.0, help="Time to train each model, without validations.")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--config", default="demo", help="A recipe or a YAML file: clips, batch size and objective.")
    parser.add_argument("-o", "--output", type=Path, default=Path("."), help="Folder of the JSON file and the plot.")
    arguments = parser.parse_args()
    config = read_config(arguments.config)
    perceptual: dict[str, nn.Module] = {f"lpips_{net}": LPIPS(net) for net in ("alex", "vgg")}
    clips = build_clips(config, telecine())
    results = []
    for name in arguments.models:
        results.append(run(name, clips, config, perceptual, arguments.lr, 60 * arguments.minutes))
        print("  ".join(results[-1].row()), flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(result) for result in results], indent=1)
    (arguments.output / "architectures.json").write_text(text + "\n", encoding="utf-8")
    draw(results, arguments.output / "architectures.png")
    print(f"\n{machine()}; {arguments.minutes:g} minutes each, learning rate {arguments.lr:g}\n")
    header = ["model (linear baseline in brackets)", "weights", "updates", *METRICS.values()]
    print(table(header, [result.row() for result in results]))


if __name__ == "__main__":
    main()
