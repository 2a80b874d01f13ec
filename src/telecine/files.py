"""Write files atomically, and read and write JSON."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from telecine.checks import argument_error


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the same folder, then rename that file to `path`.

    Readers see the old file or the new one, never a part of it. Nothing remains if `write` fails.
    """
    partial = partial_path(path)
    partial.touch(exist_ok=False)
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """Return a path beside `path` to write to. Nobody can guess it, and put a link there before."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def write_json(path: Path, value: object) -> None:
    """Write plain values as JSON, atomically."""
    atomic_write(path, lambda partial: partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; raise a `ValueError` if the file contains anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise argument_error(str(path), "JSON", f"other text ({error})", "Write it again.") from error
    if not isinstance(value, dict):
        raise argument_error(str(path), "a JSON object", value, "Write it again.")
    return value
