"""What a run that resumes has recorded: that up to its checkpoint is kept, and what is missing is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from telecine.base.files import atomic_write
from telecine.runs.layout import HEALTH_FILE, METRICS_FILE, validation_folders


def keep_records(run: Path, step: int) -> tuple[int, list[str]]:
    """Keep the records and the clips of validations up to a checkpoint; the run writes the later ones again.

    Lines that cannot be read are dropped: after a power failure, a file may have a part that was never written.

    Args:
        run: The folder of the run.
        step: That of the checkpoint; -1 without one.

    Returns:
        The number of records in `metrics.jsonl`, and a note for each file with lines that could not be read.
    """
    for later, folder in validation_folders(run):
        if later > step:
            shutil.rmtree(folder)
    counts, notes = [], []
    for path in (run / METRICS_FILE, run / HEALTH_FILE):
        path.touch()
        lines = path.read_bytes().split(b"\n")[:-1]  # without the last one, whose writing was interrupted
        records = [record for line in lines if (record := _record(line)) is not None]
        kept = [record for record in records if record["step"] <= step]
        write_lines(path, kept)
        counts.append(len(kept))
        if num_dropped := len(lines) - len(records):
            notes.append(f"{path}: {num_dropped} lines could not be read and are dropped")
    return counts[0], notes


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write a file with a JSON object in each line, atomically."""
    text = "".join(json.dumps(value) + "\n" for value in values)
    atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def missing_records(run: Path, expected: int, found: int) -> list[str]:
    """Return a note if `metrics.jsonl` has other than the number of records that the checkpoint states."""
    if found == expected:
        return []
    return [f"{run / METRICS_FILE}: {found} records up to the checkpoint instead of {expected}; the curves have a gap"]


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line, None if it is not one."""
    try:
        value = json.loads(line)
    except ValueError:  # not JSON, or not UTF-8
        return None
    return value if isinstance(value, dict) and isinstance(value.get("step"), int) else None
