"""What settings are: frozen dataclasses that pydantic checks, with a sentence for each error."""

import argparse
import functools
import os
from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, cast

import pydantic.dataclasses
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from typing_extensions import dataclass_transform

from telecine.base.imports import is_dotted
from telecine.settings.errors import settings_error

T = TypeVar("T")
_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass_transform(frozen_default=True, field_specifiers=(field, Field))
def group(kind: type[T]) -> type[T]:
    """Make a class a group of settings: a frozen dataclass with a docstring below each field, which is its help.

    Values are checked when an instance is created or replaced.

    Raises:
        SettingsError: An instance is created with a wrong value. It is a `ValueError` of one line for each error.
    """
    made = pydantic.dataclasses.dataclass(kind, frozen=True, config=_CONFIG)
    check = made.__init__

    @functools.wraps(check)
    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            check(self, *args, **values)
        except ValidationError as error:
            names = list(made.__dataclass_fields__)
            raise settings_error(
                error, made, {**dict(zip(names, args, strict=False)), **values}
            ) from None

    for base in kind.__mro__[1:]:  # pydantic reads the docstrings of a class's own fields only
        for name, inherited in getattr(base, "__pydantic_fields__", {}).items():
            own = made.__pydantic_fields__[name]
            own.description = own.description or inherited.description
    made.__init__ = init  # type: ignore[method-assign]
    return cast("type[T]", made)


def _to_number(value: object) -> object:
    """Return the number in a text such as "1e4"; refuse true and false, which Python counts as 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "Input should be a number")
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number


def _check_function_path(path: str) -> str:
    if not is_dotted(path):
        raise PydanticCustomError("function", "Input should be the dotted path of a function")
    return path


def _check_power_of_two(value: int) -> int:
    if value & (value - 1):
        raise PydanticCustomError("power_of_two", "Input should be a power of two")
    return value


# PyTorch has integers of 64 bits, and products of counts must stay below their largest.
_LARGEST_COUNT = 2**31 - 1
_Whole: TypeAlias = Annotated[int, BeforeValidator(_to_number)]
Integer: TypeAlias = Annotated[_Whole, Field(ge=-(2**63), lt=2**63)]
Count: TypeAlias = Annotated[_Whole, Field(ge=1, le=_LARGEST_COUNT)]
CountOrZero: TypeAlias = Annotated[_Whole, Field(ge=0, le=_LARGEST_COUNT)]
PowerOfTwo: TypeAlias = Annotated[Integer, Field(ge=1, le=256), AfterValidator(_check_power_of_two)]
Number: TypeAlias = Annotated[float, BeforeValidator(_to_number), Field(allow_inf_nan=False)]
Positive: TypeAlias = Annotated[Number, Field(gt=0)]
NonNegative: TypeAlias = Annotated[Number, Field(ge=0)]
BitDepth: TypeAlias = Annotated[Literal[8, 16], BeforeValidator(_to_number)]
# From 0 to below 1, such as the decay of an average.
Decay: TypeAlias = Annotated[Number, Field(ge=0, lt=1)]
# A path or an address: a shell does not expand the `~` of `--data=~/videos`.
UserPath: TypeAlias = Annotated[str, AfterValidator(os.path.expanduser)]
# A setting that no user types, so that `--help` leaves it out. It is `CliSuppress` of pydantic-settings, which only the
# command line imports.
Unlisted: TypeAlias = Annotated[T, argparse.SUPPRESS]
# The dotted path of a function or of a class, or the object itself.
Function: TypeAlias = Annotated[str, AfterValidator(_check_function_path)] | Callable[..., Any]
DeviceName: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
