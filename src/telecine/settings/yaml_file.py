"""Reading YAML files of settings, which may come from others, with bounded time and memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from telecine.base.checks import argument_error, shorten
from telecine.base.files import read_bounded

MAX_BYTES = 2**20
MAX_DEPTH = 32
# The plain values of YAML 1.2, which has 1e-4 as a number, and `no` and dates as text; with their first characters.
# PyYAML recognises a kind of value by a regular expression.
_PLAIN = {
    "bool": ("true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "null": ("~|null|Null|NULL|", [*"~nN", ""]),
    "int": (r"[-+]?[0-9]+|0x[0-9a-fA-F]{1,16}", [*"-+0123456789"]),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|nan)", [*"-+.0123456789"]),
}
_KEY_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", *_PLAIN)}
# libyaml, where PyYAML has it, is ten times as fast.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - of PyYAML

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for index, (key, _) in enumerate(node.value):
            line = key.start_mark.line + 1
            if key.tag not in _KEY_TAGS:
                raise yaml.constructor.ConstructorError(problem=f"a name that is not plain text in line {line}")
            if key.value in names[:index]:
                raise yaml.constructor.ConstructorError(problem=f"`{key.value}` is given twice, again in line {line}")
        return super().construct_mapping(node, deep=deep)


for _kind, (_text, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_text})$"), _first)


def parse_value(text: str) -> Any:
    """Return the value of a text as a YAML file has it, or the text itself if it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError):  # also for integers of thousands of digits
        return text


def read_yaml(path: Path) -> Any:
    """Return the plain values in a YAML file of `key: value` lines in UTF-8, each key once; else raise a `ValueError`.

    Aliases (`*name`) are refused: a few lines of them stand for billions of values.
    """
    content = read_bounded(path, MAX_BYTES)
    try:
        text = content.decode("utf-8")
        problem = _problem(text)
        values = yaml.load(text, Loader=_Loader) if problem is None else None
    except (yaml.YAMLError, ValueError) as error:  # also for integers of thousands of digits
        reason = shorten(" ".join(str(error).split()))
        raise argument_error(str(path), "YAML in UTF-8", f"other text ({reason})", "Correct it.") from error
    if problem is not None:
        raise argument_error(str(path), *problem)
    return values


def line_of(path: Path, name: str) -> int | None:
    """Return the line in a YAML file of the setting of a dotted name; None if the file does not have it."""
    try:
        read_yaml(path)  # refuses what is too large
        return _line_in(yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader), name)
    except ValueError:
        return None


def _line_in(node: yaml.Node | None, name: str) -> int | None:
    if isinstance(node, yaml.SequenceNode):
        index, _, rest = name.partition(".")
        item = node.value[int(index)]
        return _line_in(item, rest) or int(item.start_mark.line + 1)
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        line = int(key.start_mark.line + 1)
        if key.value == name:
            return line
        if name.startswith(f"{key.value}."):  # a number stands for the only setting of its group, such as a weight
            inside = _line_in(value, name.removeprefix(f"{key.value}."))
            return line if inside is None and isinstance(value, yaml.ScalarNode) else inside
    return None


def _problem(text: str) -> tuple[str, str, str] | None:
    """Return what settings must be, what a text is, and the remedy, if it takes long to parse or is no settings."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = f"line {event.start_mark.line + 1}"
        is_list = isinstance(event, yaml.SequenceStartEvent)
        if depth == 0 and (is_list or (isinstance(event, yaml.ScalarEvent) and event.value)):
            return "`key: value` lines", f"{'a list' if is_list else 'text'} in {line}", "Write one setting per line."
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            return f"settings that are nested at most {MAX_DEPTH} deep", f"more in {line}", "Check the brackets."
        if isinstance(event, yaml.AliasEvent):
            return "settings without aliases (`*name`)", f"one in {line}", "Write the value out."
    return None
