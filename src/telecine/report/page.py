"""The report: one HTML page that works offline, and a folder with its videos; kept up to date while runs train."""

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from telecine.base.checks import argument_error
from telecine.base.files import write_text
from telecine.evaluation.metrics import METRICS
from telecine.report.chart_data import ChartsData, Event, charts_data
from telecine.report.html import render_page
from telecine.report.logged_charts import charts_of_runs, metric_label
from telecine.report.page_videos import VideoFolder, copy_videos
from telecine.report.reported_run import ReportedRun, describe_training, not_comparable, read_runs
from telecine.runs import Run
from telecine.runs.history import History, validation_records
from telecine.runs.saved_settings import read_saved_settings, side_by_side_settings

_SECONDS = 15.0  # between two looks at the files of runs that are watched


class PageData(ChartsData):
    """What the scripts of the page of runs read: `charts.js`, `player.js` and `live.js`."""

    metrics: dict[str, str]
    """What metrics are called."""
    validations: Sequence[dict[str, Any]]
    """The clips of each validation, see `copy_videos`."""
    live: dict[str, Any] | None
    """The version of a page that loads itself again, and the URL of the script with the newest version; else None."""


def write_report(
    runs: Sequence[str | Path], output: str | Path | None = None, *, is_live: bool = False
) -> Path:
    """Write a page that shows one run, or compares several: clips, curves, settings, environment, warnings.

    Args:
        runs: Folders of runs.
        output: The page, an `.html` file, or a folder for `report.html`. Its videos are copied to a folder beside it,
            `report_videos` for `report.html`. Default: `report.html`, in the run's folder for one run, in the current
            folder for several.
        is_live: Whether the page loads itself again when it is written again.

    Returns:
        The path of the page.

    Raises:
        ValueError: A folder is not that of a run, or is given twice; the output is not an HTML file, or its folder of
            videos has other files; or all runs are damaged. The page marks a damaged one beside others.
    """
    folders = [Path(run) for run in runs]
    if not folders:
        remedy = "Pass the run's `--output_dir`."
        raise argument_error("runs", "at least one run's folder", "none", remedy)
    if output is not None:
        page = Path(output)
        is_new_folder = not page.suffix and not page.exists()
        if is_new_folder or page.is_dir():
            page = Run(page).report_file
    elif len(folders) == 1:
        page = Run(folders[0]).report_file
    else:
        page = Run(Path()).report_file
    if page.suffix != ".html":
        contract = "the name of an .html file, or a folder"
        raise argument_error("output", contract, repr(str(page)), "Add a file name.")

    reported, problems = read_runs(folders)
    page.parent.mkdir(parents=True, exist_ok=True)
    videos = VideoFolder(page)
    validations = copy_videos(reported, videos)
    version = uuid.uuid4().hex if is_live else None
    live = {"version": version, "url": videos.version_url} if is_live else None
    write_text(page, _render(reported, validations, live, problems))
    videos.write_version(version)
    videos.remove_others()
    return page


def watch_runs(
    runs: Sequence[str | Path], output: str | Path | None, written: Callable[[Path], object]
) -> None:
    """Write the report again whenever a run has new records, until all runs have made their last validation.

    The last page does not load itself again.

    Args:
        runs: Folders of runs, see `write_report`.
        output: The page, see `write_report`.
        written: Called with the path of the page each time that it was written.
    """
    state_before = None
    while True:
        with suppress(FileNotFoundError):  # a run that resumes removes its later validations
            state = [_state_of(Run(run)) for run in runs]
            if state != state_before:
                is_live = any(is_unfinished(Run(run)) for run in runs)
                written(write_report(runs, output, is_live=is_live))
                if not is_live:
                    return
                state_before = state
        time.sleep(_SECONDS)


def _state_of(run: Run) -> list[object]:
    """Return what changes when a run has new records, warnings or clips."""
    state: list[object] = [step for step, _ in run.validation_folders()]
    for file in (run.history, run.warnings):
        if file.path.exists():
            stat = file.path.stat()
            state.append((stat.st_mtime_ns, stat.st_size))
    return state


def is_unfinished(run: Run) -> bool:
    """Return whether a run has not yet made its last validation. One that is damaged is not waited for.

    Raises:
        FileNotFoundError: A file is missing, perhaps because the run is writing it again.
    """
    try:
        num_steps = read_saved_settings(run.folder).get("steps")
        validated = validation_records(run.history.read())  # all lines: any of them may be damaged
    except FileNotFoundError:
        raise
    except (OSError, ValueError):
        return False
    if not isinstance(num_steps, int):
        return True
    return not any(record["step"] >= num_steps for record in validated)


def _render(
    runs: Sequence[ReportedRun],
    validations: Sequence[dict[str, Any]],
    live: dict[str, Any] | None,
    problems: Sequence[str],
) -> str:
    """Return the page as HTML; `live` has its version, and the URL of the script with the newest one."""
    names = [run.name for run in runs]
    summaries = [run.summary for run in runs]
    charts = charts_of_runs(runs)
    events = []
    for index, run in enumerate(runs):
        for warning in run.warnings or []:
            events.append(Event(index, warning.step, f"{warning.rule}, {warning.message}"))
    data: PageData = {
        **charts_data(charts, runs=names, file=History.file, events=events),
        "metrics": {name: metric.label for name, metric in METRICS.items() if metric.label},
        "validations": validations,
        "live": live,
    }
    training = [describe_training(run.summary, run.records) for run in runs]
    return render_page(
        "page.html",
        titles=names,
        runs=runs,
        problems=problems,
        data=data,
        metrics=_metric_table(runs),
        not_comparable=not_comparable(names, summaries),
        training=side_by_side_settings(training, "not recorded"),
        charts=charts,
        settings=side_by_side_settings([run.settings for run in runs]),
        environment=side_by_side_settings([run.environment for run in runs]),
        num_warnings=len(events),
    )


def _metric_table(runs: Sequence[ReportedRun]) -> dict[str, object]:
    metrics = [run.held_out() for run in runs]
    names: list[str] = []
    has_linear = False
    has_teacher = False
    for run_metrics in metrics:
        for name, metric in run_metrics.items():
            if name not in names:
                names.append(name)
            if metric.linear is not None:
                has_linear = True
            if metric.teacher is not None:
                has_teacher = True
    labels = []
    for name in names:
        label = metric_label(name)
        if name in METRICS:
            label = f"{label} {METRICS[name].direction.arrow}"
        labels.append(label)
    rows = [[run_metrics.get(name) for name in names] for run_metrics in metrics]
    return {
        "labels": labels,
        "rows": rows,
        "has_linear": has_linear,
        "has_teacher": has_teacher,
    }
