"""The report: one HTML page that works offline, and a folder with its videos; kept up to date while runs train."""

import filecmp
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import TypeAlias
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from telecine import __version__
from telecine.base.checks import argument_error, count_files
from telecine.base.devices import gigabytes
from telecine.base.files import OUTPUT_MARKER, atomic_write, mark_output, write_text
from telecine.report.plots import METRICS, metric_label, plots_of
from telecine.report.run import ReportedRun, not_comparable, read_runs, value_or_error
from telecine.runs import Run
from telecine.runs.history import History
from telecine.runs.run import RunSummary, SavedClip, SavedValidation
from telecine.runs.settings import read_saved_settings, side_by_side_settings

_VERSION_FILE = "version.js"  # in the folder of videos; tells an open page that it was written again
# A validation, or a video of it, as the player reads it. Clips of equal `sha256` have the same input.
_PlayerData: TypeAlias = dict[str, object]
_SECONDS = 15.0  # between two looks at the files of runs that are watched


def write_report(runs: Sequence[str | Path], output: str | Path | None = None, *, is_live: bool = False) -> Path:
    """Write a page that shows one run, or compares several: clips, curves, settings, environment, warnings.

    Args:
        runs: Folders of runs.
        output: The page, an `.html` file. Its videos are copied to a folder beside it, `report_videos` for
            `report.html`. Default: `report.html`, in the run's folder for one run, in the current folder for several.
        is_live: Whether the page loads itself again when it is written again.

    Returns:
        The path of the page.

    Raises:
        ValueError: A folder is not that of a run, or is given twice; the output is not an HTML file, or its folder of
            videos has other files; or all runs are damaged. The page marks a damaged one beside others.
    """
    folders = [Path(run) for run in runs]
    if not folders:
        raise argument_error("runs", "at least one run's folder", "none", "Pass the run's `--output_dir`.")
    page = Path(output) if output is not None else Run(folders[0] if len(folders) == 1 else Path()).report_file
    if page.suffix != ".html" or page.is_dir():
        raise argument_error("output", "the name of an .html file", repr(str(page)), "Add a file name.")
    reported, problems = read_runs(folders)
    page.parent.mkdir(parents=True, exist_ok=True)
    videos = _VideoFolder(page)
    validations = [item for index, run in enumerate(reported) for item in _validations(index, run, videos)]
    live = {"version": uuid.uuid4().hex, "url": videos.url(_VERSION_FILE)} if is_live else {}
    write_text(page, _render(reported, validations, live or None, problems))
    videos.write_version(live.get("version"))
    videos.remove_others()
    return page


def watch_runs(runs: Sequence[str | Path], output: str | Path | None, written: Callable[[Path], object]) -> None:
    """Write the report again whenever a run has new records, until all runs have made their last validation.

    For `runs`, `output` and errors see `write_report`. `written` is called with the page each time that it was written.
    The last one does not load itself again.
    """
    before = None
    while True:
        files = [file.path for run in map(Run, runs) for file in (run.history, run.warnings) if file.path.exists()]
        folders = [step for run in runs for step, _ in Run(run).validation_folders()]
        state = folders, [(each.stat().st_mtime_ns, each.stat().st_size) for each in files]
        if state != before:
            is_live = any(value_or_error(_is_finished, Run(run)) is False for run in runs)  # not one that is damaged
            with suppress(FileNotFoundError):  # a run that resumes removes its later validations
                written(write_report(runs, output, is_live=is_live))
                if not is_live:
                    return
                before = state
        time.sleep(_SECONDS)


def _is_finished(run: Run) -> bool:
    num_steps = read_saved_settings(run.folder).get("steps")
    return isinstance(num_steps, int) and any(each["step"] >= num_steps for each in run.history.validations())


class _VideoFolder:
    """The folder of a page's videos. The page refers to it by a relative URL, so both can be moved together."""

    def __init__(self, page: Path) -> None:
        self.path = page.with_name(f"{page.stem}_videos")
        self._names: set[str] = set()
        is_in_run = Run(page.parent).exists()  # elsewhere, a link, or a folder of this name, may be the user's
        if self.path.is_symlink() and is_in_run:
            contract, got = "in the run's folder itself", f"a symbolic link to {os.readlink(self.path)}"
            raise argument_error(str(self.path), contract, got, "Remove the link.")
        is_marked = is_in_run or (self.path / OUTPUT_MARKER).exists()
        if self.path.is_dir() and any(self.path.iterdir()) and not is_marked:
            contract, got = "without other files in its folder of videos", f"{page}, beside {self.path}"
            raise argument_error("output", contract, got, "Choose another name for the page.")

    def add(self, source: Path, name: str) -> str:
        """Copy a video and return its relative URL. The player shows an error for a missing video."""
        if not self._names:
            mark_output(self.path)
        if source.is_file():
            copy = self.path / name
            if not (copy.exists() and filecmp.cmp(source, copy)):
                atomic_write(copy, lambda temporary: shutil.copy2(source, temporary))
            self._names.add(name)
        return self.url(name)

    def url(self, name: str) -> str:
        return quote(os.fsencode(f"{self.path.name}/{name}"))

    def write_version(self, version: str | None) -> None:
        """Write the script that calls `pageVersion` in a live page; a last time for pages that are still open."""
        path, script = self.path / _VERSION_FILE, f'pageVersion("{version or "finished"}");\n'
        if version is not None or path.exists():
            mark_output(self.path)
            write_text(path, script)

    def remove_others(self) -> None:
        """Remove the videos that an earlier report of the same name copied and this one did not."""
        for path in self.path.glob("run-*-step-*.mp4"):
            if path.name not in self._names:
                path.unlink()


def _render(
    runs: Sequence[ReportedRun], validations: Sequence[_PlayerData], live: object, problems: Sequence[str]
) -> str:
    """Return the page as HTML; `live` has its version, and the URL of the script with the newest one."""
    names, all_plots = [run.name for run in runs], plots_of(runs)
    data = {"runs": names, "file": History.file, "metrics": METRICS, "validations": validations, "live": live}
    return render_page(
        "page.html",
        titles=names,
        runs=runs,
        problems=problems,
        data=data | {"plots": [asdict(plot) for plot in all_plots]},
        metrics=_metric_table(runs),
        not_comparable=not_comparable(names, [run.summary for run in runs]),
        training=side_by_side_settings([_describe_summary(run.summary, run.records) for run in runs], "not recorded"),
        plots=all_plots,
        settings=side_by_side_settings([run.settings for run in runs]),
        environment=side_by_side_settings([run.environment for run in runs]),
        num_warnings=sum(len(run.warnings or ()) for run in runs),
    )


def render_page(template: str, **values: object) -> str:
    """Return a page as HTML, from a template of this package and its values."""
    made = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
    return _page_environment().get_template(template).render(version=__version__, made=made, **values)


def _page_environment() -> Environment:
    loader = PackageLoader("telecine.report")
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    jinja.filters |= {
        "short": short,
        "even": lambda value: f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}",  # digits, in a column
        "breakable": lambda name: Markup("<wbr>").join(re.findall(r"[^._/]*[._/]+|[^._/]+", name)),
        "below": lambda path, folder: path.removeprefix(f"{folder.rstrip('/')}/"),
    }
    # A style sheet or script of the package must not be escaped.
    jinja.globals["asset"] = lambda name: Markup(loader.get_source(jinja, name)[0])
    return jinja


def _metric_table(runs: Sequence[ReportedRun]) -> dict[str, object]:
    by_run = [run.held_out() for run in runs]
    names = list(dict.fromkeys(name for values in by_run for name in values))
    arrows = {name: " ↓" if name.startswith("lpips") else " ↑" for name in METRICS}  # towards better values
    return {
        "labels": [metric_label(name) + arrows.get(name, "") for name in names],
        "rows": [[values.get(name) for name in names] for values in by_run],
        "has_linear": any(metric["linear"] is not None for values in by_run for metric in values.values()),
    }


def short(value: float) -> str:
    """Format a number with four significant digits."""
    return f"{value:.4g}"


def _validations(index: int, run: ReportedRun, videos: _VideoFolder) -> Iterator[_PlayerData]:
    for saved in run.validations:
        yield {
            "run": index,
            "step": saved.step,
            "clips": [_clip(index, saved, number, clip, videos) for number, clip in enumerate(saved.clips)],
            "amplification": saved.amplification,
            "best_and_worst": _best_and_worst(saved.clips),
        }


def _clip(run: int, saved: SavedValidation, number: int, clip: SavedClip, videos: _VideoFolder) -> _PlayerData:
    name = f"run-{run}-step-{saved.step:08d}-clip-{number:02d}.mp4"
    return {
        "url": videos.add(saved.folder / clip.video, name),
        "title": f"{Path(clip.source).name}, frame {clip.start}{clip.colours and f', colours: {clip.colours}'}",
        "fps": clip.fps or saved.fps,
        "metrics": {name: value if math.isfinite(value) else None for name, value in clip.metrics.items()},
        **{name: getattr(clip, name) for name in ("num_frames", "height", "width", "frame_psnr", "sha256")},
    }


def _best_and_worst(clips: list[SavedClip]) -> list[tuple[str, int]]:
    """Return the best and worst clips by PSNR and each LPIPS with two finite values, as ("best psnr", index) etc."""
    names = [name for clip in clips[:1] for name in clip.metrics if name == "psnr" or name.startswith("lpips")]
    found = []
    for name in names:
        values = {index: clip.metrics.get(name, math.nan) for index, clip in enumerate(clips)}
        order = sorted((i for i in values if math.isfinite(values[i])), key=values.__getitem__, reverse=name == "psnr")
        if len(order) > 1:
            found += [(f"best {name}", order[0]), (f"worst {name}", order[-1])]
    return found


def _describe_summary(summary: RunSummary | None, records: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Return a run's size, data, time and memory as text, and its speed without validations from its records."""
    speeds = [record["train/clips_per_second"] for record in records if "train/clips_per_second" in record]
    speed = {"clips a second": f"{median(speeds):.3g}"} if speeds else {}
    if summary is None:
        return speed
    if speeds:
        speed = {"updates a second": f"{median(speeds) / summary.clips_per_update:.3g}", **speed}
    trained = "" if summary.num_trained == summary.num_parameters else f", {summary.num_trained / 1e6:.2f} M trained"
    skipped = f", {summary.num_skipped} skipped" if summary.num_skipped else ""
    files, clips = count_files(summary.num_videos, summary.num_images), summary.validation
    return {
        "wall time": _duration(summary.seconds),
        **speed,
        **({} if summary.peak_memory is None else {"peak memory": gigabytes(summary.peak_memory)}),
        "parameters": f"{summary.num_parameters / 1e6:.2f} M{trained}",
        **({"parameters from `init`": summary.describe_copied(summary.copied)} if summary.copied else {}),
        "parameters of discriminators": f"{summary.num_disc_parameters / 1e6:.2f} M",
        "training data": f"{files}{skipped}, {summary.num_frames} frames",
        "held-out clips": f"{clips.num_clips} of {clips.num_frames} x {clips.height} x {clips.width}",
    }


def _duration(seconds: float) -> str:
    """Return a time as "2 h 5 min", "5 min 20 s" or "20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
