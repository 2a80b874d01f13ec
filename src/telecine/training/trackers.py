"""The experiment trackers of a run: their names, what they are told at the start, and how they go on after a resume."""

from collections.abc import Iterable, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker

from telecine.base.checks import argument_error
from telecine.runs import Run
from telecine.runs.settings import flat_settings
from telecine.settings.parse import merged

# The subfolder of a run for TensorBoard's files.
_TENSORBOARD = "tensorboard"
# They take nested settings. Others take one text for each dotted name.
_NESTED = ("wandb", "trackio")


def start_trackers(accelerator: Accelerator, settings: dict[str, Any], run: Run, resumed_at: int | None) -> None:
    """Start the trackers of a run and send them its plain settings; call this in the first process only.

    After a resume at a step, Weights & Biases and trackio continue the run that they had, by an id in the run's folder;
    TensorBoard drops what was logged after that step, or before a new start.
    """
    names = settings["trackers"]
    options = merged([_options(names, run, resumed_at), settings["tracker_options"]])
    try:
        # TensorBoard's is made here, so that its files are in its folder whatever the project is.
        accelerator.log_with = [
            TensorBoardTracker(_TENSORBOARD, run.folder, **options[_TENSORBOARD]) if str(each) == _TENSORBOARD else each
            for each in accelerator.log_with
        ]
        accelerator.init_trackers(settings["tracker_project"], init_kwargs=options)
    except _errors_of(names) as error:
        remedy = "Log in to the tracker or use it offline, and check `tracker_options`; or leave it out of `trackers`."
        raise argument_error("trackers", "able to start", f"{type(error).__name__} ({error})", remedy) from error
    for tracker in accelerator.trackers:
        if tracker.name != _TENSORBOARD:  # it would make another folder at each start
            tracker.store_init_configuration(settings if tracker.name in _NESTED else flat_settings(settings))


def drop_after(step: int, trackers: Iterable[Any]) -> None:
    """Let TensorBoard, if it is one of the trackers that have started, drop what was logged after a step."""
    for writer in (each.tracker for each in trackers if each.name == _TENSORBOARD):
        writer.close()  # its next file begins with the step
        writer.purge_step = step + 1


def _options(trackers: Sequence[str], run: Run, resumed_at: int | None) -> dict[str, Any]:
    """Return what trackers are started with: the name of the run's folder, and an id that stays after a resume."""
    options: dict[str, Any] = {_TENSORBOARD: {"purge_step": 0 if resumed_at is None else resumed_at + 1}}
    if {*trackers} & {*_NESTED}:
        name, of_run = run.folder.resolve().name, run.tracker_id(is_new=resumed_at is None)
        options["wandb"] = {"name": name, "id": of_run, "resume": "allow", "dir": str(run.folder)}
        options["trackio"] = {"name": f"{name}-{of_run}", "resume": "allow"}  # it finds a run by its name
    return options


def _errors_of(trackers: Sequence[str]) -> tuple[type[Exception], ...]:
    """Return the errors with which trackers refuse to start, or one of their options."""
    if "wandb" not in trackers:
        return (TypeError,)
    from wandb.errors import Error

    return (TypeError, Error)
