"""The experiment trackers of a run: their names, what they are told at the start, and how they go on after a resume."""

from collections.abc import Iterable, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    TensorBoardTracker,
    get_available_trackers,
)

from telecine.base.checks import argument_error, check_choice
from telecine.runs import Run
from telecine.runs.saved_settings import flat_settings
from telecine.settings.parse import merged

# The subfolder of a run for TensorBoard's files.
_TENSORBOARD = "tensorboard"
# They take nested settings. Others take one text for each dotted name.
_NESTED = ("wandb", "trackio")


def check_trackers(names: Iterable[str]) -> None:
    """Check the names of trackers.

    Raises:
        ValueError: Accelerate has no such tracker, or its package is not installed.
    """
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        check_choice("trackers", name, LOGGER_TYPE_TO_CLASS)
        if name not in available:
            remedy = f"Run `pip install {name}`, or leave it out."
            raise argument_error("trackers", "installed", repr(name), remedy)


def start_trackers(
    accelerator: Accelerator, settings: dict[str, Any], run: Run, resumed_at: int | None
) -> None:
    """Start the trackers of a run and send them its settings. Call this in the first process only.

    After a resume Weights & Biases and trackio continue the run that they had, by an id in the run's folder.
    TensorBoard drops what was logged after the step, or before a new start.

    Args:
        accelerator: The handle of the trackers.
        settings: The plain settings of the run, which name the trackers and their options.
        run: The folder of the run.
        resumed_at: The step of the checkpoint; `None` for a new run.

    Raises:
        ValueError: If a tracker cannot start.
    """
    names = settings["trackers"]
    options = merged([_options(names, run, resumed_at), settings["tracker_options"]])
    try:
        # TensorBoard's is made here, so that its files are in its folder whatever the project is.
        trackers = list(accelerator.log_with)
        for index, tracker in enumerate(trackers):
            if str(tracker) == _TENSORBOARD:
                trackers[index] = TensorBoardTracker(
                    _TENSORBOARD, run.folder, **options[_TENSORBOARD]
                )
        accelerator.log_with = trackers
        accelerator.init_trackers(settings["tracker_project"], init_kwargs=options)
    except _start_errors(names) as error:
        remedy = "Log in to the tracker or use it offline, and check `tracker_options`; or leave it out of `trackers`."
        got = f"{type(error).__name__} ({error})"
        raise argument_error("trackers", "names of trackers that start", got, remedy) from error
    for tracker in accelerator.trackers:
        if tracker.name != _TENSORBOARD:  # it would make another folder at each start
            tracker.store_init_configuration(
                settings if tracker.name in _NESTED else flat_settings(settings)
            )


def drop_after(step: int, trackers: Iterable[Any]) -> None:
    """Let TensorBoard, if it is one of the trackers that have started, drop what was logged after a step."""
    for tracker in trackers:
        if tracker.name == _TENSORBOARD:
            writer = tracker.tracker
            writer.close()  # its next file begins with the step
            writer.purge_step = step + 1


def _options(trackers: Sequence[str], run: Run, resumed_at: int | None) -> dict[str, Any]:
    """Return what trackers are started with: the name of the run's folder, and an id that stays after a resume."""
    options: dict[str, Any] = {
        _TENSORBOARD: {"purge_step": 0 if resumed_at is None else resumed_at + 1}
    }
    if "wandb" in trackers or "trackio" in trackers:
        name = run.folder.resolve().name
        run_id = run.tracker_id(is_new=resumed_at is None)
        options["wandb"] = {"name": name, "id": run_id, "resume": "allow", "dir": str(run.folder)}
        # trackio finds a run by its name.
        options["trackio"] = {
            "name": f"{name}-{run_id}",
            "resume": "allow",
        }
    return options


def _start_errors(trackers: Sequence[str]) -> tuple[type[Exception], ...]:
    """Return the errors with which trackers refuse to start, or one of their options."""
    if "wandb" not in trackers:
        return (TypeError,)
    from wandb.errors import Error

    return (TypeError, Error)
