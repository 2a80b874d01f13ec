"""Operators, bytes moved and floating-point operations of an update in bfloat16, by part: counted, nothing is computed.

    python benchmarks/operators.py
    python benchmarks/operators.py --only "gpu" "Wan 2.1" --size 17 128 128

An operator is at least one kernel launch on a GPU. Those that compile to one kernel are not fused here, and views are
left out. Weights are random; recipes have their own batch and clips, the published models one clip.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from measure import machine, table
from published_models import PUBLISHED, with_model, with_size

from telecine.settings import TrainConfig
from telecine.settings.parse import read_config
from telecine.training.planning.update import AUTOENCODER, OPTIMIZER, PERCEPTUAL, fake_autoencoder, plan_update

RECIPES = ("demo", "gpu")
HEADER = ("update", "clips", "operators", AUTOENCODER, "discriminators", PERCEPTUAL, OPTIMIZER, "GB moved", "TFLOP")


def cases(folder: Path, size: tuple[int, int, int], names: Sequence[str] | None) -> Iterator[tuple[str, TrainConfig]]:
    """Yield names and settings."""
    for name in names or [*RECIPES, *list(PUBLISHED)[1:]]:
        config = replace(read_config(name if name in RECIPES else "gpu"), mixed_precision="bf16")
        if name not in RECIPES:
            config = replace(with_model(config, PUBLISHED[name], folder), batch_size=1)
            config = with_size(config, fake_autoencoder(config).covering_clip(*size))
        yield name, config


def row(name: str, config: TrainConfig) -> list[str]:
    """Return the row of an update."""
    plan, clips = plan_update(config, device_type="cuda"), config.clips
    counts = plan.operators
    discriminators = sum(count for part, count in counts.items() if "discriminator" in part)
    numbers = [sum(counts.values()), counts[AUTOENCODER], discriminators, counts.get(PERCEPTUAL, 0), counts[OPTIMIZER]]
    shape = f"{config.clips_per_pass} x {clips.num_frames} x {clips.height} x {clips.width}"
    moved, flops = sum(plan.moved.values()) / 1e9, sum(plan.flops.values()) / 1e12
    return [name, shape, *map(str, numbers), f"{moved:.1f}", f"{flops:.2f}"]


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description="Count the operators of an update.")
    parser.add_argument("--only", nargs="+", help="names of rows")
    parser.add_argument("--size", nargs=3, type=int, default=(17, 128, 128), help="clips of the published models")
    arguments = parser.parse_args()
    print(f"{machine()}\n\n{table(HEADER, [])}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, config in cases(Path(folder), tuple(arguments.size), arguments.only):
            print(f"| {' | '.join(row(name, config))} |", flush=True)


if __name__ == "__main__":
    main()
