"""Which lengths, heights and widths an autoencoder reproduces, and the error that names the nearest of them."""

from __future__ import annotations

from telecine.shapes import argument_error


def ceil_div(value: int, by: int) -> int:
    """Return `value / by`, rounded up."""
    return -(-value // by)


def check_multiple(
    name: str, value: int, unit: str, *, step: int, offset: int = 0, smallest: int | None = None
) -> None:
    """Raise a `ValueError` naming the nearest `step * k + offset` unless `value` is one, and `smallest` or more."""
    smallest = smallest or offset or step
    nearest = max((value - offset + step // 2) // step * step + offset, smallest)
    if value != nearest:
        raise size_error(name, value, unit, rule=progression(step, offset), nearest=nearest)


def progression(step: int, offset: int) -> str:
    """Say in words which numbers `step * k + offset` is."""
    return f"{step}k+{offset}" if offset else f"a multiple of {step}"


def size_error(name: str, value: int, unit: str, *, rule: str, nearest: int) -> Exception:
    """Build the error of a size that a model does not reproduce."""
    remedy = f"Give it {nearest} {unit}, not {value}: this model needs {rule}."
    return argument_error(name, rule, str(value), remedy)
