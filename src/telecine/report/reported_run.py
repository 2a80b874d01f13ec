"""The content of a run's folder, as the report shows it."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from telecine.base.checks import argument_error, count_files, in_millions
from telecine.base.devices import in_gib
from telecine.base.terminal import describe_duration
from telecine.runs import Run
from telecine.runs.history import History, TrainingWarning, validation_records
from telecine.runs.saved_clips import SavedValidation
from telecine.runs.saved_settings import flat_settings, read_saved_settings
from telecine.runs.summary import RunSummary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOutMetric:
    """A metric of the held-out clips."""

    first: float
    """At the first validation."""
    last: float
    """At the last validation."""
    linear: float | None
    """Of the linear baseline; None if it was not measured."""
    teacher: float | None = None
    """Of a student's teacher; None for a model without one."""


@dataclass(frozen=True)
class ReportedRun:
    """A run as the page shows it."""

    name: str
    """A name that is unique on the page."""
    records: list[dict[str, float]]
    settings: dict[str, str]
    environment: dict[str, str]
    warnings: list[TrainingWarning] | None
    """None if they were not recorded."""
    validations: list[SavedValidation]
    """The validations whose clips were kept, oldest first."""
    summary: RunSummary | None = None
    """None if it was not recorded."""
    problems: Sequence[str] = ()
    """Why validations are left out."""
    checkpoint_step: int = 0
    """The step of the newest checkpoint, or 0."""

    @property
    def perceptual_net(self) -> str | None:
        """The network of the perceptual loss, or None if its settings do not say."""
        name = "objective.perceptual.net"
        return self.settings.get(name) or self.settings.get(f"{name}.target")

    @property
    def steps(self) -> int:
        """The last step in the records, or of the checkpoint of a run that was stopped between two records."""
        last_record = max((int(record["step"]) for record in self.records), default=0)
        return max(last_record, self.checkpoint_step)

    @property
    def unfinished(self) -> str:
        """A text with the planned steps and the step of the metrics; empty for a finished run."""
        text = self.settings.get("steps", "")
        if not re.fullmatch(r"\d{1,12}", text) or int(text) <= self.steps:
            # The file may be anyone's.
            return ""
        validated = validation_records(self.records)
        if not validated:
            return f"of {int(text)}"
        return f"of {int(text)}, measured at {int(validated[-1]['step'])}"

    def held_out(self) -> dict[str, HeldOutMetric]:
        """Return the metrics of the held-out clips by name; only of the present clips, if these have changed."""
        validated = validation_records(self.records)
        if not validated:
            return {}
        if self.summary is not None:
            validated = self.summary.comparable(validated)
        first = validated[0]
        last = validated[-1]
        metrics = {}
        for key in first:
            name = key.removeprefix("val/")
            if key.startswith("val/") and key in last:
                metrics[name] = HeldOutMetric(
                    first=first[key],
                    last=last[key],
                    linear=last.get(f"linear/{name}"),
                    teacher=last.get(f"teacher/{name}"),
                )
        return metrics


def read_runs(folders: Sequence[Path]) -> tuple[list[ReportedRun], list[str]]:
    """Return the runs that can be read, and a sentence about each file that is damaged, which is logged, too.

    Raises:
        ValueError: A folder is not that of a run, or is given twice, or no run can be read.
        OSError: No run can be read.
    """
    for folder in folders:
        if not Run(folder).exists():
            reason = "has none" if folder.is_dir() else "is not a folder"
            contract = f"folders of runs, with {History.file}"
            got = f"{str(folder)!r}, which {reason}"
            raise argument_error("runs", contract, got, "Pass the run's `--output_dir`.")
    runs = []
    errors = []
    problems = []
    for folder, name in zip(folders, unique_names(folders), strict=True):
        try:
            run = read_run(folder, name)
        except FileNotFoundError:  # a run that resumes removes its later validations
            raise
        except (OSError, ValueError) as error:
            errors.append(error)
            problems.append(f"{name}: {error}")
            continue
        runs.append(run)
        problems.extend(f"{name}: {problem}" for problem in run.problems)
    if not runs:
        raise errors[0]
    for problem in problems:
        logger.warning("not in the report: %s", problem)
    return runs, problems


def read_run(folder: Path, name: str) -> ReportedRun:
    """Read a run's folder. Its `problems` name validations that are damaged.

    Raises:
        ValueError: Another file is damaged.
        OSError: A file cannot be read.
    """
    run = Run(folder)
    run.check_files()
    validations = []
    problems = []
    for _, path in run.validation_folders():
        try:
            validations.append(SavedValidation.read(path))
        except FileNotFoundError:  # a run that resumes removes its later validations
            raise
        except (OSError, ValueError) as error:
            problems.append(str(error))
    return ReportedRun(
        name=name,
        records=run.history.read(),
        settings=flat_settings(read_saved_settings(folder)),
        environment=run.environment(),
        warnings=run.warnings.all(),
        validations=validations,
        summary=run.summary(),
        problems=problems,
        checkpoint_step=max((step for step, _ in run.checkpoints.all()), default=0),
    )


def unique_names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of each folder's path, as many as make the names unique.

    Raises:
        ValueError: Two folders are the same.
    """
    paths = [folder.resolve().parts for folder in folders]
    if len(set(paths)) < len(paths):
        names = [str(folder) for folder in folders]
        raise argument_error("runs", "different folders", str(names), "Pass each folder once.")
    length = 1
    while len({parts[-length:] for parts in paths}) < len(paths):
        length += 1
    return ["/".join(parts[-length:]) for parts in paths]


def not_comparable(names: Sequence[str], summaries: Sequence[RunSummary | None]) -> list[str]:
    """Return why the metrics of runs do not compare with those of the first, one sentence for each such run."""
    reasons = []
    first = summaries[0]
    for name, summary in zip(names[1:], summaries[1:], strict=True):
        if first is None or summary is None:
            unrecorded = names[0] if first is None and summary is not None else name
            reasons.append(
                f"{names[0]} and {name}: the held-out clips of {unrecorded} were not recorded"
            )
        elif first.validation != summary.validation:
            differences = []
            clips = asdict(summary.validation)
            for key, value in asdict(first.validation).items():
                if value != clips[key] and key != "sha256":
                    differences.append(f"{key} {value} and {clips[key]}")
            difference = ", ".join(differences) or "other pixels in the held-out clips"
            reasons.append(f"{names[0]} and {name}: {difference}")
    return reasons


def describe_training(
    summary: RunSummary | None, records: Sequence[Mapping[str, float]]
) -> dict[str, str]:
    """Return a run's time, speed, memory, size and data as text.

    The speed is the median of the records, without validations. Without a summary, it is all that is returned.
    """
    speeds = [
        record["train/clips_per_second"] for record in records if "train/clips_per_second" in record
    ]
    rows = {}
    if summary is not None:
        rows["wall time"] = describe_duration(summary.seconds)
        if speeds:
            rows["updates a second"] = f"{median(speeds) / summary.clips_per_update:.3g}"
    if speeds:
        rows["clips a second"] = f"{median(speeds):.3g}"
    if summary is None:
        return rows

    if summary.peak_memory is not None:
        rows["peak memory"] = in_gib(summary.peak_memory)
    rows["parameters"] = in_millions(summary.num_parameters)
    if summary.num_trained != summary.num_parameters:
        rows["parameters"] += f", {in_millions(summary.num_trained)} trained"
    if summary.copied:
        rows["parameters from `init`"] = summary.describe_copied(summary.copied)
    rows["parameters of discriminators"] = in_millions(summary.num_disc_parameters)
    files = count_files(summary.num_videos, summary.num_images)
    if summary.num_skipped:
        files += f", {summary.num_skipped} skipped"
    rows["training data"] = f"{files}, {summary.num_frames} frames"
    if summary.held_out:
        rows["held out"] = summary.held_out
    clips = summary.validation
    rows["held-out clips"] = (
        f"{clips.num_clips} of {clips.num_frames} x {clips.height} x {clips.width}"
    )
    return rows
