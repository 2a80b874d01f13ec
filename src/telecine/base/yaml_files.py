"""YAML of settings files. They may come from others: they are read with bounded time and memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from telecine.base.checks import argument_error, shorten
from telecine.base.files import read_bounded

MAX_BYTES = 2**20
_MAX_DEPTH = 32
_MAX_DIGITS = 4300
# A value without quotes is text, unless it is one of these words, or consists of `_CHARACTERS` and is a number in
# Python.
_WORDS = {
    "": None,
    "~": None,
    "null": None,
    "true": True,
    "false": False,
    ".inf": float("inf"),
    "+.inf": float("inf"),
    "-.inf": float("-inf"),
    ".nan": float("nan"),
}
_CHARACTERS = frozenset("0123456789abcdefABCDEFx+-.")
# libyaml, where PyYAML has it, is ten times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Document:
    """The plain values in a YAML text, and the line of each setting by its dotted name.

    Each name is there once. Aliases (`*name`) are refused: a few lines of them stand for billions of values.
    """

    def __init__(self, text: str, name: str = "a value") -> None:
        self.name = name
        self.value: Any = None
        self.lines: dict[str, int] = {}
        self.groups = {""}
        self._events = self._read_events(text)
        first = next(self._events, None)
        if first is not None:
            self.value = self._read_value(first, "", 1)
        if next(self._events, None) is not None:
            raise yaml.YAMLError("more than one document")

    @staticmethod
    def _read_events(text: str) -> Iterator[yaml.Event]:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, (yaml.NodeEvent, yaml.CollectionEndEvent)):
                yield event

    def _read_value(self, event: yaml.Event, name: str, depth: int) -> Any:
        """Return the value of a setting of which this is the first event."""
        line = event.start_mark.line + 1
        self.lines.setdefault(name, line)
        if isinstance(event, yaml.AliasEvent):
            got = f"one in line {self.lines[name]}"
            raise argument_error(
                self.name, "settings without aliases (`*name`)", got, "Write the value out."
            )
        if event.tag is not None:
            raise yaml.YAMLError(f"a tag in line {line}")
        if isinstance(event, yaml.ScalarEvent):
            return _plain_value(event.value) if event.implicit[0] else event.value
        if depth > _MAX_DEPTH:
            contract = f"settings that are nested at most {_MAX_DEPTH} deep"
            raise argument_error(self.name, contract, f"more in line {line}", "Check the brackets.")
        if isinstance(event, yaml.MappingStartEvent):
            return self._read_group(f"{name}." if name else "", depth)
        items: list[Any] = []
        for item in self._events:
            if isinstance(item, yaml.CollectionEndEvent):
                break
            items.append(self._read_value(item, f"{name}.{len(items)}", depth + 1))
        return items

    def _read_group(self, prefix: str, depth: int) -> dict[str, Any]:
        group: dict[str, Any] = {}
        for key in self._events:
            if isinstance(key, yaml.CollectionEndEvent):
                break
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarEvent) or key.tag is not None:
                raise yaml.YAMLError(f"a name that is not plain text in line {line}")
            if key.value in group:
                raise yaml.YAMLError(f"`{key.value}` is given twice, again in line {line}")
            name = prefix + key.value
            self.lines[name] = line
            group[key.value] = self._read_value(next(self._events), name, depth + 1)
            if isinstance(group[key.value], dict):
                self.groups.add(name)
        return group


def _plain_value(text: str) -> Any:
    """Return what text without quotes is in YAML 1.2, which has 1e-4 as a number, and `no` and dates as text."""
    word = text.lower()
    if word in _WORDS:
        return _WORDS[word]
    if not _CHARACTERS.issuperset(text):
        return text
    if len(text) > _MAX_DIGITS:
        raise yaml.YAMLError(f"a number of {len(text)} digits")
    try:
        return int(text, base=16) if text.startswith("0x") else int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
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
    content = read_bounded(path, MAX_BYTES)
    try:
        document = _Document(content.decode("utf-8"), str(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            reason = f"{error.problem} in line {error.problem_mark.line + 1}"
        raise argument_error(
            str(path), "YAML in UTF-8", f"other text ({shorten(reason)})", "Correct it."
        ) from error
    if document.value is not None and not isinstance(document.value, dict):
        got = f"{'a list' if isinstance(document.value, list) else 'text'} in line {document.lines['']}"
        raise argument_error(str(path), "`key: value` lines", got, "Write one setting per line.")
    return document


def line_of(path: Path, name: str) -> int | None:
    """Return the line in a YAML file of the setting of a dotted name; None if the file does not have it."""
    try:
        document = _read_document(path)
    except ValueError:
        return None
    # A group can be written as one number, such as the weight of a term. Its settings are then on its line.
    written_name = name
    while written_name and written_name not in document.lines:
        written_name = written_name.rpartition(".")[0]
    if written_name != name and written_name in document.groups:
        return None
    return document.lines.get(written_name)
