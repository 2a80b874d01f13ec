"""The lines that a run records while it trains: its logged values, and the warnings about them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from telecine.base.checks import argument_error
from telecine.base.files import atomic_write

_FRAME_GRADIENT = "train/frame_gradient_"


@dataclass(frozen=True)
class TrainingWarning:
    """A line of `health.jsonl`: one warning of a run."""

    step: int
    rule: str
    message: str
    """What was observed."""
    remedy: str
    """What to try."""


class _JSONLines:
    """A file with a JSON object in each line, which grows while a run trains; it need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, value: Mapping[str, Any]) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return the objects, or nothing without a file; raise a `ValueError` if a line is not a JSON object."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]  # the writing of the last one was interrupted
        return [self._parse(number, line) for number, line in enumerate(lines, 1) if line]

    def _parse(self, number: int, line: str) -> dict[str, Any]:
        name, remedy = f"{self.path}, line {number}", "Remove the line."
        try:
            value = json.loads(line)
        except ValueError as error:
            raise argument_error(name, "a JSON object", f"invalid JSON ({error})", remedy) from error
        if not isinstance(value, dict):
            raise argument_error(name, "a JSON object", value, remedy)
        return value

    def write(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Replace the file, atomically."""
        text = "".join(json.dumps(value) + "\n" for value in values)
        atomic_write(self.path, lambda partial: partial.write_text(text, encoding="utf-8"))

    def cut(self, step: int) -> tuple[int, int]:
        """Keep the lines up to a step, and return the number of these and of dropped lines, which cannot be read."""
        self.path.touch()
        lines = self.path.read_bytes().split(b"\n")[:-1]  # see `read`
        records = [record for line in lines if (record := _record(line)) is not None]
        kept = [record for record in records if record["step"] <= step]
        self.write(kept)
        return len(kept), len(lines) - len(records)


class Warnings(_JSONLines):
    """The warnings of a run, `health.jsonl`. An empty file means that nothing was found."""

    def add(self, warning: TrainingWarning) -> None:
        """Add a warning."""
        self.append(asdict(warning))

    def all(self) -> list[TrainingWarning] | None:
        """Return the warnings, or None without a file; raise a `ValueError` if a line is not a warning."""
        if not self.path.exists():
            return None
        try:
            names = ("step", "rule", "message", "remedy")
            return [TrainingWarning(*(line[name] for name in names)) for line in self.read()]
        except KeyError as error:
            contract = "lines with step, rule, message and remedy"
            raise argument_error(str(self.path), contract, f"a line without {error}", "Remove the line.") from error


class History(_JSONLines):
    """The records of a run, `metrics.jsonl`: `step`, and the logged values by name; the oldest first."""

    def validations(self) -> list[dict[str, float]]:
        """Return the records of validations."""
        return validations(self.read())

    def first_and_last(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the metrics of the first and the last validation; raise a `ValueError` without a validation."""
        found = self.validations()
        if not found:
            remedy = "Use another --output_dir, or a larger --steps."
            raise argument_error(str(self.path), "a file with a validation", "none", remedy)
        first, last = (
            {name.removeprefix("val/"): value for name, value in record.items() if name.startswith("val/")}
            for record in (found[0], found[-1])
        )
        return first, last


def frame_gradient(frame: int) -> str:
    """Return the name of the logged gradient of a frame."""
    return f"{_FRAME_GRADIENT}{frame:03d}"


def frame_of(name: str) -> int | None:
    """Return the frame of which a logged value is the gradient; None for other values."""
    return int(name.removeprefix(_FRAME_GRADIENT)) if name.startswith(_FRAME_GRADIENT) else None


def validations(records: Iterable[dict[str, float]]) -> list[dict[str, float]]:
    """Return those records that are of validations."""
    return [record for record in records if "val/psnr" in record]


def best_validation(records: Iterable[dict[str, float]], metric: str) -> dict[str, float] | None:
    """Return the record of the best validation after step 0, the earliest of equals, or None if there is none.

    LPIPS is better when smaller, other metrics when larger. Values that are not finite are skipped.
    """
    name = f"val/{metric}"
    trained = [record for record in validations(records) if record["step"] > 0 and math.isfinite(record[name])]
    sign = -1 if "lpips" in metric else 1
    return max(trained, key=lambda record: sign * record[name], default=None)


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line; None if it is not one, like parts of a file that a power failure has damaged."""
    try:
        value = json.loads(line)
    except ValueError:  # not JSON, or not UTF-8
        return None
    return value if isinstance(value, dict) and isinstance(value.get("step"), int) else None
