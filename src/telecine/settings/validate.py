"""Settings as pydantic has them: listed with their docstrings, and read from nested values, or one clear error."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, TypeVar, cast, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from telecine.base.checks import SettingsError, argument_error, describe, nearest
from telecine.settings.group import alternatives, choices_of, describe_type, kind_at
from telecine.settings.train import REMOVED

T = TypeVar("T")
_adapter: Any = cache(TypeAdapter)
# Settings as YAML has them.
Nested = dict[str, Any]


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
    mistakes: list[str] = []
    values = _known(kind, values, prefix, mistakes)
    try:
        found = cast(T, _adapter(kind).validate_python(values))
    except ValidationError as error:
        by_union: dict[tuple[str, ...], list[tuple[list[str], ErrorDetails]]] = {}
        for details in error.errors(include_url=False):
            path, union = _path_of(kind, details["loc"])
            by_union.setdefault(tuple(path[:union]), []).append((path, details))
        mistakes += [_message(kind, *max(same, key=_likelihood), prefix) for same in by_union.values()]
    if mistakes:
        raise SettingsError(mistakes)
    return found


def _known(kind: type, values: Nested, prefix: str, mistakes: list[str], before: str = "") -> Nested:
    """Return settings without those that are none, and add a sentence about each to `mistakes`.

    Those of older versions are left out if they have the value that they always have now. What is in a list stays.
    """
    kept = {}
    for name, value in values.items():
        path = f"{before}{name}"
        of_value = kind_at(kind, path)
        if path in REMOVED and value != REMOVED[path]:
            contract = f"left out (it is {REMOVED[path]!r} now)"
            mistakes.append(str(argument_error(prefix + path, contract, repr(value), "Remove it.")))
        elif path not in REMOVED and of_value is None:
            mistakes.append(_unknown(kind, path, prefix))
        elif path not in REMOVED:
            has_names = any(is_dataclass(each) or get_origin(each) for each in alternatives(of_value))
            is_group = has_names and isinstance(value, dict)
            kept[name] = _known(kind, value, prefix, mistakes, f"{path}.") if is_group else value
    return kept


def _unknown(kind: type, path: str, prefix: str) -> str:
    """Return the error about a name that is no setting, with the nearest one."""
    known = [each.name for each in settings_of(kind, all_names=True)]
    group = path.rpartition(".")[0]
    in_dict = filter(is_dataclass, alternatives(kind_at(kind, group)))  # such as a term
    known += [item.name for each in in_dict for item in settings_of(each, f"{group}.")]  # type: ignore[arg-type]
    return f"`{prefix}{path}` is not a setting. {nearest(path, known).replace('`', f'`{prefix}', 1)}".rstrip()


def _likelihood(error: tuple[list[str], ErrorDetails]) -> tuple[int, bool]:
    """Return how likely an alternative of a type was meant: it fails deepest. Its own check names a setting inside."""
    path, details = error
    is_check = details["type"] == "value_error"
    return len(path) + is_check, is_check


def _path_of(kind: Any, location: Sequence[str | int]) -> tuple[list[str], int | None]:
    """Return a setting's dotted name in parts, without a union's alternatives, and how many lead to the first union."""
    path: list[str] = []
    union = None
    is_alternative = False
    for part in location:
        several = [each for each in alternatives(kind) if each is not NoneType]
        if len(several) > 1 and not is_alternative:
            is_alternative = True
            union = len(path) if union is None else union
            kind = next((each for each in several if getattr(each, "__name__", None) == part), kind)
        else:
            path.append(str(part))
            is_alternative = False
            kind = kind_at(kind, str(part))
    return path, union


def _message(kind: type, path: list[str], details: ErrorDetails, prefix: str) -> str:
    """Return the error about the setting at a path, from the validator's type of error and its own check's error."""
    missing = path[-1] if details["type"] == "missing" else ""
    if missing:
        path = path[:-1]  # the group or the list that lacks it
    name, of_setting, value = prefix + ".".join(path), kind_at(kind, ".".join(path)) if path else kind, details["input"]
    if details["type"] == "value_error":
        text = str(details["ctx"]["error"])
        return f"`{name}{'.' if path else ''}{text[1:]}" if text.startswith("`") else text
    if details["type"] == "unexpected_keyword_argument":
        return _unknown(kind, ".".join(path), prefix)
    if missing and not missing.isdigit():
        return f"`{name}` must be {describe_type(of_setting)}, but got one without `{missing}`."
    if is_dataclass(of_setting):
        return str(argument_error(name, "a group of settings", value, "Indent `key: value` lines below it."))
    remedy = nearest(value, map(str, choices_of(of_setting))) if isinstance(value, str) else ""
    return f"`{name}` must be {describe_type(of_setting)}, but got {describe(value)}. {remedy}".rstrip()


def json_schema(kind: type) -> str:
    """Return the JSON schema of a dataclass of settings, with which editors check and complete files of them."""
    return json.dumps(_adapter(kind).json_schema(), indent=2)
