"""Updates per second of the demo, and the fraction of the time that waits for data: a Markdown table.

    python benchmarks/training.py

Settings and clips are the demo's (`telecine train` without arguments). Each phase is measured separately: without
discriminators, with discriminators that train but are not in the autoencoder's loss, and with both. An update is the
next batch of the loader, its copy to the device, and both optimizer steps with the moving average; logs, validation and
checkpoints are left out. Waiting for the loader should take less than a tenth of the time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from accelerate.utils import set_seed
from measure import machine, synchronize, table

from telecine.data import clip_loader
from telecine.settings import TrainConfig
from telecine.training import read_config
from telecine.training.build import build_accelerator, build_autoencoder, build_clips, build_state
from telecine.training.state import TrainState
from telecine.training.step import MicroBatch, set_learning_rates, train_step

SMOKE: dict[str, Any] = {
    "val_clips": 3,
    "latent_clips": 2,
    "objective": {"perceptual": {"net": "alex"}},
    "clips": {"num_frames": 5, "height": 32, "width": 32},
    "causal_vae": {"base_channels": 4, "latent_channels": 2},
    "discriminator": {"dim": 1},
}


@dataclass(frozen=True)
class Phase:
    """A part of the run whose updates have the same cost, apart from the penalty on every n-th step."""

    title: str
    first_step: int
    last_step: int
    """Exclusive."""

    @property
    def num_steps(self) -> int:
        """The number of updates in the phase."""
        return self.last_step - self.first_step


@dataclass(frozen=True)
class Cost:
    """The time of updates."""

    num_updates: float
    seconds: float
    waited: float
    """Seconds in which the next batch was not ready."""


def demo_config(changes: Mapping[str, Any]) -> TrainConfig:
    """Return the demo's settings with changes, those of a group as a dict."""
    config = read_config("demo")
    return replace(config, **{name: _changed(getattr(config, name), value) for name, value in changes.items()})


def _changed(setting: Any, value: Any) -> Any:
    return replace(setting, **value) if isinstance(value, dict) else value


def phases_of(config: TrainConfig) -> list[Phase]:
    """Return the phases of a run in order."""
    disc_train_start, disc_start = config.objective.gan.disc_train_start, config.objective.disc_start
    return [
        Phase("no discriminators", 0, disc_train_start),
        Phase("discriminators train", disc_train_start, disc_start),
        Phase("discriminators train, adversarial loss", disc_start, config.steps),
    ]


def measure(
    state: TrainState, batches: Iterator[Any], config: TrainConfig, phase: Phase, *, num_updates: int, warmup: int
) -> Cost:
    """Return the time of updates of one phase. `warmup` updates before these are not counted."""
    seconds = waited = 0.0
    for index in range(warmup + num_updates):
        start = time.perf_counter()
        video = next(batches)["video"].to(state.accelerator.device, non_blocking=True)
        received = time.perf_counter()
        state.step = phase.first_step + index % phase.num_steps  # a phase that is too short starts again
        set_learning_rates(state, config.optimizer, config.steps)
        train_step(state, [MicroBatch(video, range(len(video)))])
        synchronize()
        if index >= warmup:
            seconds += time.perf_counter() - start
            waited += received - start
    return Cost(num_updates, seconds, waited)


def whole_run(phases: list[Phase], costs: list[Cost]) -> Cost:
    """Return the cost of the whole run: the costs of its phases times their numbers of updates."""
    factors = [phase.num_steps / cost.num_updates for phase, cost in zip(phases, costs, strict=True)]
    return Cost(
        num_updates=sum(phase.num_steps for phase in phases),
        seconds=sum(factor * cost.seconds for factor, cost in zip(factors, costs, strict=True)),
        waited=sum(factor * cost.waited for factor, cost in zip(factors, costs, strict=True)),
    )


def row(title: str, num_steps: int, cost: Cost) -> list[str]:
    """Return a row of the table."""
    return [title, f"{num_steps}", f"{cost.num_updates / cost.seconds:.2f}", f"{cost.waited / cost.seconds:.1%}"]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Print the demo's updates per second, and how long it waits for data.")
    parser.add_argument("--updates", type=int, default=40, help="number of measured updates of each phase")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and few updates, to test the command")
    arguments = parser.parse_args()
    arguments.updates = 2 if arguments.smoke else arguments.updates
    # The loader prepares its first batches before the first update ends. Measure after these.
    arguments.warmup = 1 if arguments.smoke else 8
    return arguments


def main() -> None:
    """Measure the phases in order and print the table."""
    arguments = parse_arguments()
    config = demo_config(SMOKE if arguments.smoke else {})
    set_seed(config.seed)
    model = build_autoencoder(config)
    dataset = build_clips(config, model).train
    state = build_state(config, build_accelerator(config), model)
    phases = phases_of(config)
    num_batches = (arguments.warmup + arguments.updates) * len(phases)
    batches = iter(clip_loader(dataset, batch_size=config.batch_size, start_step=0, num_steps=num_batches))
    counts = {"num_updates": arguments.updates, "warmup": arguments.warmup}
    costs = [measure(state, batches, config, phase, **counts) for phase in phases]
    rows = [row(phase.title, phase.num_steps, cost) for phase, cost in zip(phases, costs, strict=True)]
    rows.append(row("the whole run", config.steps, whole_run(phases, costs)))
    print(f"{config.batch_size} clips of {config.clips.num_frames} frames of {config.clips.width} px; {machine()}\n")
    print(table(["phase", "steps of the demo", "updates / s", "waited for data"], rows))


if __name__ == "__main__":
    main()
