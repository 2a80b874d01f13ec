"""Effect of each regulariser of the latent on held-out clips of the demo: a Markdown table.

    python benchmarks/latents.py --runs runs/latents
    python benchmarks/latents.py --runs runs/latents --terms equivariance --steps 600 --seeds 0 1 2

Every run is the demo (`telecine train` without arguments) without a GAN and with fewer updates. Runs differ only in
one term and their seed. "Equivariance error" is the mean squared error of decoded transformed latents against
transformed videos, a mean over a scale of 1/2, two flips and three quarter turns; "alignment" the cosine of AlexNet's
features with the best linear map of the latent. Differences are to the run of the same seed without a term. Finished
runs are stored in `--runs`, and not repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from measure import machine, table
from rich.console import Console
from torch import Tensor

from telecine.autoencoders import CausalVAE
from telecine.data import ClipConfig
from telecine.evaluation.latents import describe, measure_space
from telecine.evaluation.source import ModelSource
from telecine.files import read_json, write_json
from telecine.perceptual import LPIPS
from telecine.runs import find_checkpoint
from telecine.shapes import Video
from telecine.training import TrainConfig, train
from telecine.training.build import build_autoencoder, build_clips
from training import SMOKE, demo_config

PLAIN = "none"
# The weight of each term, by the name of the row.
TERMS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "equivariance": {"equivariance": 0.25},
    "scale_equivariance": {"scale_equivariance": 0.25},
    "local_correlation": {"local_correlation": 0.01},
    "latent_masking": {"latent_masking": 0.1},
    "latent_noise": {"latent_noise": 0.25},
    "alignment": {"alignment": {"weight": 0.01, "params": {"latent_channels": 16}}},
}
COLUMNS = {
    "PSNR, dB": 2,
    "equivariance error, MSE": 4,
    "high frequencies": 3,
    "effective rank": 2,
    "PSNR with noise 0.2, dB": 2,
    "correlation of neighbours": 3,
    "alignment, cosine": 3,
}
SIDE = 64  # of the frames that AlexNet sees
# Of the linear map to features: more than 1/100 of the latents' variance.
RIDGE = 1e-2


def settings_of(term: str, seed: int, steps: int, folder: Path, changes: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a run."""
    config = demo_config(changes)
    weights = TERMS[term]
    if term == "alignment":
        params = {"latent_channels": config.causal_vae.latent_channels}
        weights = {term: {**weights[term], "params": params}}
    objective = replace(config.objective, adversarial_loss_weight=0.0, terms=weights)
    return replace(
        config,
        objective=objective,
        seed=seed,
        steps=steps,
        val_every=steps,
        save_every=steps,
        output_dir=str(folder / f"{term}-{seed}"),
        trackers=(),
    )


def measured(config: TrainConfig) -> dict[str, float]:
    """Return the measures of a run on its held-out clips; it is trained if that has not been done."""
    file = Path(config.output_dir) / "latents.json"
    if not file.is_file():
        train(config, console=Console(quiet=True))
        write_json(file, measure(config))
    found: dict[str, float] = read_json(file)
    return found


def measure(config: TrainConfig) -> dict[str, float]:
    """Return the measures of the last checkpoint's averaged weights."""
    videos = [clip["video"][None] for clip in build_clips(config, build_autoencoder(config)).val]
    checkpoint = find_checkpoint(Path(config.output_dir))
    assert checkpoint is not None
    model = CausalVAE.from_pretrained(checkpoint / "ema").eval()
    space = measure_space(ModelSource(model, ClipConfig(), config.output_dir), videos, None)
    neighbours = space.autocorrelation["space"][:1]
    found = describe(space) | {
        "correlation of neighbours": neighbours[0] if neighbours else float("nan"),
        "alignment, cosine": alignment(model, videos),
    }
    return {name: found[name] for name in COLUMNS}


@torch.no_grad()
def alignment(model: CausalVAE, videos: Sequence[Video]) -> float:
    """Return the mean cosine of AlexNet's features of first frames with the best linear map of their latents."""
    network = LPIPS("alex")
    frames = torch.cat([video[:, :, 0] for video in videos])
    frames = torch.nn.functional.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    latents = torch.cat([model.encode(video).mode()[:, :, 0] for video in videos])
    features = torch.nn.functional.interpolate(network.features(frames)[-1], size=latents.shape[-2:], mode="bilinear")

    def rows(x: Tensor) -> Tensor:
        return x.transpose(0, 1).flatten(1).T.double()

    z, f = rows(latents), rows(features)
    z = (z - z.mean(0)) / z.std(0).clamp(min=1e-6)
    z = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], dim=1)
    weights = torch.linalg.solve(z.T @ z + RIDGE * len(z) * torch.eye(z.shape[1], dtype=z.dtype), z.T @ f)
    return torch.nn.functional.cosine_similarity(z @ weights, f).mean().item()


def cell(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Return mean and standard deviation."""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.{digits}f}{deviation}"


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/latents"), help="folder of the runs")
    parser.add_argument("--terms", nargs="+", choices=[name for name in TERMS if name != PLAIN], help="default: all")
    parser.add_argument("--steps", type=int, default=600, help="updates of a run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and two updates, to test the command")
    return parser.parse_args()


def main() -> None:
    """Train, measure and print."""
    arguments = parse_arguments()
    changes: Mapping[str, Any] = SMOKE if arguments.smoke else {}
    steps = 2 if arguments.smoke else arguments.steps
    names = [PLAIN, *(arguments.terms or [name for name in TERMS if name != PLAIN])]
    found = {
        (name, seed): measured(settings_of(name, seed, steps, arguments.runs, changes))
        for seed in arguments.seeds
        for name in names
    }
    rows = []
    for name in names:
        runs = [found[name, seed] for seed in arguments.seeds]
        rows.append([name, *(cell([run[column] for run in runs], digits) for column, digits in COLUMNS.items())])
    print(f"{steps} updates, seeds {arguments.seeds}; {machine()}\n")
    print(table(["term", *COLUMNS], rows))
    rows = []
    for name in names[1:]:
        pairs = [(found[name, seed], found[PLAIN, seed]) for seed in arguments.seeds]
        differences = {column: [run[column] - plain[column] for run, plain in pairs] for column in COLUMNS}
        rows.append([name, *(cell(differences[column], digits, "+") for column, digits in COLUMNS.items())])
    print("\n" + table([f"difference to {PLAIN}", *COLUMNS], rows))


if __name__ == "__main__":
    main()
