"""A training run from its settings to its result, and a dry run, of which nothing is kept."""

import time
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from telecine.base.checks import Interrupted, check_type
from telecine.base.devices import in_gib, peak_memory, pick_device
from telecine.base.precision import tf32
from telecine.base.terminal import PlainConsole, describe_duration
from telecine.data.mapped import MapDataset
from telecine.data.outputs import check_output
from telecine.discriminators.build import choose_video
from telecine.models import VideoAutoencoder
from telecine.objective.terms import check_functions
from telecine.objective.weights import WeightSchedule
from telecine.report.page import write_report
from telecine.runs import Run
from telecine.runs.lock import RunLock
from telecine.runs.saved_settings import check_encoding
from telecine.settings import TrainConfig
from telecine.training.build import build_accelerator
from telecine.training.clips import read_batches, read_next
from telecine.training.distributed import (
    any_rank,
    barrier_without_time_limit,
    leave_context_group,
    on_first_process,
)
from telecine.training.interrupt import StopRequest, stop_on_signal
from telecine.training.logging import print_warnings
from telecine.training.loop import train_to_the_end, validate
from telecine.training.memory_limits import out_of_memory
from telecine.training.prepare import prepare
from telecine.training.step import set_learning_rates, train_step
from telecine.training.stopping import saved_on_stop
from telecine.training.training_run import TrainingRun

# Values of a clip up to which an update on a CPU takes seconds.
_QUICK_ON_A_CPU = 2**20
_REMEDY = 'Use `read_config("demo")`, or another recipe, a file or a dict.'


@dataclass(frozen=True)
class TrainResult:
    """The folder of a run, and its first and last validation."""

    run: Path
    """The run's folder."""
    checkpoint: Path
    """The last checkpoint."""
    first: dict[str, float]
    """Metrics of the first validation, before training."""
    last: dict[str, float]
    """Metrics of the last validation."""

    def print_to(self, console: Console) -> None:
        """Print the metrics before and after, and the run's main files, by what they show."""
        console.print(self._table())
        files = Run(self.run)
        paths = {
            "report": files.report_file,
            "side by side": files.video_file,
            "figures": files.history.path,
            "settings": files.settings_file,
            "checkpoint": self.checkpoint,
        }
        for name, path in paths.items():
            console.print(f"{name:<13} {path}", soft_wrap=True)

    def _table(self) -> Table:
        table = Table("held-out clips", "before", "after", title="training finished")
        for name, value in self.first.items():
            if name in self.last:
                table.add_row(name, f"{value:.4f}", f"{self.last[name]:.4f}")
        return table

    def _repr_mimebundle_(self, **formats: Any) -> dict[str, str]:
        """Return the metrics as a notebook shows them at the end of a cell."""
        return self._table()._repr_mimebundle_(include=[], exclude=[])


def train(
    config: TrainConfig,
    *,
    autoencoder: nn.Module | None = None,
    teacher: VideoAutoencoder | None = None,
    dataset: MapDataset | None = None,
    console: Console | None = None,
    steal_lock: bool = False,
    change_data: bool = False,
) -> TrainResult:
    """Train an autoencoder. If the run's folder holds checkpoints, resume from the newest one that is not damaged.

    If several processes were launched, for example by `torchrun`, each of them has to call this and gets the result.

    Args:
        config: The settings; they are written to the run's folder.
        autoencoder: A custom module to train instead of the model that `config.model` names.
        teacher: An autoencoder whose metrics on the held-out clips are logged beside the run's, as `teacher/psnr`.
        dataset: Clips to train on instead of files: any map-style data set, whose `dataset[index]` is float32
            `(C, T, H, W)` in [-1, 1] of the size of `config.clips`, or a mapping with it as `video`. Each clip is
            checked. `clips.val_fraction` of them, evenly spaced, are held out. A run that resumes asks for the same
            indices in the same order, and its held-out clips are compared with the earlier ones.
        console: Where to show progress; standard output by default. Only the first process prints.
        steal_lock: Take the lock of the folder from a process whose machine is gone.
        change_data: Resume although `config.data` is other data than the checkpoint's.

    Raises:
        ValueError: A setting or the data is wrong, no checkpoint is intact, or another process trains in the folder.
        TypeError: A custom module does not return video.
        TrainingError: The data, a term of the loss, a gradient or a weight is not finite, or the device is out of
            memory.
        Interrupted: The run was interrupted by a signal; its checkpoint is written.
    """
    _check_config(config)
    check_encoding(config)
    console = console or PlainConsole()
    run = prepare(
        config,
        console,
        autoencoder,
        teacher=teacher,
        dataset=dataset,
        steal_lock=steal_lock,
        change_data=change_data,
    )
    try:
        with tf32(config.allow_tf32), stop_on_signal(acknowledge=run.is_main) as stop:
            train_to_the_end(run, stop)
        return finish(run)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(
            run.config, f"at step {run.state.step}", is_custom=run.is_custom
        ) from error
    finally:
        run.close()


def _check_config(config: TrainConfig) -> None:
    """Check what can be checked before anything is read or written."""
    check_type("config", config, TrainConfig, _REMEDY)
    check_functions(
        config.objective,
        clips=config.clips,
        sharding=config.sharding,
        max_dropped=config.predictive.max_dropped,
    )
    choose_video(config.discriminator)


def finish(run: TrainingRun) -> TrainResult:
    """Write the report, upload the weights if `push_to_hub` is set, and return the result.

    A finished run writes and uploads them again. Every process has to call this.

    Raises:
        ValueError: If the upload is not possible.
    """
    with barrier_without_time_limit():
        if run.is_main:
            try:
                write_report([run.files.folder])
            except (OSError, ValueError) as error:
                print_warnings(run.console, [f"no report: {error}"])
        if run.hub_repository is not None:
            from telecine.training.hub import upload  # imports huggingface_hub

            result = _read_result(run.files)
            upload(
                run.hub_repository,
                result.checkpoint,
                run.config.model,
                result.last,
                steps=run.state.step,
            )
    return on_first_process(partial(_read_result, run.files), run.accelerator)


def _read_result(files: Run) -> TrainResult:
    first, last = files.first_and_last()
    _, checkpoint = files.checkpoints.all()[-1]
    return TrainResult(files.folder, checkpoint, first, last)


@dataclass(frozen=True)
class DryRunResult:
    """What one update has shown."""

    step: int
    """The step of the update, at which as many terms as possible are on."""
    seconds: float
    """The time of the update."""
    peak_memory: int | None
    """Bytes, see `base.devices.peak_memory`."""
    values: dict[str, float]
    """The log of the update."""
    off: list[str]
    """The weights of terms that are not on at that step."""
    num_steps: int
    """The number of updates of the whole run."""

    def print_to(self, console: Console) -> None:
        """Print the time, the memory and the losses of the update, and the time of the whole run."""
        table = Table("dry run", f"an update of step {self.step}", title="nothing was kept")
        table.add_row("time", describe_duration(self.seconds))
        if self.peak_memory is not None:
            table.add_row("memory at the peak", in_gib(self.peak_memory))
        for name, value in self.values.items():
            if name.endswith("_loss"):
                table.add_row(name.removeprefix("train/"), f"{value:.4g}")
        console.print(table)
        terms = "every term is on in this update"
        if self.off:
            terms = f"not on in this update: {', '.join(self.off)}"
        console.print(terms, soft_wrap=True)
        time_of_run = describe_duration(self.seconds * self.num_steps)
        console.print(
            f"{self.num_steps} such updates take {time_of_run}; the first one of a process is the slowest"
        )


def dry_run(config: TrainConfig, *, console: Console | None = None) -> DryRunResult:
    """Check the output folder, build everything, validate, and compute one update with as many terms on as possible.

    Whatever the run would write goes to a temporary folder, which is removed; nothing is uploaded, and no tracker
    starts. A checkpoint in the output folder is not read. The arguments are as in `train`.

    Raises:
        ValueError, TypeError, TrainingError, Interrupted: As in `train`.
    """
    _check_config(config)
    with TemporaryDirectory(prefix="telecine-dry-run-") as folder:
        changed = replace(
            config,
            output_dir=folder,
            push_to_hub=False,
            trackers=(),
            tracker_options={},
            latent_cache=None,
        )
        check_output("output_dir", config.data, config.output_dir)
        accelerator = build_accelerator(changed)
        try:
            lock = RunLock(Path(config.output_dir))
            on_first_process(lambda: lock.acquire().release(), accelerator)
        finally:
            leave_context_group()  # `prepare` enters its own
        console = console or PlainConsole()
        num_values = max(prod(bucket.shape) for bucket in config.clips.train_buckets)
        if num_values > _QUICK_ON_A_CPU and pick_device(config.device).type == "cpu":
            text = "validating, and computing an update on the CPU, may take minutes at this size; "
            text += "`telecine plan` counts memory and operations in seconds"
            console.print(text, soft_wrap=True)
        run = prepare(changed, console)
        try:
            with tf32(config.allow_tf32), stop_on_signal(acknowledge=run.is_main) as stop:
                with saved_on_stop(run, stop) as stop_together:
                    validate(run, stop_together)
                return _update_once(run, stop)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(
                run.config, f"at step {run.state.step}", is_custom=run.is_custom
            ) from error
        finally:
            run.close()


def _update_once(run: TrainingRun, stop: StopRequest) -> DryRunResult:
    config = run.config
    state = run.state
    schedule = WeightSchedule(config.objective)
    step = schedule.step_with_most_terms(config.steps)
    state.step = step
    batches = read_batches(
        config, state, run.clips.train, run.latent_cache, should_stop=lambda: stop.is_set
    )
    micro_batches, error = read_next(batches)
    # All processes end together: the update of one waits for the others.
    if any_rank(not micro_batches, run.accelerator.device):
        raise error or Interrupted(None)
    set_learning_rates(state, config.optimizer, config.steps)
    start = time.perf_counter()
    values = train_step(state, micro_batches, measure_update_ratio=True)  # waits for the device
    return DryRunResult(
        step=step,
        seconds=time.perf_counter() - start,
        peak_memory=peak_memory(run.accelerator.device),
        values=values,
        off=schedule.off_at(step),
        num_steps=config.steps,
    )
