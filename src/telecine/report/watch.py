"""Keeps the report of runs that train up to date; the open page loads itself again when it changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from telecine.report.page import write_report
from telecine.report.run import value_or_error
from telecine.runs import Run
from telecine.runs.settings import read_saved_settings

SECONDS = 15.0  # between two looks at the files of the runs


def watch(runs: Sequence[str | Path], output: str | Path | None, written: Callable[[Path], object]) -> None:
    """Write the report again whenever a run has new records, until all runs have made their last validation.

    For `runs`, `output` and errors see `write_report`. `written` is called with the page each time that it was written.
    The last one does not load itself again.
    """
    before = None
    while True:
        state = [_state(Run(run)) for run in runs]
        if state != before:
            is_live = any(value_or_error(_is_finished, Run(run)) is False for run in runs)  # not one that is damaged
            try:
                page = write_report(runs, output, is_live=is_live)
            except FileNotFoundError:  # a run that resumes removes its later validations
                pass
            else:
                written(page)
                if not is_live:
                    return
                before = state
        time.sleep(SECONDS)


def _is_finished(run: Run) -> bool:
    """Return whether a run has recorded the validation of its last step."""
    num_steps = read_saved_settings(run.folder).get("steps")
    return isinstance(num_steps, int) and any(each["step"] >= num_steps for each in run.history.validations())


def _state(run: Run) -> tuple[object, ...]:
    """Return what changes when a run records something."""
    files = [file.path.stat() for file in (run.history, run.warnings) if file.path.exists()]
    return (*((file.st_mtime_ns, file.st_size) for file in files), *(step for step, _ in run.validation_folders()))
