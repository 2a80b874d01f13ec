"""Everything that the folder of a run holds for the page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from telecine.report.clips import KeptClip, KeptValidation, read_validations
from telecine.report.environment import read_environment
from telecine.report.records import read_lines, read_records, validations
from telecine.report.settings import read_settings
from telecine.runs import HEALTH_FILE, METRICS_FILE, VIDEO_FILE
from telecine.shapes import argument_error


@dataclass(frozen=True)
class Warned:
    """One warning that training gave."""

    step: int
    rule: str
    message: str
    """What was seen."""
    remedy: str
    """What to try."""


@dataclass(frozen=True)
class ReportedRun:
    """A run as the page shows it."""

    name: str
    """Tells it from the others."""
    folder: Path
    records: list[dict[str, float]]
    """Lines of `metrics.jsonl`."""
    settings: dict[str, str]
    environment: dict[str, str]
    warnings: list[Warned] | None
    """What training warned of; None if nobody looked."""
    validations: list[KeptValidation]
    """Those whose clips are kept, oldest first."""

    @property
    def steps(self) -> int:
        """The last step on record."""
        return max((int(record["step"]) for record in self.records), default=0)

    def held_out(self) -> list[tuple[str, float, float]]:
        """Return each held-out metric with its first and its last value."""
        measured = validations(self.records)
        if not measured:
            return []
        first, last = measured[0], measured[-1]
        names = [name for name in first if name.startswith("val/") and name in last]
        return [(name.removeprefix("val/"), first[name], last[name]) for name in names]

    def video(self) -> Path | None:
        """Return the picture that validation wrote of a few clips, or None."""
        path = self.folder / VIDEO_FILE
        return path if path.is_file() else None


def read_run(folder: Path, name: str) -> ReportedRun:
    """Read the folder of a run.

    Raises:
        ValueError: If it is not that of a run, or if one of its files was damaged.
    """
    if not (folder / METRICS_FILE).is_file():
        got = f"{str(folder)!r}, which {'has none' if folder.is_dir() else 'is not a folder'}"
        raise argument_error("runs", f"folders of runs, with {METRICS_FILE}", got, "Pass what `--output_dir` was.")
    return ReportedRun(
        name=name,
        folder=folder,
        records=read_records(folder / METRICS_FILE),
        settings=read_settings(folder),
        environment=read_environment(folder),
        warnings=_read_warnings(folder / HEALTH_FILE),
        validations=read_validations(folder),
    )


def run_names(folders: list[Path]) -> list[str]:
    """Return the shortest ends of the folders' paths that tell them apart.

    Raises:
        ValueError: If a folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise argument_error("runs", "different folders", f"{[str(f) for f in folders]}", "Name each of them once.")
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(part[-length:]) for part in parts]


def best_and_worst(clips: list[KeptClip]) -> list[tuple[str, int]]:
    """Return which clips stand out, as (what for, index): by PSNR, where larger is better, and LPIPS, where smaller.

    Figures that are not finite are left out, and nothing stands out where fewer than two clips have one.
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


def _read_warnings(path: Path) -> list[Warned] | None:
    if not path.exists():
        return None
    try:
        return [Warned(line["step"], line["rule"], line["message"], line["remedy"]) for line in read_lines(path)]
    except KeyError as error:
        contract = "lines with step, rule, message and remedy"
        raise argument_error(str(path), contract, f"one without {error}", "Remove the line.") from error
