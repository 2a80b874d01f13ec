"""Keeps the report of runs that train up to date; the open page loads itself again when it changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from telecine.report.page import write_report
from telecine.report.run import read_records, validations
from telecine.report.settings import read_settings
from telecine.runs.layout import HEALTH_FILE, METRICS_FILE, validation_folders

# Between two looks at the files of the runs.
SECONDS = 15.0


def watch(runs: Sequence[str | Path], output: str | Path | None, written: Callable[[Path], object]) -> None:
    """Write the report again whenever a run has new records, until all runs have made their last validation.

    Args:
        runs: Folders of runs.
        output: The page, see `write_report`.
        written: Called with the page each time that it was written. The last one does not load itself again.

    Raises:
        ValueError: See `write_report`.
    """
    before = None
    while True:
        state = [_state(Path(run)) for run in runs]
        if state != before:
            is_live = not all(is_finished(Path(run)) for run in runs)
            try:
                page = write_report(runs, output, is_live=is_live)
            except FileNotFoundError:  # a run that resumes removes its later validations
                page = None
            if page is not None:
                written(page)
                if not is_live:
                    return
                before = state
        time.sleep(SECONDS)


def is_finished(run: Path) -> bool:
    """Return whether a run has recorded the validation of its last step."""
    num_steps = read_settings(run).get("steps")
    records = validations(read_records(run / METRICS_FILE))
    return num_steps is not None and any(record["step"] >= int(num_steps) for record in records)


def _state(run: Path) -> tuple[object, ...]:
    """Return what changes when a run records something."""
    files = [path.stat() for name in (METRICS_FILE, HEALTH_FILE) if (path := run / name).exists()]
    return (*((file.st_mtime_ns, file.st_size) for file in files), *(step for step, _ in validation_folders(run)))
