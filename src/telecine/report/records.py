"""What a run left to report, as it wrote it: lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from telecine.shapes import argument_error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file, one a line, oldest first; none if there is no such file.

    A last line that was cut off while it was written is dropped.

    Raises:
        ValueError: If another line is no JSON object.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [_parsed(path, number, line) for number, line in enumerate(lines[:-1], 1) if line]


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    remedy = "Remove the line."
    try:
        value = json.loads(line)
    except ValueError as error:
        got = f"one that is not ({error})"
        raise argument_error(f"{path}, line {number}", "a JSON object", got, remedy) from error
    if not isinstance(value, dict):
        raise argument_error(f"{path}, line {number}", "a JSON object", value, remedy)
    return value


def read_records(path: Path) -> list[dict[str, float]]:
    """Return the records of a run's `metrics.jsonl`: `step`, and values by name.

    Raises:
        ValueError: If a line is no JSON object.
    """
    return read_lines(path)


def validations(records: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the records of validations, oldest first."""
    return [record for record in records if "val/psnr" in record]
