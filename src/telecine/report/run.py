"""The content of a run's folder, as the report shows it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from telecine.base.checks import argument_error
from telecine.report.clips import SavedClip, SavedValidation, read_validations
from telecine.report.settings import perceptual_net, read_environment, read_settings
from telecine.report.summary import RunSummary, read_summary
from telecine.runs.layout import HEALTH_FILE, METRICS_FILE, VIDEO_FILE


@dataclass(frozen=True)
class TrainingWarning:
    """One warning of a training run."""

    step: int
    rule: str
    message: str
    """What was observed."""
    remedy: str
    """What to try."""


class HeldOutMetric(NamedTuple):
    """A metric of the held-out clips."""

    name: str
    first: float
    """At the first validation."""
    last: float
    """At the last validation."""
    linear: float | None
    """That of the linear baseline; None if the run did not measure it."""


@dataclass(frozen=True)
class ReportedRun:
    """A run as the page shows it."""

    name: str
    """A name that is unique on the page."""
    folder: Path
    records: list[dict[str, float]]
    """The records of `metrics.jsonl`."""
    settings: dict[str, str]
    environment: dict[str, str]
    warnings: list[TrainingWarning] | None
    """The warnings of the run; None if it has no `health.jsonl`."""
    validations: list[SavedValidation]
    """The validations whose clips were kept, oldest first."""
    summary: RunSummary | None = None
    """None if the run has no `summary.json`."""

    @property
    def perceptual_net(self) -> str | None:
        """The network of the perceptual loss, or None if its settings do not say."""
        return perceptual_net(self.settings)

    @property
    def steps(self) -> int:
        """The last step in the records."""
        return max((int(record["step"]) for record in self.records), default=0)

    @property
    def unfinished(self) -> str:
        """Of how many steps these are, and at which the metrics were measured; empty for a run that is done."""
        text, measured = self.settings.get("steps", ""), validations(self.records)
        total = int(text) if re.fullmatch(r"\d{1,12}", text) else 0  # the file may be anyone's
        if total <= self.steps:
            return ""
        return f"of {total}" + (f", measured at {int(measured[-1]['step'])}" if measured else "")

    def held_out(self) -> list[HeldOutMetric]:
        """Return the metrics of the held-out clips."""
        validated = validations(self.records)
        if not validated:
            return []
        first, last = validated[0], validated[-1]
        names = [name.removeprefix("val/") for name in first if name.startswith("val/") and name in last]
        return [
            HeldOutMetric(name, first[f"val/{name}"], last[f"val/{name}"], last.get(f"linear/{name}")) for name in names
        ]

    def side_by_side_video(self) -> Path | None:
        """Return the side-by-side video of the last validation, or None."""
        path = self.folder / VIDEO_FILE
        return path if path.is_file() else None


def read_run(folder: Path, name: str) -> ReportedRun:
    """Read the folder of a run.

    Raises:
        ValueError: It is not the folder of a run, or one of its files is damaged.
    """
    if not (folder / METRICS_FILE).is_file():
        got = f"{str(folder)!r}, which {'has none' if folder.is_dir() else 'is not a folder'}"
        raise argument_error("runs", f"folders of runs, with {METRICS_FILE}", got, "Pass the run's `--output_dir`.")
    return ReportedRun(
        name=name,
        folder=folder,
        records=read_records(folder / METRICS_FILE),
        settings=read_settings(folder),
        environment=read_environment(folder),
        warnings=_read_warnings(folder / HEALTH_FILE),
        validations=read_validations(folder),
        summary=read_summary(folder),
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file with one per line, or nothing if the file does not exist.

    A last line without a newline is dropped: its writing was interrupted.

    Raises:
        ValueError: Another line is not a JSON object.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [_parse_line(path, number, line) for number, line in enumerate(lines[:-1], 1) if line]


def _parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    remedy = "Remove the line."
    try:
        value = json.loads(line)
    except ValueError as error:
        got = f"invalid JSON ({error})"
        raise argument_error(f"{path}, line {number}", "a JSON object", got, remedy) from error
    if not isinstance(value, dict):
        raise argument_error(f"{path}, line {number}", "a JSON object", value, remedy)
    return value


def read_records(path: Path) -> list[dict[str, float]]:
    """Return the records of a run's `metrics.jsonl`, oldest first: `step`, and the logged values by name.

    Raises:
        ValueError: A line is not a JSON object.
    """
    return read_lines(path)


def validations(records: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the records of validations."""
    return [record for record in records if "val/psnr" in record]


def run_names(folders: list[Path]) -> list[str]:
    """Return the last parts of each folder's path, as many as make the names unique.

    Raises:
        ValueError: A folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise argument_error("runs", "different folders", str([str(f) for f in folders]), "Pass each folder once.")
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(part[-length:]) for part in parts]


def best_and_worst(clips: list[SavedClip]) -> list[tuple[str, int]]:
    """Return the best and worst clips by PSNR and each LPIPS, as ("best psnr", index) and so on.

    Only finite values are compared. A metric is left out if fewer than two clips have one.
    """
    if not clips:
        return []
    names = [name for name in clips[0].metrics if name == "psnr" or name.startswith("lpips")]
    found = []
    for name in names:
        values = {index: clip.metrics.get(name, math.nan) for index, clip in enumerate(clips)}
        values = {index: value for index, value in values.items() if math.isfinite(value)}
        order = sorted(values, key=values.__getitem__, reverse=name == "psnr")
        if len(order) > 1:
            found += [(f"best {name}", order[0]), (f"worst {name}", order[-1])]
    return found


def _read_warnings(path: Path) -> list[TrainingWarning] | None:
    if not path.exists():
        return None
    try:
        return [
            TrainingWarning(line["step"], line["rule"], line["message"], line["remedy"]) for line in read_lines(path)
        ]
    except KeyError as error:
        contract = "lines with step, rule, message and remedy"
        raise argument_error(str(path), contract, f"a line without {error}", "Remove the line.") from error
