"""The content of a run's folder, as the report shows it."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from telecine.base.checks import argument_error
from telecine.runs import Run
from telecine.runs.history import History, TrainingWarning, validations
from telecine.runs.run import RunSummary, SavedValidation
from telecine.runs.settings import flat_settings, read_saved_settings

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportedRun:
    """A run as the page shows it."""

    name: str  # a name that is unique on the page
    records: list[dict[str, float]]
    settings: dict[str, str]
    environment: dict[str, str]
    warnings: list[TrainingWarning] | None  # None if they were not recorded
    validations: list[SavedValidation]  # the validations whose clips were kept, oldest first
    summary: RunSummary | None = None  # None if it was not recorded
    problems: Sequence[str] = ()  # why validations are left out

    @property
    def perceptual_net(self) -> str | None:
        """The network of the perceptual loss, or None if its settings do not say."""
        name = "objective.perceptual.net"
        return self.settings.get(name) or self.settings.get(f"{name}.target")

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

    def held_out(self) -> dict[str, dict[str, float | None]]:
        """Return each metric of the held-out clips as its "first" and "last" value and, if measured, the "linear" one.

        The latter is that of the linear baseline.
        """
        validated = validations(self.records)
        first, last = (validated[0], validated[-1]) if validated else ({}, {})
        names = [name.removeprefix("val/") for name in first if name.startswith("val/") and name in last]
        return {
            name: {"first": first[f"val/{name}"], "last": last[f"val/{name}"], "linear": last.get(f"linear/{name}")}
            for name in names
        }


def read_runs(folders: Sequence[Path]) -> tuple[list[ReportedRun], list[str]]:
    """Return the runs that can be read, and what cannot be, which is logged; raise an error if no run can be read."""
    for folder in folders:
        if not Run(folder).exists():
            got = f"{str(folder)!r}, which {'has none' if folder.is_dir() else 'is not a folder'}"
            raise argument_error("runs", f"folders of runs, with {History.file}", got, "Pass the run's `--output_dir`.")
    names = _run_names(folders)
    read = [value_or_error(_read_run, *each) for each in zip(folders, names, strict=True)]
    reported = [each for each in read if isinstance(each, ReportedRun)]
    errors = {name: each for name, each in zip(names, read, strict=True) if isinstance(each, Exception)}
    if not reported:
        raise next(iter(errors.values()))
    found = [*errors.items(), *((run.name, problem) for run in reported for problem in run.problems)]
    for problem in (problems := [f"{name}: {problem}" for name, problem in found]):
        logger.warning("not in the report: %s", problem)
    return reported, problems


def _read_run(folder: Path, name: str) -> ReportedRun:
    """Read a run's folder; raise a `ValueError` if a file is damaged. `problems` name damaged validations."""
    run = Run(folder)
    run.check_files()
    read = [value_or_error(SavedValidation.read, path) for _, path in run.validation_folders()]
    return ReportedRun(
        name=name,
        records=run.history.read(),
        settings=flat_settings(read_saved_settings(folder)),
        environment=run.environment(),
        warnings=run.warnings.all(),
        validations=[each for each in read if isinstance(each, SavedValidation)],
        summary=run.summary(),
        problems=[str(each) for each in read if isinstance(each, Exception)],
    )


def value_or_error(read: Callable[..., T], *arguments: object) -> T | OSError | ValueError:
    """Return what a function returns, or its error about a file that is damaged or cannot be read."""
    try:
        return read(*arguments)
    except FileNotFoundError:  # a run that resumes removes its later validations
        raise
    except (OSError, ValueError) as error:
        return error


def _run_names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of each folder's path, as many as make the names unique."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise argument_error("runs", "different folders", str([str(f) for f in folders]), "Pass each folder once.")
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(part[-length:]) for part in parts]


def not_comparable(names: Sequence[str], summaries: Sequence[RunSummary | None]) -> list[str]:
    """Return why the metrics of runs do not compare with those of the first, one sentence for each such run."""
    reasons, first = [], summaries[0]
    for name, summary in zip(names[1:], summaries[1:], strict=True):
        if first is None or summary is None:
            unknown = name if summary is None else names[0]
            reasons.append(f"{names[0]} and {name}: the held-out clips of {unknown} were not recorded")
        elif first.validation != summary.validation:
            a, b = asdict(first.validation), asdict(summary.validation)
            differing = [f"{key} {a[key]} and {b[key]}" for key in a if a[key] != b[key] and key != "sha256"]
            reasons.append(f"{names[0]} and {name}: {', '.join(differing) or 'other pixels in the held-out clips'}")
    return reasons
