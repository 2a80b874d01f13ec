"""A training run from its settings to its result, and the errors that end it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from torch import nn

from telecine.base.checks import TrainingError
from telecine.base.terminal import PlainConsole
from telecine.objective.terms import check_functions
from telecine.settings import TrainConfig
from telecine.training.distributed import describe_lost, is_lost
from telecine.training.interrupt import stop_on_signal
from telecine.training.planning.capacity import out_of_memory
from telecine.training.saved_settings import check_encoding
from telecine.training.trainer import Trainer
from telecine.training.validation import TrainResult


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

    Returns:
        The run's folder and its first and last validation.

    Raises:
        ValueError: A setting or the data is wrong, no checkpoint is intact, or another process trains in the folder.
        TypeError: A custom module does not return video.
        TrainingError: The data, a term of the loss, a gradient or a weight is not finite, the device is out of memory,
            or another process of the run was lost.
        Interrupted: The run was interrupted by a signal; its checkpoint is written.
    """
    check_functions(config.objective, sharding=config.sharding)
    check_encoding(config)
    console = console or PlainConsole()
    with lost_process_named(config, lambda: "while it started"):
        trainer = Trainer(config, console, autoencoder, steal_lock=steal_lock, change_data=change_data)
    try:
        # `torchrun` sends SIGTERM to all processes when one has ended: also while its number is found.
        with stop_on_signal(acknowledge=trainer.is_main) as stop, lost_process_named(config, lambda: at_step(trainer)):
            trainer.run(stop)
        trainer.publish()
        return trainer.result()
    except torch.OutOfMemoryError as error:
        raise out_of_memory(trainer.config, trainer.state.step, is_own=autoencoder is not None) from error
    finally:
        trainer.close()


def at_step(trainer: Trainer) -> str:
    """Return where a run is, for an error."""
    return f"at step {trainer.state.step}"


@contextmanager
def lost_process_named(config: TrainConfig, where: Callable[[], str]) -> Iterator[None]:
    """Turn an error about another process, which has ended or does not answer, into one line that names it."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise TrainingError(describe_lost(where(), config.process_timeout)) from error
