"""Reading YAML files of settings, which may come from others, with bounded time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from telecine.base.checks import argument_error, shorten

MAX_BYTES = 2**20
MAX_DEPTH = 32
# libyaml, where PyYAML has it, is ten times as fast.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """Return the plain values in a YAML file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not YAML, or as `check_yaml` says.
    """
    text = check_yaml(path)
    try:
        return yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError) as error:  # also for integers of thousands of digits
        raise _error(path, error) from error


def check_yaml(path: Path) -> str:
    """Return the text of a YAML file that is small when it is parsed.

    Aliases (`*name`) are refused: a few lines of them stand for billions of values.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not `key: value` lines of YAML in UTF-8, too large, nested too deeply, or has an alias.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise argument_error(str(path), f"settings of at most {MAX_BYTES} bytes", f"{size} bytes", "Check the path.")
    depth = 0
    try:
        text = path.read_text(encoding="utf-8")
        for event in yaml.parse(text, Loader=_LOADER):
            line = f"line {event.start_mark.line + 1}"
            is_list = isinstance(event, yaml.SequenceStartEvent)
            if depth == 0 and (is_list or (isinstance(event, yaml.ScalarEvent) and event.value)):
                got = f"{'a list' if is_list else 'text'} in {line}"
                raise argument_error(str(path), "`key: value` lines", got, "Write one setting per line.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                contract = f"settings that are nested at most {MAX_DEPTH} deep"
                raise argument_error(str(path), contract, f"more in {line}", "Check the brackets.")
            if isinstance(event, yaml.AliasEvent):
                contract, remedy = "settings without aliases (`*name`)", "Write the value out."
                raise argument_error(str(path), contract, f"one in {line}", remedy)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _error(path, error) from error
    return text


def _error(path: Path, error: Exception) -> Exception:
    reason = shorten(" ".join(str(error).split()))
    return argument_error(str(path), "YAML in UTF-8", f"other text ({reason})", "Correct it.")
