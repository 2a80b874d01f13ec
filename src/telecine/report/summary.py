"""How large a run is, what it is trained and validated on, and what it took: `summary.json` in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from telecine.base.checks import argument_error
from telecine.base.devices import gigabytes
from telecine.base.files import read_json, write_json
from telecine.runs.layout import SUMMARY_FILE


@dataclass(frozen=True)
class ValidationClips:
    """The clips that a run validates on. Metrics of other clips do not compare."""

    num_clips: int
    num_frames: int
    height: int
    width: int
    sha256: str
    """Hash of the pixels of all clips, in order."""


@dataclass(frozen=True)
class RunSummary:
    """The content of `summary.json`."""

    num_parameters: int
    """Of the autoencoder."""
    num_trained: int
    """Those of them that are trained."""
    num_disc_parameters: int
    """Of the discriminators."""
    num_videos: int
    """Videos that are used."""
    num_skipped: int
    """Files that are not."""
    num_frames: int
    """Frames to train on."""
    clips_per_update: int
    validation: ValidationClips
    seconds: float
    """How long the run took, with its validations; the times of a run that was resumed are added."""
    peak_memory: int | None
    """Bytes at the peak of the first process: of the GPU as PyTorch allocated them, on a CPU of the process. None on
    other devices."""
    num_images: int = 0
    """Still images that are used."""


def write_summary(run: Path, summary: RunSummary) -> None:
    """Write `summary.json` into a run's folder."""
    write_json(run / SUMMARY_FILE, asdict(summary))


def read_summary(run: Path) -> RunSummary | None:
    """Return what `write_summary` wrote, or None if the file does not exist.

    Raises:
        ValueError: The file is damaged.
    """
    path = run / SUMMARY_FILE
    if not path.exists():
        return None
    values = read_json(path)
    try:
        return RunSummary(**values | {"validation": ValidationClips(**values["validation"])})
    except (KeyError, TypeError) as error:
        got = f"other content ({error})"
        raise argument_error(str(path), "the summary of a run", got, f"Remove {path}.") from error


def describe_summary(summary: RunSummary | None, records: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Return a run's size, data, time and memory as text, and its speed without validations from its records."""
    lines: dict[str, str] = {}
    speeds = [record["train/clips_per_second"] for record in records if "train/clips_per_second" in record]
    if summary is not None:
        lines["wall time"] = duration(summary.seconds)
        if speeds:
            lines["updates a second"] = f"{median(speeds) / summary.clips_per_update:.3g}"
    if speeds:
        lines["clips a second"] = f"{median(speeds):.3g}"
    if summary is None:
        return lines
    if summary.peak_memory is not None:
        lines["peak memory"] = gigabytes(summary.peak_memory)
    trained = "" if summary.num_trained == summary.num_parameters else f", {_millions(summary.num_trained)} trained"
    lines["parameters"] = f"{_millions(summary.num_parameters)}{trained}"
    lines["parameters of discriminators"] = _millions(summary.num_disc_parameters)
    skipped = f", {summary.num_skipped} skipped" if summary.num_skipped else ""
    files = count_files(summary.num_videos, summary.num_images)
    lines["training data"] = f"{files}{skipped}, {summary.num_frames} frames"
    clips = summary.validation
    lines["held-out clips"] = f"{clips.num_clips} of {clips.num_frames} x {clips.height} x {clips.width}"
    return lines


def count_files(num_videos: int, num_images: int) -> str:
    """Return numbers of files as "3 videos", "1 image" or "3 videos and 1 image"."""
    counts = ((num_videos, "video"), (num_images, "image"))
    return " and ".join(count(number, kind) for number, kind in counts if number)


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def not_comparable(names: Sequence[str], summaries: Sequence[RunSummary | None]) -> list[str]:
    """Return why the metrics of runs do not compare with those of the first, one sentence for each such run."""
    reasons = []
    first = summaries[0]
    for name, summary in zip(names[1:], summaries[1:], strict=True):
        if first is None or summary is None:
            unknown = name if summary is None else names[0]
            reasons.append(f"{names[0]} and {name}: the held-out clips of {unknown} were not recorded")
        elif first.validation != summary.validation:
            reasons.append(f"{names[0]} and {name}: {_difference(first.validation, summary.validation)}")
    return reasons


def _difference(first: ValidationClips, second: ValidationClips) -> str:
    a, b = asdict(first), asdict(second)
    differing = [name for name in a if a[name] != b[name]]
    texts = [f"{name} {a[name]} and {b[name]}" for name in differing if name != "sha256"]
    return ", ".join(texts) or "other pixels in the held-out clips"


def duration(seconds: float) -> str:
    """Return a time as "2 h 5 min", "5 min 20 s" or "20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f} M"
