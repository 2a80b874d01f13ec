"""Settings as pydantic has them: listed with their docstrings, and read from nested values, or one clear error."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from telecine.base.checks import SettingsError, argument_error, describe, nearest
from telecine.settings.group import alternatives, choices_of, describe_type, kind_at
from telecine.settings.train import REMOVED

T = TypeVar("T")
_adapter: Any = cache(TypeAdapter)
# Settings as YAML has them.
Nested = dict[str, Any]
_WRONG = object()


@dataclass(frozen=True)
class Setting:
    """A setting, or a group of settings."""

    name: str  # with the names of its groups, such as `clips.num_frames`
    text: str  # the docstring below it
    kind: Any
    default: Any = MISSING

    @property
    def is_group(self) -> bool:
        """Whether it is a group of settings."""
        return is_dataclass(self.kind)


def settings_of(
    kind: type, prefix: str = "", *, all_names: bool = False, texts: Mapping[str, Mapping[str, str]] | None = None
) -> Iterator[Setting]:
    """Yield the settings of a dataclass, each group before its own, with a prefix before the names.

    With `all_names`, also the fields of a value that may be a group instead of a number, such as a ramp.
    """
    texts = texts or _docstrings(kind)
    for name, item in kind.__dataclass_fields__.items():  # type: ignore[attr-defined]
        of_item = kind_at(kind, name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        yield Setting(prefix + name, texts[kind.__name__][name], of_item, default)
        for each in alternatives(of_item) if all_names else [of_item]:
            if is_dataclass(each):
                yield from settings_of(each, f"{prefix}{name}.", all_names=all_names, texts=texts)  # type: ignore[arg-type]


@cache
def _docstrings(kind: type) -> dict[str, dict[str, str]]:
    """Return the docstrings below the fields of a dataclass, its bases and groups, by its name and the field's."""
    found: dict[str, dict[str, str]] = {kind.__name__: {}}
    for each in filter(is_dataclass, reversed(kind.__mro__)):
        schema = _adapter(each).json_schema()
        for name, group in (schema.get("$defs", {}) | {kind.__name__: schema}).items():
            texts = {field: item["description"] for field, item in group["properties"].items() if "description" in item}
            found[name] = found.get(name, {}) | texts
    return found


def validate(kind: type[T], values: Nested, prefix: str = "") -> T:
    """Return settings, with groups and ramps as dicts or as instances, as their dataclass.

    A `SettingsError` has all mistakes; `prefix` stands before the names of settings in it.
    """
    reader = _Reader(kind, prefix)
    found = reader.group(kind, values, prefix)
    if reader.mistakes:
        raise SettingsError(reader.mistakes)
    return cast(T, found)


class _Reader:
    """Makes nested values dataclasses, setting by setting, so that no error of the library is inside a union."""

    def __init__(self, root: type, prefix: str) -> None:
        self.root, self.prefix = root, prefix
        self.mistakes: list[str] = []  # a sentence about each setting that is wrong

    def group(self, kind: type, values: Nested, before: str) -> Any:
        """Return a group, whose settings have `before` in front of their names; `_WRONG` if one is wrong."""
        found = {}
        for name, value in values.items():
            if name in kind.__dataclass_fields__:  # type: ignore[attr-defined]
                found[name] = self._value(kind_at(kind, name), value, before + name)
            elif before + name not in REMOVED:
                known = [*settings_of(self.root, self.prefix, all_names=True), *settings_of(kind, before)]
                similar = nearest(before + name, [item.name for item in known])
                self.mistakes.append(f"`{before}{name}` is not a setting. {similar}".rstrip())
            elif value != (now := REMOVED[before + name]):
                self._wrong(before + name, f"left out (it is {now!r} now)", repr(value), "Remove it.")
        if _WRONG in found.values():
            return _WRONG
        for item in fields(kind):
            if item.name not in found and item.default is item.default_factory is MISSING:
                setting = before.rstrip(".")
                contract = describe_type(kind_at(self.root, setting.removeprefix(self.prefix)))
                return self._wrong(setting, contract, f"one without `{item.name}`")
        try:
            return kind(**found)
        except ValueError as error:
            text = str(error)
            self.mistakes.append(f"`{before}{text[1:]}" if text.startswith("`") else text)
            return _WRONG

    def _value(self, kind: Any, value: Any, name: str) -> Any:
        """Return the value of a setting as its type has it; `_WRONG` if it is of another one."""
        origin, arguments = get_origin(kind), get_args(kind)
        groups = [each for each in alternatives(kind) if is_dataclass(each)]
        if isinstance(value, dict) and groups:
            meant = max(groups, key=lambda each: len(value.keys() & each.__dataclass_fields__.keys()))
            return self.group(meant, value, f"{name}.")  # type: ignore[arg-type]
        if isinstance(value, dict) and origin in (dict, Mapping):
            found = {key: self._value(arguments[1], each, f"{name}.{key}") for key, each in value.items()}
            return _WRONG if _WRONG in found.values() else found
        if isinstance(value, list) and origin is tuple and (arguments[-1] is Ellipsis or len(arguments) == len(value)):
            items = [self._value(arguments[0], each, f"{name}.{index}") for index, each in enumerate(value)]
            return _WRONG if _WRONG in items else tuple(items)
        try:
            return _adapter(kind).validate_python(value)
        except ValidationError:
            if is_dataclass(kind):
                return self._wrong(name, "a group of settings", describe(value), "Indent `key: value` lines below it.")
            remedy = nearest(value, map(str, choices_of(kind))) if isinstance(value, str) else ""
            return self._wrong(name, describe_type(kind), describe(value), remedy)

    def _wrong(self, name: str, contract: str, got: str, remedy: str = "") -> object:
        self.mistakes.append(str(argument_error(name, contract, got, remedy)).rstrip())
        return _WRONG


def json_schema(kind: type) -> str:
    """Return the JSON schema of a dataclass of settings, with which editors check and complete files of them."""
    return json.dumps(_adapter(kind).json_schema(), indent=2)
