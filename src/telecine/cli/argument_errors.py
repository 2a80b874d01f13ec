"""Errors about arguments and settings files, in the words of the command line instead of those of its parser."""

from __future__ import annotations

import collections.abc
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from telecine.base.checks import nearest
from telecine.base.imports import import_allowed, is_dotted

WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "a group of `name: value`",
    collections.abc.Callable: "the dotted path of a function",
    NoneType: "null",
}
_GOT = re.compile(r"Got value: (.*)$|Given value type: .* Given value: (.*)$")
_UNKNOWN = re.compile(r"Option '([\w.]+)' is not accepted|Group '([\w.]+)' does not accept option '([\w.]+)'")
_NESTED = re.compile(r"NestedArg\(key='(.*)', val='(.*)'\)")


def plain(message: str, settings: type | None, *, known: Sequence[str], prefix: str = "--") -> str:
    """Return the message of an `ArgumentError` in plain words.

    Args:
        message: The parser's, in one line.
        settings: The dataclass of the command's settings, if it has any.
        known: The names of all settings and arguments, to suggest one instead of an unknown one.
        prefix: What is typed before the name of a setting.
    """
    if typed := re.match(r"unrecognized arguments: ([^\s=]+)", message):
        return unknown_argument(typed[1], known, prefix)
    name = re.match(r'Parser key "([\w.]+)"', message)
    kind = None if name is None else type_of(settings, name[1])
    if name is not None and kind is not None:
        got = value_in(message)
        problem = import_problem(kind, got, prefix + name[1])
        return problem or f"`{prefix}{name[1]}` must be {describe_type(kind)}, but got {got}."
    if key := _UNKNOWN.search(message):
        word = key[1] or f"{key[2]}.{key[3]}"
        return f"`{word}` is not a setting. {suggest(word, known, prefix)}".rstrip()
    return message.removeprefix('Parser key "config": ')


def unknown_argument(typed: str, known: Sequence[str], prefix: str = "--") -> str:
    """Return the error about an argument that a command does not have."""
    remedy = suggest(typed.removeprefix("--"), known, prefix)
    return f"`{typed}` is not an argument of this command. {remedy}".rstrip()


def import_problem(kind: Any, path: str, name: str) -> str | None:
    """Return why the function that a setting names cannot be imported; None if it can, or if no function is named."""
    takes_function = collections.abc.Callable in {get_origin(each) for each in (kind, *get_args(kind))}
    if not (takes_function and is_dotted(path)):
        return None
    try:
        import_allowed(path, name)
    except ValueError as error:
        return " ".join(str(error).split())
    return None


def suggest(word: str, known: Sequence[str], prefix: str) -> str:
    """Return "Did you mean ...?" with the most similar name, or nothing."""
    found = nearest(word, known)
    return found.replace("`", f"`{prefix}", 1)


def value_in(message: str) -> str:
    """Return the value that a message of the parser is about."""
    if missing := re.search(r"arguments are required: ([\w, ]+?) Given value", message):
        return f"one without `{missing[1]}`"
    found = _GOT.search(message)
    text = (found[1] or found[2]) if found else message.rpartition("config ")[2].strip("\"'")
    return _NESTED.sub(r"`\1: \2`", text)


def type_of(settings: type | None, name: str) -> Any:
    """Return the type of the setting of a dotted name, or None if there is none."""
    kind: Any = settings
    for part in name.split("."):
        if not is_dataclass(kind):
            return None
        kind = get_type_hints(kind).get(part)
    return kind


def describe_type(kind: Any) -> str:
    """Return what a value of a type is, in plain words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        required = [item.name for item in fields(kind) if item.default is item.default_factory is MISSING]
        names = [item.name for item in fields(kind)]
        example = "{" + ", ".join(f"{name}: ..." for name in required or names[:1]) + "}"
        return f"settings such as `{example}` (of {', '.join(names)})"
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (Union, UnionType):
        return " or ".join(map(describe_type, arguments))
    if origin is tuple:
        items = arguments[:-1] if arguments[-1] is Ellipsis else arguments
        count = "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} values"
        return f"{count} in brackets, each {describe_type(items[0])}"
    return WORDS.get(origin or kind, str(kind))


def setting_names(settings: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of a dataclass's fields, nested ones included."""
    if is_dataclass(settings):
        hints = get_type_hints(settings)
        for item in fields(settings):
            yield prefix + item.name
            yield from setting_names(hints[item.name], f"{prefix}{item.name}.")
