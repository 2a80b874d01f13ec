"""Make the model of the package out of a run, and measure it on videos that it was not trained on.

    python benchmarks/photographs.py runs/photographs && python benchmarks/videos.py runs/videos
    telecine train --config tiny_model --data runs/photographs
    python benchmarks/tiny_model.py runs/tiny_model --unseen runs/videos/unseen/* -o src/telecine/autoencoders/models

Writes the averaged weights in half precision, and a manifest with their digest. Prints metrics at several sizes beside
those of the linear autoencoder with the same latent, fitted to clips of the same training; draws the middle frames of
clips at each size: rows of inputs, of the linear baseline and of the model.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from demo import METRICS, clip_sets, draw, measure, reconstruct_with
from measure import machine, table
from rich.progress import track
from torch import nn

from telecine.autoencoders import CausalVAE, load_autoencoder
from telecine.autoencoders.load import load_model_or_run
from telecine.perceptual import LPIPS
from telecine.runs.checkpoints import _MANIFEST, _write_manifest
from telecine.settings import TrainConfig
from telecine.settings.parse import read_config
from telecine.training.baseline import _fit_linear
from telecine.training.clips import build_clips

NAME = "tiny"


def package(run: Path, folder: Path, step: int) -> CausalVAE:
    """Write the averaged weights of a run in half precision into `folder / NAME`, and load them."""
    model = load_model_or_run(run)
    assert isinstance(model, CausalVAE)
    model.half().save_pretrained(folder / NAME)
    (folder / NAME / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    (folder / _MANIFEST).unlink(missing_ok=True)  # of the former model, which is no file of this one
    _write_manifest(folder, step)
    packaged = load_autoencoder(folder / NAME).eval()
    assert isinstance(packaged, CausalVAE)
    return packaged


def at_size(config: TrainConfig, size: int, num_clips: int) -> TrainConfig:
    """Return the settings with clips of a size for validation."""
    return replace(config, val_clips=num_clips, clips=replace(config.clips, height=size, width=size))


def main() -> None:
    """Write the model, print the table and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--unseen", nargs="+", type=Path, required=True, help="videos to measure on")
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--clips", type=int, default=2, help="clips of each video")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder of the package's models")
    parser.add_argument("--pictures", type=Path, default=Path("runs"), help="folder for the pictures")
    arguments = parser.parse_args()
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    config = read_config(str(arguments.run / "config.yaml"))
    model = package(arguments.run, arguments.output, config.steps)
    linear = _fit_linear(model, build_clips(config, model))
    assert linear is not None
    models = {"linear baseline": linear, NAME: reconstruct_with(model)}
    perceptual: dict[str, nn.Module] = {f"lpips_{net}": LPIPS(net) for net in ("alex", "vgg")}
    rows: list[Sequence[str]] = []
    for size in arguments.sizes:
        sets = clip_sets(at_size(config, size, arguments.clips), [], arguments.unseen)
        del sets["held out"]
        clips = [clip for each in sets.values() for clip in each]
        for name, reconstruct in track(models.items(), f"{size} x {size}"):
            rows.append([f"{size} x {size}", name, *measure(reconstruct, clips, perceptual)])
        shown = [each[0] for each in sets.values()]
        draw(
            [lambda video: video, *models.values()],
            shown,
            arguments.pictures / f"{NAME}_{size}.png",
            scale=max(192 // size, 1),
        )
    num_weights = sum(weight.numel() for weight in model.parameters())
    print(f"{machine()}; {num_weights} weights\n")
    print(table(["clips", "model", *METRICS.values()], rows))


if __name__ == "__main__":
    with torch.no_grad():
        main()
