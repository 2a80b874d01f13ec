"""Nested values as the dataclass of their settings, and one sentence for each error in them.

Rules between settings are in `__post_init__` of their groups.
"""

from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from telecine.base.checks import ArgumentError, SettingsError, describe, nearest
from telecine.settings.listing import ANY_NAME, choices_of, settings_of

T = TypeVar("T")
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
# What a value must be, where pydantic's message also has a reason, or is long.
_CONTRACTS = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "too_short": "a list of at least {min_length} values",
    "too_long": "a list of at most {max_length} values",
    "dict_type": "a group of `name: value`",
    "mapping_type": "a group of `name: value`",
    "dataclass_type": "a group of settings",
    "callable_type": "the dotted path of a function",
}


def validate(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return settings as their dataclass.

    Args:
        kind: The dataclass.
        values: The settings by name. Groups and ramps are dicts or instances.
        prefix: Stands before the names of settings in errors.

    Raises:
        SettingsError: It has all errors.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise settings_error(error, kind, values, prefix) from None


def settings_error(
    error: ValidationError, kind: Any, values: Mapping[str, Any], prefix: str = ""
) -> SettingsError:
    """Return one error with all that pydantic found in settings.

    Args:
        error: What pydantic raised.
        kind: The dataclass or the model of the settings.
        values: The nested settings that were read.
        prefix: Stands before the names of the settings.
    """
    by_path: dict[tuple[str, ...], list[ErrorDetails]] = {}
    misspelt = set()
    for details in error.errors(include_url=False):
        location = details["loc"]
        if location and isinstance(location[0], int):  # an argument without its name
            location = (list(kind.__pydantic_fields__)[location[0]], *location[1:])
        path = _path(location, values)
        # A value that fits no type of a union has an error for each of them.
        by_path.setdefault(path, []).append(details)
        if details["type"] in _UNKNOWN:
            misspelt.add(path[:-1])
    errors = []
    for path, wrong in by_path.items():
        # Of a group with a misspelt name, another one is often missing only for that reason.
        if wrong[0]["type"] != "missing" or path not in misspelt:
            errors.append(_describe_error(kind, prefix, path, wrong))
    return SettingsError(errors)


def _path(location: tuple[int | str, ...], values: Any) -> tuple[str, ...]:
    """Return the names in a location. pydantic puts the type of a union between them, which is no key of a value."""
    path = []
    for part in location:
        is_key = isinstance(values, Mapping) and part in values
        is_index = (
            isinstance(values, (list, tuple)) and isinstance(part, int) and part < len(values)
        )
        if is_key or is_index:
            path.append(str(part))
            values = values[part]
    return tuple(path)


def _describe_error(
    kind: Any, prefix: str, path: tuple[str, ...], wrong: list[ErrorDetails]
) -> ArgumentError:
    """Return what is wrong with the value at a path, or with the name of no setting."""
    name = prefix + ".".join(path)
    details = wrong[0]
    value = details["input"]
    if details["type"] == "value_error":
        # Raised by a check between settings of a group, which names them without the group.
        group = f"{name}." if path else prefix
        error = details["ctx"]["error"]
        if isinstance(error, ArgumentError):
            return ArgumentError(error.text, group + error.name)
        return ArgumentError(str(error))
    if details["type"] in _UNKNOWN:
        names = [setting.name for setting in settings_of(kind, prefix, inside_values=True)]
        if len(path) > 1:
            names = [candidate.replace(ANY_NAME, path[-2]) for candidate in names]
        return ArgumentError(f"is not a setting. {nearest(name, names)}".rstrip(), name)
    if details["type"] == "missing" and not path:
        return ArgumentError("must be set.", f"{prefix}{details['loc'][-1]}")
    if details["type"] == "missing":
        contract, remedy = _contract_of_missing(name, details["loc"][-1])
    else:
        contract = " or ".join(dict.fromkeys(_contract(details) for details in wrong))
        remedy = _remedy(kind, path, value)
    return ArgumentError(f"must be {contract}, but got {describe(value)}. {remedy}".rstrip(), name)


def _contract_of_missing(name: str, missing: int | str) -> tuple[str, str]:
    """Return what a list or a group without one of its values must be, and what to do."""
    if isinstance(missing, int):
        return f"a list of at least {missing + 1} values", ""
    return f"a group with `{missing}`", f"Set `{name}.{missing}`, too."


def _contract(details: ErrorDetails) -> str:
    """Return what a value must be, from the kind of the error or from pydantic's "Input should be ..."."""
    words = _CONTRACTS.get(details["type"])
    if words is not None:
        return words.format(**details.get("ctx", {}))
    return details["msg"].removeprefix("Input should be ")


def _remedy(kind: Any, path: tuple[str, ...], value: object) -> str:
    """Return the nearest of the words that a setting may be, else its default, as a sentence."""
    name = ".".join(path)
    for setting in settings_of(kind, inside_values=True):
        if setting.name != name:
            continue
        if isinstance(value, str):
            similar = nearest(value, [str(choice) for choice in choices_of(setting.kind)])
            if similar:
                return similar
        if not setting.is_group and setting.default is not MISSING:
            return f"Without a recipe, it is {setting.default!r}."
    return ""
