"""The report: one page that needs no network, and its videos in a folder beside it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from telecine import __version__
from telecine.data import index_video
from telecine.files import write_aside
from telecine.report.clips import KeptClip, KeptValidation
from telecine.report.run import ReportedRun, best_and_worst, read_run, run_names
from telecine.report.series import Plot, plots, table
from telecine.report.settings import side_by_side_settings
from telecine.runs import REPORT_FILE
from telecine.shapes import argument_error

# What each figure is called, and where better is; others go by the name that they were logged under.
METRIC_LABELS = {
    "psnr": "PSNR, dB ↑",
    "ssim": "SSIM ↑",
    "lpips_alex": "LPIPS, Alex ↓",
    "lpips_vgg": "LPIPS, VGG ↓",
}


def write_report(runs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write a page that shows one run, or several over each other: clips, curves, settings, environment, warnings.

    Args:
        runs: Folders of runs.
        output: The page, an `.html` file. Its videos are copied to a folder beside it, `report_videos` for
            `report.html`. By default `report.html`, in the run's folder if it is one run, in the current one else.

    Returns:
        The page.

    Raises:
        ValueError: If a folder is not that of a run, or the output is no HTML file.
    """
    folders = [Path(run) for run in runs]
    if not folders:
        raise argument_error("runs", "at least one run's folder", "none", "Pass what `--output_dir` was.")
    page = Path(output) if output is not None else (folders[0] if len(folders) == 1 else Path()) / REPORT_FILE
    if page.suffix != ".html" or page.is_dir():
        raise argument_error("output", "the name of an .html file", repr(str(page)), "Add a file name.")
    reported = [read_run(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]
    page.parent.mkdir(parents=True, exist_ok=True)
    videos = VideoFolder(page)
    shown = [validation for index, run in enumerate(reported) for validation in _validations(index, run, videos)]
    text = render(reported, shown)
    write_aside(page, lambda aside: aside.write_text(text, encoding="utf-8"))
    videos.remove_others()
    return page


class VideoFolder:
    """The folder of a page's videos, which move with it."""

    def __init__(self, page: Path) -> None:
        self.path = page.with_name(f"{page.stem}_videos")
        self._names: set[str] = set()

    def add(self, source: Path, name: str) -> str:
        """Copy a video, and return its address as seen from the page, whose player says so of one that is gone."""
        self.path.mkdir(exist_ok=True)
        if source.is_file():
            write_aside(self.path / name, lambda aside: shutil.copyfile(source, aside))
            self._names.add(name)
        return quote(f"{self.path.name}/{name}")

    def remove_others(self) -> None:
        """Remove what an earlier report of the same name has copied and this one did not."""
        for path in self.path.glob("run-*-step-*.mp4"):
            if path.name not in self._names:
                path.unlink()


def render(runs: Sequence[ReportedRun], shown: Sequence[dict[str, Any]]) -> str:
    """Return the page as HTML.

    Args:
        runs: What is shown.
        shown: The validations with their clips, as the player wants them.
    """
    environment = Environment(
        loader=PackageLoader("telecine.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"figure": figure, "even": even}
    environment.globals["asset"] = lambda name: Markup(_source(environment, name))
    drawn = plots([run.records for run in runs])
    names = [run.name for run in runs]
    data = {"runs": names, "plots": [_as_data(plot) for plot in drawn], "validations": shown}
    return environment.get_template("page.html").render(
        runs=runs,
        data=data,
        figures=held_out(runs),
        table=table(drawn, names),
        settings=side_by_side_settings([run.settings for run in runs]),
        environment=side_by_side_settings([run.environment for run in runs]),
        num_warnings=sum(len(run.warnings or ()) for run in runs),
        version=__version__,
        made=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    )


def held_out(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """Return the held-out figures as a table: labels, and for each run its first and last values, None without one."""
    measured = [{name: (first, last) for name, first, last in run.held_out()} for run in runs]
    names = list(dict.fromkeys(name for values in measured for name in values))
    return {
        "labels": [METRIC_LABELS.get(name, name) for name in names],
        "rows": [[values.get(name) for name in names] for values in measured],
    }


def figure(value: float) -> str:
    """Return a number of any size in four digits."""
    return f"{value:.4g}"


def even(value: float) -> str:
    """Return a number for a column in which all of about one size have as many digits."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _source(environment: Environment, name: str) -> str:
    """Return a style sheet or script of the package, which is not to be escaped."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _as_data(plot: Plot) -> dict[str, Any]:
    """Return a plot as plain values, without what is empty."""
    values = asdict(plot)
    for series in values["series"]:
        series["curves"] = [{k: v for k, v in curve.items() if v != []} for curve in series["curves"]]
    return values


def _validations(index: int, run: ReportedRun, videos: VideoFolder) -> Iterator[dict[str, Any]]:
    """Yield what the player shows of a run: its kept validations or, of one that kept none, its one picture."""
    for kept in run.validations:
        clips = [_clip(index, kept, number, clip, videos) for number, clip in enumerate(kept.clips)]
        yield _validation(index, kept.step, clips, kept.amplification, best_and_worst(kept.clips))
    picture = run.video()
    if not run.validations and picture is not None:
        yield _validation(index, run.steps, [_whole(index, run, picture, videos)], None, [])


def _validation(
    run: int, step: int, clips: list[dict[str, Any]], amplification: float | None, standing_out: list[tuple[str, int]]
) -> dict[str, Any]:
    return {"run": run, "step": step, "clips": clips, "amplification": amplification, "standingOut": standing_out}


def _clip(run: int, kept: KeptValidation, number: int, clip: KeptClip, videos: VideoFolder) -> dict[str, Any]:
    name = f"run-{run}-step-{kept.step:08d}-clip-{number:02d}.mp4"
    return {
        "url": videos.add(kept.folder / clip.video, name),
        "title": f"{Path(clip.source).name}, frame {clip.start}",
        "panes": 3,
        "numFrames": clip.num_frames,
        "fps": kept.fps,
        "height": clip.height,
        "width": clip.width,
        "metrics": {name: value if math.isfinite(value) else None for name, value in clip.metrics.items()},
        "framePsnr": clip.frame_psnr,
    }


def _whole(run: int, reported: ReportedRun, picture: Path, videos: VideoFolder) -> dict[str, Any]:
    """Describe a video in which several clips and their labels are one picture."""
    info = index_video(picture)
    return {
        "url": videos.add(picture, f"run-{run}-step-{reported.steps:08d}-all.mp4"),
        "title": "a few clips together",
        "panes": 1,
        "numFrames": info.num_frames,
        "fps": info.fps,
        "height": info.height,
        "width": info.width,
        "metrics": {},
        "framePsnr": [],
    }
