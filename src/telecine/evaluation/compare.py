"""Comparison of two evaluations of the same clips."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from telecine.base.checks import argument_error
from telecine.base.files import read_json, write_json
from telecine.evaluation.difference import (
    CONFIDENCE,
    NUM_RESAMPLES,
    SEED,
    Difference,
    paired_differences,
    set_difference,
)
from telecine.evaluation.evaluate import CLIPS_FILE, FRAMES_FILE, METRICS_FILE, PROTOCOL_FILE
from telecine.evaluation.plots import plot_differences, plot_frames

# Fields of the protocol that must be equal, or the figures do not compare.
MUST_MATCH = (
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
# Fields whose difference is a warning: the same clips may still have been measured in the same way.
SHOULD_MATCH = ("data", "fps", "versions")
# Maximum length of a value in an error.
MAX_VALUE_LENGTH = 60
COMPARISON_FILE = "comparison.json"
COMPARISON_PLOT = "comparison.png"
FRAMES_PLOT = "comparison_frames.png"


@dataclass(frozen=True)
class Comparison:
    """The differences of two evaluations."""

    differences: list[Difference]
    """One for each metric of both evaluations."""
    warnings: list[str]
    """Differences of the protocols that do not make the figures incomparable."""
    num_clips: int
    """Number of clips."""

    def as_dict(self) -> dict[str, object]:
        """Return the content of `comparison.json`."""
        settings = {"confidence": CONFIDENCE, "num_resamples": NUM_RESAMPLES, "seed": SEED}
        metrics = {item.name: asdict(item) | {"verdict": item.better} for item in self.differences}
        return {"num_clips": self.num_clips, **settings, "warnings": self.warnings, "metrics": metrics}


def compare(first: str | Path, second: str | Path, *, output: str | Path | None = None) -> Comparison:
    """Compare two evaluations clip by clip.

    Args:
        first: The output folder of one evaluation, A.
        second: The output folder of the other, B.
        output: A folder for comparison.json, comparison.png, and comparison_frames.png (both evaluations by frame
            position in a clip).

    Returns:
        The differences B - A with 95 % intervals (percentile bootstrap over clips with a fixed seed).

    Raises:
        FileNotFoundError: A folder lacks a file of an evaluation.
        ValueError: The two did not measure the same clips in the same way. The message names what differs.
    """
    folders = (Path(first), Path(second))
    protocols = [read_json(folder / PROTOCOL_FILE) for folder in folders]
    warnings = check_protocols(*protocols)
    names = [name for name in protocols[0]["metrics"] if name in protocols[1]["metrics"]]
    clips = [json.loads((folder / CLIPS_FILE).read_text(encoding="utf-8")) for folder in folders]
    figures = [read_json(folder / METRICS_FILE) for folder in folders]
    paired = [name for name in names if name in clips[0][0]]
    differences = paired_differences(*clips, names=paired)
    differences += [set_difference(name, *figures) for name in names if name not in paired]
    comparison = Comparison(differences, warnings, len(clips[0]))
    if output is not None:
        _write(comparison, folders, Path(output))
    return comparison


def check_protocols(first: Mapping[str, object], second: Mapping[str, object]) -> list[str]:
    """Return the harmless differences of two protocols.

    Raises:
        ValueError: A difference makes the figures incomparable, or no metric is in both.
    """
    metrics = [_table(protocol, "metrics") for protocol in (first, second)]
    shared = [name for name in metrics[0] if name in metrics[1]]
    differing = _differing_items(*(_table({"published": {}, **protocol}, "published") for protocol in (first, second)))
    differing += [
        (name, first.get(name), second.get(name)) for name in MUST_MATCH if first.get(name) != second.get(name)
    ]
    for field in ("metrics", "backbones"):
        a, b = _table(first, field), _table(second, field)
        differing += [(f"{field}.{name}", a.get(name), b.get(name)) for name in shared if a.get(name) != b.get(name)]
    if differing:
        got = "; ".join(f"{name}: {_shortened(a)} and {_shortened(b)}" for name, a, b in differing)
        remedy = "Evaluate both on the same clips with the same settings."
        raise argument_error("compare", "two evaluations with the same protocol", got, remedy)
    if not shared:
        raise argument_error("compare", "two evaluations that share a metric", "none", "Evaluate both again.")
    warnings = [_warning(name, first.get(name), second.get(name)) for name in SHOULD_MATCH]
    unshared = sorted(metrics[0].keys() ^ metrics[1].keys())
    warnings.append(f"only one has {', '.join(unshared)}" if unshared else "")
    return [warning for warning in warnings if warning]


def _differing_items(a: Mapping[str, object], b: Mapping[str, object]) -> list[tuple[str, object, object]]:
    """Return what differs between two published protocols, `{}` for none: the name, or items of the same one."""
    names = [*{**a, **b}] if a.get("name") == b.get("name") else ["name"]
    return [(f"published.{name}", a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)]


def _table(protocol: Mapping[str, object], field: str) -> Mapping[str, object]:
    """Return a field of a protocol that maps metrics to text."""
    table = protocol.get(field)
    if not isinstance(table, dict):
        raise argument_error("compare", f"evaluations with `{field}` in their protocol", repr(table), "Evaluate again.")
    return table


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}..."


def _warning(name: str, first: object, second: object) -> str:
    """Return a warning if a field differs, else an empty text."""
    if first == second:
        return ""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return f"{name}: {first} and {second}"
    keys = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    return f"{name}: " + ", ".join(f"{key} {first.get(key)} and {second.get(key)}" for key in keys)


def _write(comparison: Comparison, folders: Sequence[Path], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    header = {"A": str(folders[0]), "B": str(folders[1])}
    write_json(output / COMPARISON_FILE, header | comparison.as_dict())
    title = f"B - A over {comparison.num_clips} clips, {CONFIDENCE:.0%} intervals; B is better to the right of 0"
    plot_differences(comparison.differences, title, output / COMPARISON_PLOT)
    curves = {label: read_json(folder / FRAMES_FILE) for label, folder in zip("AB", folders, strict=True)}
    plot_frames(curves, output / FRAMES_PLOT)
