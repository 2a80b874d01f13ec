"""A training run from its settings to its result, the errors that end it, and a dry run, of which nothing is kept."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from telecine.base.checks import Interrupted, check_type
from telecine.base.devices import gigabytes, peak_memory
from telecine.base.terminal import PlainConsole
from telecine.data.find import check_output
from telecine.objective.terms import check_functions
from telecine.objective.weights import WeightSchedule
from telecine.runs.lock import RunLock
from telecine.runs.settings import check_encoding
from telecine.settings import TrainConfig
from telecine.training.build import build_accelerator
from telecine.training.clips import read_next
from telecine.training.distributed import on_first_process
from telecine.training.interrupt import StopRequest, stop_on_signal
from telecine.training.memory_limits import out_of_memory
from telecine.training.step import set_learning_rates, train_step
from telecine.training.trainer import Trainer
from telecine.training.validation import TrainResult

_REMEDY = 'Use `read_config("demo")`, or another recipe, a file or a dict.'


def train(
    config: TrainConfig,
    *,
    autoencoder: nn.Module | None = None,
    console: Console | None = None,
    steal_lock: bool = False,
    change_data: bool = False,
) -> TrainResult:
    """Train an autoencoder. If the run's folder holds checkpoints, resume from the newest one that is not damaged.

    If several processes were launched, for example by `torchrun`, each of them has to call this and gets the result.

    Args:
        config: The settings; they are written to the run's folder.
        autoencoder: A custom module to train instead of the model that `config.model` names.
        console: Where to show progress; standard output by default. Only the first process prints.
        steal_lock: Train although another process seems to train in the same folder: it is gone, with its machine.
        change_data: Resume although `config.data` is other data than that of the checkpoint.

    Raises:
        ValueError: A setting or the data is wrong, no checkpoint is intact, or another process trains in the folder.
        TypeError: A custom module does not return video.
        TrainingError: The data, a term of the loss, a gradient or a weight is not finite, or the device is out of
            memory.
        Interrupted: The run was interrupted by a signal; its checkpoint is written.
    """
    check_type("config", config, TrainConfig, _REMEDY)
    check_functions(config.objective, sharding=config.sharding)
    check_encoding(config)
    console = console or PlainConsole()
    trainer = Trainer(config, console, autoencoder, steal_lock=steal_lock, change_data=change_data)
    try:
        with stop_on_signal(acknowledge=trainer.is_main) as stop:
            trainer.run(stop)
        return trainer.result()
    except torch.OutOfMemoryError as error:
        raise out_of_memory(trainer.config, f"at step {trainer.state.step}", is_custom=trainer.is_custom) from error
    finally:
        trainer.close()


@dataclass(frozen=True)
class _DryRun:
    step: int  # at which as many terms as possible are on
    seconds: float
    peak_memory: int | None  # bytes, see `base.devices.peak_memory`
    values: dict[str, float]  # the log of the update
    off: list[str]  # the weights of terms that are not on at that step
    num_steps: int  # of the whole run

    def print_to(self, console: Console) -> None:
        table = Table("dry run", f"an update of step {self.step}", title="nothing was kept")
        table.add_row("seconds", f"{self.seconds:.3g}")
        if self.peak_memory is not None:
            table.add_row("memory at the peak", gigabytes(self.peak_memory))
        for name, value in self.values.items():
            if name.endswith("_loss"):
                table.add_row(name.removeprefix("train/"), f"{value:.4g}")
        console.print(table)
        off = f"not on in this update: {', '.join(self.off)}" if self.off else "every term is on in this update"
        console.print(off, soft_wrap=True)
        time_of_run = f"{self.num_steps} such updates take {self.seconds * self.num_steps / 3600:.4g} hours"
        console.print(f"{time_of_run}; the first one of a process is the slowest")


def dry_run(config: TrainConfig, *, console: Console | None = None) -> _DryRun:
    """Check the output folder, build everything, validate, and compute one update with as many terms on as possible.

    Whatever the run would write goes to a temporary folder, which is removed; nothing is uploaded, and no tracker
    starts. A checkpoint in the output folder is not read. The arguments and the errors are as in `train`.
    """
    check_type("config", config, TrainConfig, _REMEDY)
    check_functions(config.objective, sharding=config.sharding)
    with TemporaryDirectory(prefix="telecine-dry-run-") as folder:
        nothing: dict[str, Any] = {"push_to_hub": False, "trackers": (), "tracker_options": {}, "latent_cache": None}
        tried = replace(config, output_dir=folder, **nothing)
        check_output("output_dir", config.data, config.output_dir)
        on_first_process(lambda: RunLock(Path(config.output_dir)).release(), build_accelerator(tried))
        trainer = Trainer(tried, console or PlainConsole())
        try:
            with stop_on_signal(acknowledge=trainer.is_main) as stop:
                trainer.validate(stop)
                return _update(trainer, stop)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(trainer.config, f"at step {trainer.state.step}", is_custom=trainer.is_custom) from error
        finally:
            trainer.close()


def _update(trainer: Trainer, stop: StopRequest) -> _DryRun:
    config, schedule = trainer.config, WeightSchedule(trainer.config.objective)
    step = schedule.step_with_most_terms(config.steps)
    trainer.state.step = step
    batches, error = read_next(trainer.batches(stop))
    if error is not None or not batches:
        raise error or Interrupted(None)
    set_learning_rates(trainer.state, config.optimizer, config.steps)
    start = time.perf_counter()
    values = train_step(trainer.state, batches, measure_update_ratio=True)  # waits for the device
    seconds, peak = time.perf_counter() - start, peak_memory(trainer.accelerator.device)
    return _DryRun(step, seconds, peak, values, schedule.off_at(step), config.steps)
