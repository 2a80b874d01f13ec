"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from telecine.shapes import argument_error


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a neighbouring file, then rename it to `path`: readers see the old file or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write plain values as JSON, whole or not at all."""
    write_aside(path, lambda aside: aside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`, or raise a `ValueError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise argument_error(str(path), "JSON", f"text that is not ({error})", "Write it again.") from error
    if not isinstance(value, dict):
        raise argument_error(str(path), "a JSON object", value, "Write it again.")
    return value
