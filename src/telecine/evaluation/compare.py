"""Compare two evaluations of the same clips."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from telecine.evaluation.difference import (
    CONFIDENCE,
    NUM_RESAMPLES,
    SEED,
    Difference,
    paired_differences,
    set_difference,
)
from telecine.evaluation.draw import draw_differences, draw_frames
from telecine.evaluation.evaluate import CLIPS_FILE, FRAMES_FILE, METRICS_FILE, PROTOCOL_FILE
from telecine.files import read_json, write_json
from telecine.shapes import argument_error

# Where these differ, the figures are of different things.
MUST_AGREE = (
    "num_clips",
    "num_frames",
    "height",
    "width",
    "frame_stride",
    "resize",
    "crop",
    "value_range",
    "reconstruction",
    "clips_sha256",
)
MAX_SHOWN = 60
# Where these differ, the same clips may still have been measured in the same way.
SHOULD_AGREE = ("data", "fps", "versions")
COMPARISON_FILE = "comparison.json"
COMPARISON_PICTURE = "comparison.png"
FRAMES_PICTURE = "comparison_frames.png"


@dataclass(frozen=True)
class Comparison:
    """All differences of two evaluations."""

    differences: list[Difference]
    """One for each metric that both have."""
    warnings: list[str]
    """What differs between their protocols without making them incomparable."""
    num_clips: int
    """Over how many clips."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        settings = {"confidence": CONFIDENCE, "num_resamples": NUM_RESAMPLES, "seed": SEED}
        metrics = {item.name: asdict(item) | {"verdict": item.verdict} for item in self.differences}
        return {"num_clips": self.num_clips, **settings, "warnings": self.warnings, "metrics": metrics}


def compare(first: str | Path, second: str | Path, *, output: str | Path | None = None) -> Comparison:
    """Compare two evaluations clip by clip.

    Args:
        first: The output folder of one evaluation, A.
        second: That of the other, B.
        output: A folder for comparison.json, comparison.png, and comparison_frames.png, the course of both over the
            frames of a clip.

    Returns:
        The differences B - A with 95 % intervals (percentile bootstrap over clips, seeded: the same at every call).

    Raises:
        FileNotFoundError: a folder lacks a file of an evaluation.
        ValueError: the two did not measure the same clips in the same way; the message names what differs.
    """
    folders = (Path(first), Path(second))
    protocols = [read_json(folder / PROTOCOL_FILE) for folder in folders]
    warnings = check_protocols(*protocols)
    names = [name for name in protocols[0]["metrics"] if name in protocols[1]["metrics"]]
    clips = [_read_clips(folder / CLIPS_FILE) for folder in folders]
    figures = [read_json(folder / METRICS_FILE) for folder in folders]
    paired = [name for name in names if name in clips[0][0]]
    differences = paired_differences(*clips, names=paired)
    differences += [set_difference(name, *figures) for name in names if name not in paired]
    comparison = Comparison(differences, warnings, len(clips[0]))
    if output is not None:
        _write(comparison, folders, Path(output))
    return comparison


def check_protocols(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return what differs without harm, or raise a `ValueError` that names what makes two protocols incomparable."""
    apart = [name for name in MUST_AGREE if first.get(name) != second.get(name)]
    shared = [name for name in first["metrics"] if name in second["metrics"]]
    for table in ("metrics", "backbones"):
        apart += [f"{table}.{name}" for name in shared if first[table].get(name) != second[table].get(name)]
    if apart:
        got = "; ".join(f"{name}: {_shown(first, name)} and {_shown(second, name)}" for name in apart)
        remedy = "Evaluate both on the same clips with the same settings."
        raise argument_error("compare", "two evaluations by one protocol", got, remedy)
    if not shared:
        raise argument_error("compare", "two evaluations that share a metric", "none", "Evaluate both again.")
    warnings = [_warning(name, first, second) for name in SHOULD_AGREE if first.get(name) != second.get(name)]
    alone = sorted(first["metrics"].keys() ^ second["metrics"].keys())
    return [*warnings, f"only one has {', '.join(alone)}"] if alone else warnings


def _read_clips(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def _shown(protocol: Mapping[str, Any], name: str) -> str:
    table, _, key = name.partition(".")
    value = str(protocol.get(table, {}).get(key) if key else protocol.get(name))
    return value if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]}..."


def _warning(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    ours, theirs = first.get(name), second.get(name)
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return f"{name}: {ours} and {theirs}"
    keys = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    return f"{name}: " + ", ".join(f"{key} {ours.get(key)} and {theirs.get(key)}" for key in sorted(keys))


def _write(comparison: Comparison, folders: Sequence[Path], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    stated = {"A": str(folders[0]), "B": str(folders[1])} | comparison.as_dict()
    write_json(output / COMPARISON_FILE, stated)
    words = f"B - A over {comparison.num_clips} clips, {CONFIDENCE:.0%} intervals; right of the line, B is better"
    draw_differences(comparison.differences, words, output / COMPARISON_PICTURE)
    curves = {label: read_json(folder / FRAMES_FILE) for label, folder in zip("AB", folders, strict=True)}
    draw_frames(curves, output / FRAMES_PICTURE)
