"""The list of all settings of a group, with their names, types, defaults and texts, and its JSON schema."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter
from pydantic_core import PydanticUndefined

# Stands for the name in the list of settings where a user chooses it, as in `objective.terms.NAME.weight`.
ANY_NAME = "NAME"


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

    @property
    def is_mapping(self) -> bool:
        """Whether users choose names in its value."""
        return any(get_origin(member) in (dict, Mapping) for member in union_members(self.kind))

    @property
    def is_free(self) -> bool:
        """Whether users choose all names in its value, such as those of a function's arguments."""
        return self.is_mapping and not any(_groups_inside(self.kind))


def json_schema(kind: type) -> str:
    """Return the JSON schema of a dataclass of settings, with which editors check and complete files of them."""
    return json.dumps(TypeAdapter(kind).json_schema(), indent=2)


def settings_of(kind: Any, prefix: str = "", *, inside_values: bool = False) -> Iterator[Setting]:
    """Yield the settings of a group, each inner group before its settings.

    Args:
        kind: The dataclass.
        prefix: Stands before the names.
        inside_values: Also yield the settings inside values that may be groups: ramps, items of dicts and of lists.
    """
    for name, field in kind.__pydantic_fields__.items():
        default = field.get_default(call_default_factory=True)
        if default is PydanticUndefined:
            default = MISSING
        yield Setting(prefix + name, field.description or "", field.annotation, default)
        if is_dataclass(field.annotation):
            yield from settings_of(
                field.annotation, f"{prefix}{name}.", inside_values=inside_values
            )
        elif inside_values:
            for suffix, group in _groups_inside(field.annotation):
                yield from settings_of(group, f"{prefix}{name}.{suffix}", inside_values=True)


def _groups_inside(kind: Any) -> Iterator[tuple[str, Any]]:
    """Yield the groups that a value of a type may be or hold, each with the suffix of its dotted name."""
    for member in union_members(kind):
        if is_dataclass(member):
            yield "", member
        elif get_origin(member) in (dict, tuple):
            for argument in get_args(member):
                for item in union_members(argument):
                    if is_dataclass(item):
                        yield f"{ANY_NAME}.", item


def union_members(kind: Any) -> list[Any]:
    """Return the types of a union, also of nested ones, without their constraints; or the type alone."""
    origin = get_origin(kind)
    if origin is Annotated:
        return union_members(get_args(kind)[0])
    if origin in (Union, UnionType):
        return [inner for member in get_args(kind) for inner in union_members(member)]
    return [kind]


def choices_of(kind: Any) -> list[Any]:
    """Return the values that a type lists."""
    return [
        value
        for member in union_members(kind)
        if get_origin(member) is Literal
        for value in get_args(member)
    ]
