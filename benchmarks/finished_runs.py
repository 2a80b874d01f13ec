"""Metrics of finished runs of telecine's autoencoder, and of its linear start: Markdown tables and a picture.

    python benchmarks/finished_runs.py runs/demo_long runs/demo_long_no_gan --videos runs/videos --picture frames.png

The averaged weights of the last checkpoints are measured as `gan.py` does, on the held-out clips of the first run and
on clips of unseen videos.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gan import HELD_OUT, UNSEEN, draw, measure_for, metrics_table
from latents import START, linear_start
from measure import machine
from outcome_runs import Outcome
from PIL import Image

from telecine.autoencoders import CausalVAE
from telecine.base.checks import argument_error
from telecine.runs.layout import CONFIG_FILE, find_checkpoint
from telecine.training import read_config
from telecine.training.build import build_autoencoder, build_clips


def averaged_weights(run: Path) -> CausalVAE:
    """Return the autoencoder of the last checkpoint of a run, with averaged weights.

    Raises:
        ValueError: There is no checkpoint.
    """
    checkpoint = find_checkpoint(run)
    if checkpoint is None:
        raise argument_error("runs", "folders of runs with a checkpoint", str(run), "Train it first.")
    return CausalVAE.from_pretrained(checkpoint / "ema")


def check_same_clips(runs: Sequence[Path]) -> None:
    """Check that runs have the same clips and the same latent.

    Raises:
        ValueError: They differ.
    """
    configs = [read_config(run / CONFIG_FILE) for run in runs]
    for run, config in zip(runs, configs, strict=True):
        for name in ("data", "clips", "causal_vae"):
            if getattr(config, name) != getattr(configs[0], name):
                got = f"another `{name}` in {run} than in {runs[0]}"
                raise argument_error("runs", "folders of runs with the same clips and model", got, "Leave it out.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs with the same clips and model")
    parser.add_argument("--videos", type=Path, required=True, help="the folder of benchmarks/videos.py")
    parser.add_argument("--picture", type=Path, help="where to write a picture of the clips and their reconstructions")
    arguments = parser.parse_args()
    config = read_config(arguments.runs[0] / CONFIG_FILE)
    check_same_clips(arguments.runs)
    models = {START: linear_start(config, build_clips(config, build_autoencoder(config)))}
    models |= {str(run): averaged_weights(run) for run in arguments.runs}
    measure = measure_for(config, arguments.videos)
    outcomes, pictures = {}, {"input": measure.inputs()}
    for name, model in models.items():
        metrics, frames = measure(model)
        outcomes[name, config.seed] = Outcome({}, metrics, [])
        pictures[name] = Image.fromarray(frames.numpy())
    print(machine())
    for clips in (HELD_OUT, UNSEEN):
        print(f"\n{clips}:\n")
        print(metrics_table(clips, list(models), [config.seed], outcomes))
    if arguments.picture:
        draw(pictures, config.clips.width, arguments.picture)


if __name__ == "__main__":
    main()
