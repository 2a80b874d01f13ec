"""Held-out PSNR and LPIPS before and after a short fine-tuning of two published model classes: a Markdown table.

    python benchmarks/fine_tuning.py

The models are small enough for two CPU cores, have random weights, and are saved with diffusers. `telecine train
--model` fine-tunes each on the sample videos with the whole objective, and validates on their held-out ends.

The variance of the initial weights is 1 / fan-in. With a third of it, PyTorch's default, the output of Wan's class
hardly depends on its input, and training takes about 200 updates to learn more than one colour.
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
from measure import machine, table
from torch import nn

from telecine.data import sample_videos

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
    "--objective.gan.disc_train_start=20",
    "--objective.disc_start=40",
    "--discriminator.dim=4",
    "--optimizer.lr=2e-3",
    "--optimizer.warmup_steps=10",
    "--optimizer.ema_decay=0.98",
)
SMOKE = (
    *("--clips.height=32", "--clips.width=32", "--clips.num_workers=0", "--clips.cache=false", "--val_clips=1"),
    *("--objective.perceptual.net=alex", "--objective.gan.disc_train_start=2", "--objective.disc_start=4"),
    *(
        "--discriminator.dim=1",
        "--optimizer.lr=4e-3",
        "--optimizer.warmup_steps=2",
        "--linear_baseline=false",
        "--latent_clips=2",
    ),
)


def link_samples(folder: Path) -> None:
    """Fill a new folder with links to the sample videos."""
    folder.mkdir()
    for path in sample_videos():
        (folder / path.name).symlink_to(path)


def build(name: str) -> Any:
    """Return a model of a class with random weights."""
    torch.manual_seed(0)
    model = CLASSES[name]()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
                layer.weight.mul_(math.sqrt(3))
    return model


def fine_tune(name: str, steps: int, folder: Path, extra: Sequence[str]) -> list[str]:
    """Train a model of a class with the command line, and return its row of the table."""
    build(name).save_pretrained(folder / name)
    run = folder / "runs" / name
    command = [sys.executable, "-m", "telecine", "train", *SETTINGS, f"--model={name}", f"--output_dir={run}"]
    every = [f"--{option}={steps}" for option in ("steps", "val_every", "save_every")]
    start = time.perf_counter()
    subprocess.run([*command, *every, *extra], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = (record for record in records if "val/psnr" in record)
    cells = [f"{record[key]:.3f}" for key in ("val/psnr", "val/lpips_alex") for record in (first, last)]
    return [name, f"{steps}", f"{seconds:.0f}", *cells]


def main() -> None:
    """Fine-tune each class and print the table."""
    parser = argparse.ArgumentParser(description="Print the effect of a short fine-tuning of published model classes.")
    parser.add_argument("--steps", type=int, default=250, help="number of updates")
    parser.add_argument("--smoke", action="store_true", help="one class, a few updates, to test the command")
    arguments = parser.parse_args()
    header = ["class", "updates", "seconds", "PSNR before", "after", "LPIPS-Alex before", "after"]
    with tempfile.TemporaryDirectory() as folder:
        link_samples(Path(folder) / "samples")
        steps, extra = (6, SMOKE) if arguments.smoke else (arguments.steps, ())
        names = list(CLASSES)[-1:] if arguments.smoke else CLASSES
        rows = [fine_tune(name, steps, Path(folder), extra) for name in names]
    print(f"clips of 9 frames of 64 px; {machine()}\n")
    print(table(header, rows))


if __name__ == "__main__":
    main()
