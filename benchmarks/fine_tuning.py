"""How far `telecine train --model` gets in three minutes with small models of two published classes: a Markdown table.

    python benchmarks/fine_tuning.py

A model of each class is made with random weights, small enough for two CPU cores, and saved as diffusers saves it.
Their variance is 1 / fan-in: with PyTorch's own, a third of it, what comes out of Wan's class hardly depends on the
clip, and some 200 updates pass before it learns more than one colour. The command line then fine-tunes it from that
folder on the three sample videos, with the whole objective, and validates it on their held-out ends before and after.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from tables import table
from timing import machine
from torch import nn

CLASSES: dict[str, Callable[[], Any]] = {
    "AutoencoderKLCogVideoX": lambda: diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(16, 16, 32, 32), latent_channels=16, layers_per_block=1, norm_num_groups=4
    ),
    "AutoencoderKLWan": lambda: diffusers.AutoencoderKLWan(
        base_dim=16, z_dim=16, dim_mult=[1, 1, 2, 2], num_res_blocks=1
    ),
}
SETTINGS = (
    "--data=samples",
    "--batch_size=2",
    "--device=cpu",
    "--clips.num_frames=9",
    "--clips.height=64",
    "--clips.width=64",
    "--clips.cache=true",
    "--clips.num_workers=1",
    "--val_clips=6",
    "--objective.disc_train_start=20",
    "--objective.disc_start=40",
    "--discriminator.dim=4",
    "--optimizer.lr=2e-3",
    "--optimizer.warmup_steps=10",
    "--optimizer.ema_decay=0.98",
)


def sample_folder(place: Path) -> Path:
    """Return a folder with links to the sample videos."""
    from telecine.data import sample_videos

    folder = place / "samples"
    folder.mkdir()
    for path in sample_videos():
        (folder / path.name).symlink_to(path)
    return folder


SMALL = (
    *("--clips.height=32", "--clips.width=32", "--clips.cache=false", "--val_clips=1", "--discriminator.dim=1"),
    "--objective.perceptual_net=alex",
)


def build(name: str) -> Any:
    """Return a model of a class with random weights."""
    torch.manual_seed(0)
    model = CLASSES[name]()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
                layer.weight.mul_(math.sqrt(3))
    return model


def fine_tune(name: str, steps: int, place: Path, extra: Sequence[str]) -> list[str]:
    """Train a model of a class by the command line and return a line of the table."""
    build(name).save_pretrained(place / name)
    run = place / "runs" / name
    command = [sys.executable, "-m", "telecine", "train", *SETTINGS, f"--model={name}", f"--output_dir={run}"]
    every = [f"--{option}={steps}" for option in ("steps", "val_every", "save_every")]
    start = time.perf_counter()
    subprocess.run([*command, *every, *extra], cwd=place, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = (record for record in records if "val/psnr" in record)
    cells = [f"{record[key]:.3f}" for key in ("val/psnr", "val/lpips_alex") for record in (first, last)]
    return [name, f"{steps}", f"{seconds:.0f}", *cells]


def main() -> None:
    """Fine-tune each class and print the table."""
    parser = argparse.ArgumentParser(description="Print what a few minutes of fine-tuning do to published classes.")
    parser.add_argument("--steps", type=int, default=250, help="updates of each")
    parser.add_argument("--smoke", action="store_true", help="a few updates of small clips, to see that it runs")
    arguments = parser.parse_args()
    header = ["class", "updates", "seconds", "PSNR before", "after", "LPIPS-Alex before", "after"]
    with tempfile.TemporaryDirectory() as folder:
        sample_folder(Path(folder))
        steps, extra = (30, SMALL) if arguments.smoke else (arguments.steps, ())
        rows = [fine_tune(name, steps, Path(folder), extra) for name in CLASSES]
    print(f"clips of 9 frames of 64 px; {machine()}\n")
    print(table(header, rows))


if __name__ == "__main__":
    main()
