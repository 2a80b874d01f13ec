"""Settings as pydantic has them: listed with their docstrings, and read from nested values, or one clear error."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

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

    A `SettingsError` has the mistakes; `prefix` stands before the names of settings in it.
    """
    reader = _Reader(kind, prefix, [])
    found = reader.group(kind, values, "")
    if reader.mistakes:
        raise SettingsError(reader.mistakes)
    return cast(T, found)


@dataclass(frozen=True)
class _Reader:
    """Makes nested values dataclasses, group by group, so that no error of the library is inside a union."""

    root: type
    prefix: str
    mistakes: list[str]
    """A sentence about each setting that is wrong."""

    def group(self, kind: type, values: Nested, before: str) -> Any:
        """Return a group, whose settings have `before` in front of their names; `_WRONG` if one is wrong."""
        found = {}
        for name, value in values.items():
            if name in kind.__dataclass_fields__:  # type: ignore[attr-defined]
                found[name] = self._value(kind_at(kind, name), value, before + name)
            elif before + name not in REMOVED:
                self.mistakes.append(self._unknown(before + name))
            elif value != (now := REMOVED[before + name]):
                contract = f"left out (it is {now!r} now)"
                self.mistakes.append(str(argument_error(before + name, contract, repr(value), "Remove it.")))
        try:
            return _adapter(kind).validate_python(found)
        except ValidationError as error:
            errors = {_name_of(kind, each): each for each in reversed(error.errors(include_url=False))}
        wrong = [(name, each) for name, each in reversed(errors.items()) if each["input"] is not _WRONG]
        self.mistakes.extend(self._message(before + name, each) for name, each in wrong)
        return _WRONG

    def _value(self, kind: Any, value: Any, name: str) -> Any:
        """Return a value with the dicts in it that stand for groups as their dataclasses."""
        groups = [each for each in alternatives(kind) if is_dataclass(each)]
        if isinstance(value, dict) and groups:
            meant = max(groups, key=lambda each: len(value.keys() & each.__dataclass_fields__.keys()))
            return self.group(meant, value, f"{name}.")  # type: ignore[arg-type]
        if isinstance(value, dict) and get_origin(kind) in (dict, Mapping):
            return {key: self._value(get_args(kind)[1], each, f"{name}.{key}") for key, each in value.items()}
        if isinstance(value, list) and get_origin(kind) is tuple:
            return [self._value(get_args(kind)[0], each, f"{name}.{index}") for index, each in enumerate(value)]
        return value

    def _unknown(self, name: str) -> str:
        """Return the error about a name that is no setting, with the nearest one."""
        known = [each.name for each in settings_of(self.root, all_names=True)]
        group = name.rpartition(".")[0]
        in_dict = filter(is_dataclass, alternatives(kind_at(self.root, group)))  # such as a term
        known += [item.name for each in in_dict for item in settings_of(each, f"{group}.")]  # type: ignore[arg-type]
        found = nearest(name, known).replace("`", f"`{self.prefix}", 1)
        return f"`{self.prefix}{name}` is not a setting. {found}".rstrip()

    def _message(self, name: str, details: ErrorDetails) -> str:
        """Return the error about a setting, from the library's kind of error or the group's own check."""
        value, last = details["input"], details["loc"][-1:]
        if details["type"] == "value_error":
            text = str(details["ctx"]["error"])
            return f"`{self.prefix}{name}{text[1:]}" if text.startswith("`") else text
        of_setting = kind_at(self.root, name.rstrip(".")) if name else self.root
        name = self.prefix + name.rstrip(".")
        if details["type"] == "missing" and isinstance(last[0], str):
            return f"`{name}` must be {describe_type(of_setting)}, but got one without `{last[0]}`."
        if is_dataclass(of_setting):
            return str(argument_error(name, "a group of settings", value, "Indent `key: value` lines below it."))
        remedy = nearest(value, map(str, choices_of(of_setting))) if isinstance(value, str) else ""
        return f"`{name}` must be {describe_type(of_setting)}, but got {describe(value)}. {remedy}".rstrip()


def _name_of(kind: Any, details: ErrorDetails) -> str:
    """Return the dotted name of the setting of a group that an error is about; "" for the group itself."""
    parts = []
    for part in details["loc"][: -1 if details["type"] == "missing" else None]:
        if not (is_dataclass(kind) or get_origin(kind) in (dict, Mapping, tuple)):
            break  # an alternative of a union
        parts.append(str(part))
        kind = kind_at(kind, str(part))
    return ".".join(parts)


def json_schema(kind: type) -> str:
    """Return the JSON schema of a dataclass of settings, with which editors check and complete files of them."""
    return json.dumps(_adapter(kind).json_schema(), indent=2)
