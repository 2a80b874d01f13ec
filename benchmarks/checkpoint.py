"""Seconds that a checkpoint stops training, by what they are spent on: a Markdown table.

    python benchmarks/checkpoint.py
    python benchmarks/checkpoint.py --config tiny_4x8x8 --repeats 1

Saves the state of a run with telecine's own autoencoder of a recipe's size, with the states of its optimizer and the
average of its weights, several times, and prints medians. Training waits only for the copy. The first copy takes
longer: its memory is new.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from measure import machine, table
from rich.console import Console

from telecine.data import sample_videos
from telecine.settings import ClipConfig, DiscriminatorConfig, ObjectiveConfig, TrainConfig
from telecine.training import checkpoint, checkpoint_files, read_config
from telecine.training.interrupt import StopRequest
from telecine.training.trainer import Trainer

# The functions whose time is shown: which module calls each, and what it does.
PARTS = {
    "first_not_finite": (checkpoint, "looking for values that are not finite"),
    "write_manifest": (checkpoint_files, "digests"),
    "flush": (checkpoint_files, "flushing to the disk"),
}
COPY = "copying, for which training waits"
FIRST = "the same, the first time"
REST = "writing tensors"


def settings(recipe: str, folder: Path) -> TrainConfig:
    """Return the settings of a run without discriminators, on small clips."""
    config = TrainConfig(causal_vae=read_config(recipe).causal_vae)
    side, num_frames = max(32, 2 * config.causal_vae.spatial_compression), 1 + config.causal_vae.time_compression
    clips = ClipConfig(num_frames=num_frames, height=side, width=side, num_workers=0)
    return replace(
        config,
        data=str(sample_videos()[0]),
        output_dir=str(folder),
        steps=1,
        batch_size=1,
        device="cpu",
        trackers=(),
        val_clips=1,
        clips=clips,
        linear_baseline=False,
        latent_clips=0,
        linear_start=False,
        objective=ObjectiveConfig(perceptual_weight=0.0, adversarial_loss_weight=0.0),
        discriminator=DiscriminatorConfig(video="none"),
    )


def timed(call: Callable[..., Any], seconds: dict[str, float], title: str) -> Callable[..., Any]:
    """Return a function that adds the time of its calls."""

    def run(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = call(*arguments, **options)
        seconds[title] += time.perf_counter() - start
        return result

    return run


def main() -> None:
    """Save several times and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default="base_8x32x32", help="A recipe of a size of telecine's autoencoder.")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    measured: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        trainer = Trainer(settings(arguments.config, Path(folder)), Console(quiet=True))
        seconds: dict[str, float] = defaultdict(float)
        with patch.object(trainer.checkpointer, "save", timed(trainer.checkpointer.save, seconds, FIRST)):
            trainer.run(StopRequest())
        first = seconds[FIRST]
        for name, (module, title) in PARTS.items():
            stack.enter_context(patch.object(module, name, timed(getattr(module, name), seconds, title)))
        for _ in range(arguments.repeats):
            seconds.clear()
            trainer.checkpointer.saved_step = None
            start = time.perf_counter()
            path = trainer.checkpointer.save(trainer.state)
            copied = time.perf_counter() - start
            trainer.checkpointer.wait()
            total = time.perf_counter() - start
            measured.append({COPY: copied, **seconds, REST: total - copied - sum(seconds.values()), "all": total})
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        description = trainer.state.describe_size()
        trainer.close()
    print(f"{description}, {size / 2**30:.2f} GiB; {machine()}; median of {arguments.repeats}\n")
    titles = [COPY, *(title for _, title in PARTS.values()), REST, "all"]
    rows = [[title, f"{median(one[title] for one in measured):.2f}"] for title in titles]
    print(table(["part", "seconds"], [*rows, [FIRST, f"{first:.2f}"]]))


if __name__ == "__main__":
    main()
