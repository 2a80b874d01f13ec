"""Plain values, as a JSON file has them, as a dataclass."""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from telecine.base.checks import argument_error, describe

T = TypeVar("T")
_adapter: Any = cache(TypeAdapter)


def as_dataclass(
    kind: type[T], values: Mapping[str, Any], name: str, contract: str, remedy: str
) -> T:
    """Return plain values as a dataclass.

    Args:
        kind: The dataclass, whose fields may have pydantic's constraints.
        values: The values by field.
        name: What has the values, for the error, such as the path of a file.
        contract: What it must be.
        remedy: What to do otherwise.

    Raises:
        ValueError: A value is missing, or its type or range is wrong.
    """
    try:
        return cast(T, _adapter(kind).validate_python(values))
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        value = "no value" if details["type"] == "missing" else describe(details["input"])
        field = ".".join(str(part) for part in details["loc"])
        message = details["msg"][:1].lower() + details["msg"][1:]
        raise argument_error(name, contract, f"{value} as `{field}` ({message})", remedy) from None
