"""YAML of settings, tables and texts. Files may come from others: they are read with bounded time and memory."""

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from telecine.base.checks import argument_error, shorten
from telecine.base.files import read_bounded

_MAX_BYTES = 2**20
_MAX_DEPTH = 32
# What is not text without quotes: words, and what consists of these characters if Python reads it as a number.
_WORDS = {"true": True, "false": False, **dict.fromkeys(("", "~", "null"))}
_WORDS |= {word: float(word.replace(".", "")) for word in (".inf", "+.inf", "-.inf", ".nan")}
_DIGITS, _MAX_DIGITS = {*"0123456789abcdefABCDEFx+-."}, 4300
# libyaml, where PyYAML has it, is ten times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Document:
    """The plain values in a YAML text, and the line of each setting by its dotted name.

    Each name is there once. Aliases (`*name`) are refused: a few lines of them stand for billions of values.
    """

    def __init__(self, text: str, name: str = "a value") -> None:
        self.name, self.lines, self.groups = name, dict[str, int](), {""}
        kinds = (yaml.NodeEvent, yaml.CollectionEndEvent)
        self._events = (each for each in yaml.parse(text, Loader=_Loader) if isinstance(each, kinds))
        values = [self._value(each, "", 1) for each in self._events]
        if len(values) > 1:
            raise yaml.YAMLError("more than one document")
        self.value = values[0] if values else None

    def _value(self, event: yaml.Event, name: str, depth: int) -> Any:
        """Return the value of a setting of which this is the first event."""
        line = self.lines.setdefault(name, event.start_mark.line + 1)
        if isinstance(event, yaml.AliasEvent):
            contract, remedy = "settings without aliases (`*name`)", "Write the value out."
            raise argument_error(self.name, contract, f"one in line {line}", remedy)
        if event.tag is not None:
            raise yaml.YAMLError(f"a tag in line {line}")
        if isinstance(event, yaml.ScalarEvent):
            return _plain_value(event.value) if event.implicit[0] else event.value
        if depth > _MAX_DEPTH:
            contract = f"settings that are nested at most {_MAX_DEPTH} deep"
            raise argument_error(self.name, contract, f"more in line {line}", "Check the brackets.")
        inside = takewhile(lambda each: not isinstance(each, yaml.CollectionEndEvent), self._events)
        if isinstance(event, yaml.MappingStartEvent):
            return self._group(inside, f"{name}." if name else "", depth)
        return [self._value(each, f"{name}.{index}", depth + 1) for index, each in enumerate(inside)]

    def _group(self, keys: Iterable[yaml.Event], before: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in keys:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarEvent) or key.tag is not None:
                raise yaml.YAMLError(f"a name that is not plain text in line {line}")
            if key.value in found:
                raise yaml.YAMLError(f"`{key.value}` is given twice, again in line {line}")
            self.lines[name := before + key.value] = line
            found[key.value] = value = self._value(next(self._events), name, depth + 1)
            self.groups |= {name} if isinstance(value, dict) else set()
        return found


def _plain_value(text: str) -> Any:
    """Return what text without quotes is in YAML 1.2, which has 1e-4 as a number, and `no` and dates as text."""
    if text.lower() in _WORDS or not _DIGITS.issuperset(text):
        return _WORDS.get(text.lower(), text)
    if len(text) > _MAX_DIGITS:
        raise yaml.YAMLError(f"a number of {len(text)} digits")
    for read in (partial(int, base=16),) if text.startswith("0x") else (int, float):
        with suppress(ValueError):
            return read(text)
    return text


def parse_yaml(text: str) -> Any:
    """Return the value of a text as a YAML file has it, or the text itself if it is not YAML."""
    try:
        return _Document(text).value
    except (yaml.YAMLError, ValueError):
        return text


def read_yaml(path: Path) -> Any:
    """Return the plain values in a YAML file of `key: value` lines, each key once; else raise a `ValueError`."""
    return _read_document(path).value


def _read_document(path: Path) -> _Document:
    content = read_bounded(path, _MAX_BYTES)
    try:
        document = _Document(content.decode("utf-8"), str(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            reason = f"{error.problem} in line {error.problem_mark.line + 1}"
        raise argument_error(str(path), "YAML in UTF-8", f"other text ({shorten(reason)})", "Correct it.") from error
    if document.value is not None and not isinstance(document.value, dict):
        got = f"{'a list' if isinstance(document.value, list) else 'text'} in line {document.lines['']}"
        raise argument_error(str(path), "`key: value` lines", got, "Write one setting per line.")
    return document


def read_package_yaml(package: str, name: str) -> Any:
    """Return the values in a YAML file of a package of telecine, which may have aliases."""
    return yaml.load(resources.files(package).joinpath(name).read_text(encoding="utf-8"), Loader=_Loader)


def line_of(path: Path, name: str) -> int | None:
    """Return the line in a YAML file of the setting of a dotted name; None if the file does not have it."""
    try:
        document = _read_document(path)
    except ValueError:
        return None
    found = name
    while found and found not in document.lines:  # a number stands for the only setting of its group, such as a weight
        found = found.rpartition(".")[0]
    is_in_group = found != name and found in document.groups
    return None if is_in_group else document.lines.get(found)
