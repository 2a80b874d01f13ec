"""Where a run starts: from new weights or a checkpoint, and with which of the settings that it had at first."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console
from torch import nn

from telecine.base.checks import argument_error
from telecine.runs import Run
from telecine.runs.saved_settings import read_saved_settings
from telecine.runs.summary import RunSummary
from telecine.settings import TrainConfig
from telecine.training.build import custom_module
from telecine.training.distributed import any_rank, on_first_process
from telecine.training.logging import print_lines, print_warnings
from telecine.training.memory_limits import MAX_ON_CPU, largest_batch
from telecine.training.resume import SavedSettings, check_records


@dataclass(frozen=True)
class Start:
    """Where a run starts: from new weights, or from a checkpoint."""

    config: TrainConfig
    """The settings, with the batch size as a number. What a run keeps from its start, such as `init`, is as saved."""
    module: nn.Module | None
    """The custom module to train; `None` for a model that `config.model` names."""
    checkpoint: Path | None
    """The newest intact checkpoint; `None` for a new run."""
    saved: SavedSettings | None
    """The settings of the checkpoint."""
    summary: RunSummary | None
    """The summary of the run until now, in the first process; `None` for a new run, or if it is damaged."""


def find_start(
    config: TrainConfig,
    module: nn.Module | None,
    files: Run,
    accelerator: Accelerator,
    console: Console,
    *,
    change_data: bool,
) -> Start:
    """Return where a run starts, after a check that the settings fit the checkpoint. Every process has to call this.

    Args:
        config: The settings.
        module: A custom module to train instead of the model that `config.model` names.
        files: The run's folder.
        accelerator: The processes of the run.
        console: Where warnings are printed.
        change_data: Whether the data may be other data than the checkpoint's.

    Raises:
        ValueError: A setting does not fit the checkpoint, or no checkpoint is intact.
    """
    if module is None:
        module = custom_module(
            config.model, config.model_arguments, random_weights=config.random_weights
        )
    checkpoint = newest_checkpoint(files, accelerator, console)
    saved = None
    summary = None
    if checkpoint is None:
        print_warnings(console, on_first_process(partial(check_records, files), accelerator))
    else:
        if accelerator.is_main_process:
            summary = read_earlier_summary(files, console)
        saved = SavedSettings(checkpoint)
        config, warnings, notes = saved.as_started(config)
        saved.check_networks(config)
        if not change_data:
            # Data in another place is compared once it is read.
            saved.check_data(config, may_be_same=True)
        print_warnings(console, warnings)
        print_lines(console, notes)
    if config.batch_size == "auto":
        config = _with_batch_size(
            config, checkpoint, accelerator, console, is_custom=module is not None
        )
    return Start(config, module, checkpoint, saved, summary)


def newest_checkpoint(files: Run, accelerator: Accelerator, console: Console) -> Path | None:
    """Return the newest intact checkpoint of a run, or None. Every process has to call this.

    Args:
        files: The run's folder.
        accelerator: The processes of the run.
        console: Where a warning about each damaged checkpoint is printed.

    Raises:
        ValueError: If no checkpoint is intact, or a process does not see the folder of the first one.
    """
    checkpoint, notes = on_first_process(files.checkpoints.newest_intact, accelerator)
    print_warnings(console, notes)
    if any_rank(checkpoint is not None and not checkpoint.is_dir(), accelerator.device):
        remedy = "Use such a folder, or copy this one to the other machines."
        raise argument_error(
            "output_dir", "a folder that all processes see", str(files.folder), remedy
        )
    return checkpoint


def read_earlier_summary(files: Run, console: Console) -> RunSummary | None:
    """Return the summary of a run until now, or None with a warning if the file is damaged."""
    try:
        return files.summary()
    except ValueError as error:
        print_warnings(console, [f"{error} The time before is not counted."])
        return None


def _with_batch_size(
    config: TrainConfig,
    checkpoint: Path | None,
    accelerator: Accelerator,
    console: Console,
    *,
    is_custom: bool,
) -> TrainConfig:
    """Return the settings with the checkpoint's batch size, or the largest one that fits, in place of "auto"."""
    if checkpoint is not None:
        return replace(config, batch_size=read_saved_settings(checkpoint)["batch_size"])
    if is_custom:
        raise argument_error("batch_size", "a number for a custom module", '"auto"', "Choose one.")
    size = largest_batch(config, accelerator)
    reason = "the largest that fits by the plan"
    if accelerator.device.type == "cpu" and size == MAX_ON_CPU:
        reason = "the most on a CPU, where more are no faster"
    rates = f"learning rates stay {config.optimizer.lr:g} and {config.optimizer.disc_lr:g}, whatever the batch size"
    print_lines(console, [f"batch size {size} in each process, {reason}; {rates}"])
    return replace(config, batch_size=size)
