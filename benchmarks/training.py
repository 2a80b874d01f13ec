"""How many updates of the demo run a second, and how long they wait for data: a Markdown table.

    python benchmarks/training.py

The settings are the demo's (`telecine train` without any), its clips the three sample videos. Each of its phases is
measured on its own: without discriminators, with discriminators that train but do not count yet, with everything. An
update is the loader's next batch, on its way to the device, and `telecine.training`'s update with optimizers and moving
average; journal, validation and checkpoints are left out. The loader should never be waited for more than a tenth of
that time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from accelerate.utils import set_seed
from tables import table
from timing import machine, wait_for_device

from telecine.cli import recipe
from telecine.data import clip_loader
from telecine.training import TrainConfig
from telecine.training.build import build_accelerator, build_autoencoder, build_clips, build_state
from telecine.training.config_file import config_from
from telecine.training.state import TrainState
from telecine.training.step import MicroBatch, set_learning_rates, train_step

SMOKE: dict[str, Any] = {
    "clips": {"num_frames": 5, "height": 32, "width": 32},
    "causal_vae": {"base_channels": 4, "latent_channels": 2},
    "discriminator": {"dim": 1},
}


@dataclass(frozen=True)
class Phase:
    """A part of the run in which an update always costs the same, up to the penalty at every n-th."""

    title: str
    first_step: int
    last_step: int
    """Not included."""

    def step(self, index: int) -> int:
        """Return the step of the `index`-th update; a short phase begins again."""
        return self.first_step + index % (self.last_step - self.first_step)


@dataclass(frozen=True)
class Cost:
    """What updates took."""

    num_updates: int
    seconds: float
    waited: float
    """Seconds of these in which the next batch was not there yet."""


def demo_config(changes: dict[str, Any]) -> TrainConfig:
    """Return the demo's settings, with changes."""
    with open(recipe("demo"), encoding="utf-8") as file:
        settings = yaml.safe_load(file)
    for group, values in changes.items():
        settings[group] |= values
    return config_from(settings)


def phases_of(config: TrainConfig) -> list[Phase]:
    """Return the phases of a run, from its first step to its last."""
    train, count = config.objective.disc_train_start, config.objective.disc_start
    return [
        Phase("no discriminators", 0, train),
        Phase("discriminators train", train, count),
        Phase("discriminators train and count", count, config.steps),
    ]


def measure(
    state: TrainState, batches: Iterator[Any], config: TrainConfig, phase: Phase, *, num_updates: int, warmup: int
) -> Cost:
    """Run updates of one phase and return what they took, without the first ones."""
    seconds = waited = 0.0
    for index in range(warmup + num_updates):
        start = time.perf_counter()
        video = next(batches)["video"].to(state.accelerator.device, non_blocking=True)
        got = time.perf_counter()
        train(state, MicroBatch(video, range(len(video))), config, phase.step(index))
        wait_for_device()
        if index >= warmup:
            seconds += time.perf_counter() - start
            waited += got - start
    return Cost(num_updates, seconds, waited)


def train(state: TrainState, batch: MicroBatch, config: TrainConfig, step: int) -> dict[str, float]:
    """Do what the trainer does with a batch: update both networks at the step's learning rates; return the log."""
    state.step = step
    set_learning_rates(state, config.optimizer, config.steps)
    return train_step(state, [batch])


def rows(phases: list[Phase], costs: list[Cost]) -> list[list[str]]:
    """Return the lines of the table, the last one for the whole run: its phases by their numbers of steps."""
    num_steps = [phase.last_step - phase.first_step for phase in phases]
    shares = [count / cost.num_updates for count, cost in zip(num_steps, costs, strict=True)]
    whole = Cost(
        sum(num_steps),
        sum(share * cost.seconds for share, cost in zip(shares, costs, strict=True)),
        sum(share * cost.waited for share, cost in zip(shares, costs, strict=True)),
    )
    titled = [*((phase.title, cost) for phase, cost in zip(phases, costs, strict=True)), ("the whole run", whole)]
    return [
        [title, f"{count}", f"{cost.num_updates / cost.seconds:.2f}", f"{cost.waited / cost.seconds:.1%}"]
        for (title, cost), count in zip(titled, [*num_steps, sum(num_steps)], strict=True)
    ]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Print how fast the demo trains, and how long it waits for data.")
    parser.add_argument("--updates", type=int, default=40, help="measured updates of each phase")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and few updates, to see that it runs")
    arguments = parser.parse_args()
    arguments.updates = 2 if arguments.smoke else arguments.updates
    # The first batches are there before the first update ends: the loader has to be caught without its head start.
    arguments.warmup = 1 if arguments.smoke else 8
    return arguments


def main() -> None:
    """Measure the phases in turn and print the table."""
    arguments = parse_arguments()
    config = demo_config(SMOKE if arguments.smoke else {})
    set_seed(config.seed)
    model = build_autoencoder(config)
    dataset = build_clips(config, model).train
    state = build_state(config, build_accelerator(config), model)
    phases = phases_of(config)
    each = arguments.warmup + arguments.updates
    batches = iter(clip_loader(dataset, batch_size=config.batch_size, start_step=0, num_steps=each * len(phases)))
    counts = {"num_updates": arguments.updates, "warmup": arguments.warmup}
    costs = [measure(state, batches, config, phase, **counts) for phase in phases]
    print(f"{config.batch_size} clips of {config.clips.num_frames} frames of {config.clips.width} px; {machine()}\n")
    print(table(["phase", "steps of the demo", "updates / s", "waited for data"], rows(phases, costs)))


if __name__ == "__main__":
    main()
