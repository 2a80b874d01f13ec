"""What a setting is: a field of a frozen dataclass, with its type, default and docstring."""

import json
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, InitVar, fields, is_dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, Union, cast, get_args, get_origin, get_type_hints

from telecine.base.checks import argument_error, check_count, check_positive, describe, suggestion
from telecine.base.imports import is_dotted

TABLES: dict[str, Any] = json.loads(Path(__file__).with_name("tables.json").read_text(encoding="utf-8"))
# What settings must be beside each other: the name of one, its contract and the remedy, by the name of the rule.
_CONTRACTS = json.loads(Path(__file__).with_name("contracts.json").read_text(encoding="utf-8"))
# The dotted path of a function or of a class, or the object itself.
Function: TypeAlias = str | Callable[..., Any]
# Marks a field that is a path or an address: a shell does not expand the `~` of `--data=~/videos`.
PATH = {"is_path": True}
# Types with a check of the name and the value, beside which a union may have other types.
Count: TypeAlias = Annotated[int, check_count]
Positive: TypeAlias = Annotated[float, check_positive]
DeviceName: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
_WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Mapping: "a group of `name: value`",
    dict: "a group of `name: value`",
    Function: "the dotted path of a function",
    NoneType: "null",
}


class Settings:
    """A group of settings. Each has a docstring below its field, which is its help.

    Raises:
        ValueError: A value is not one of the names that its type lists, nor of another type that it may have, or the
            check in its type refuses it.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        kinds = _kinds_of(cast(Hashable, type(self)), with_checks=True)
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if item.metadata.get("is_path") and value is not None:
                value = os.path.expanduser(value)
            object.__setattr__(self, item.name, _checked(item.name, kinds[item.name], value))

    def refuse(self, rule: str, is_broken: object, *, got: object = None, **values: object) -> None:
        """Raise the `ValueError` of a rule in `contracts.json` if it `is_broken`, by default with the setting's value.

        The texts of the rule are formats, of this group as "0" and of the `values`.
        """
        if is_broken:
            name, contract, remedy = (text.format(self, **values) for text in _CONTRACTS[rule])
            raise argument_error(name, contract, attrgetter(name)(self) if got is None else got, remedy)


def _checked(name: str, kind: Any, value: object) -> object:
    """Return a value as the check in its type does, else raise a `ValueError`."""
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise argument_error(name, describe_type(kind), describe(value), "Use [] for none.")
        return tuple(_checked(name, get_args(kind)[0], each) for each in value)
    if isinstance(kind, type) and is_dataclass(kind) and not isinstance(value, kind):
        raise argument_error(name, f"a `{kind.__name__}`", describe(value), "Pass an instance.")
    choices, checked = choices_of(kind), [each for each in alternatives(kind) if get_origin(each) is Annotated]
    plain = [each for each in alternatives(kind) if get_origin(each) is None and each is not str]
    if value in choices or any(isinstance(value, each) for each in plain):
        return value
    is_function = _takes_function(kind) and (callable(value) or (isinstance(value, str) and is_dotted(value)))
    if choices and not is_function and not any(isinstance(value, each.__origin__) for each in checked):
        raise argument_error(name, describe_type(kind), describe(value), suggestion(value, map(str, choices)))
    return checked[0].__metadata__[0](name, value) if checked else value


@cache
def _kinds_of(kind: Any, *, with_checks: bool = False) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name, those of `__init__` alone included."""
    hints = get_type_hints(kind, include_extras=with_checks)
    found = {name: hints[name] for name in kind.__dataclass_fields__}
    return {name: each.type if isinstance(each, InitVar) else each for name, each in found.items()}


def kind_at(kind: Any, name: str) -> Any:
    """Return the type of the setting of a dotted name, also in a dict or a list; None if there is none."""
    for part in name.split("."):
        inside = [_kind_in(each, part) for each in alternatives(kind)]
        kind = next((each for each in inside if each is not None), None)
    return kind


def _kind_in(kind: Any, name: str) -> Any:
    if is_dataclass(kind):
        return _kinds_of(kind).get(name)  # type: ignore[arg-type]
    match get_origin(kind), get_args(kind):
        case (origin, (_, value)) if origin in (dict, Mapping):
            return value
        case (origin, (item, *_)) if origin is tuple:
            return item
    return None


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type alone."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def choices_of(kind: Any) -> list[Any]:
    """Return the values that a type lists."""
    return [value for each in alternatives(kind) if get_origin(each) is Literal for value in get_args(each)]


def _takes_function(kind: Any) -> bool:
    return {*get_args(Function)} <= {*alternatives(kind)}


def describe_type(kind: Any) -> str:
    """Return what a value of a type is, in plain words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return describe_type(arguments[0])
    if is_dataclass(kind):
        required = [item.name for item in fields(kind) if item.default is item.default_factory is MISSING]
        names = [item.name for item in fields(kind)]
        example = "{" + ", ".join(f"{name}: ..." for name in required or names[:1]) + "}"
        return f"settings such as `{example}` (of {', '.join(names)})"
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if _takes_function(kind):
        others = [each for each in arguments if each not in get_args(Function)]
        return " or ".join([*map(describe_type, others), _WORDS[Function]])
    if origin in (Union, UnionType):
        return " or ".join(map(describe_type, arguments))
    if origin is tuple:
        count = "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} values"
        return f"{count}, each {describe_type(arguments[0])}"
    return _WORDS.get(origin or kind, str(kind))
