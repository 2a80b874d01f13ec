"""Weights that depend on the step: where a term starts, and how it ramps up or down from there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from telecine.shapes import argument_error, describe, nearest


@dataclass(frozen=True)
class Ramp:
    """A weight that is `initial` before `start` and goes linearly from there to `weight` within `steps`.

    Steps count updates of the autoencoder. A term is not computed while its weight is 0. `Ramp(0, initial=1,
    start=1000, steps=500)` takes a term away.

    Raises:
        ValueError: If a weight is negative or not finite, or a step is no whole number >= 0.
    """

    weight: float
    """The weight in the end."""
    start: int | None = None
    """Step at which it begins to change; by default the term's own start, which is `disc_start` for what the
    discriminators judge, and 0 for everything else."""
    steps: int = 0
    """Number of steps from `initial` to `weight`; 0 for at once."""
    initial: float = 0.0
    """The weight before."""

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)
        check_weight("initial", self.initial)
        check_step("steps", self.steps)
        check_step("start", self.start or 0)

    def at(self, step: int) -> float:
        """Return the weight at a step."""
        start = self.start or 0
        if step < start:
            return self.initial
        share = min((step - start) / self.steps, 1.0) if self.steps else 1.0
        return self.initial + (self.weight - self.initial) * share

    @property
    def is_ever_on(self) -> bool:
        """Whether the term counts at any step."""
        return self.weight > 0 or self.initial > 0

    @property
    def changes(self) -> bool:
        """Whether the weight is not the same at all steps."""
        return self.initial != self.weight and (self.steps > 0 or (self.start or 0) > 0)


def as_ramp(name: str, value: Any, start: int = 0) -> Ramp:
    """Return the schedule that a caller describes.

    Args:
        name: The argument's name, for errors.
        value: A number, a `Ramp`, or a mapping of a ramp's fields, as from a YAML file.
        start: The term's own start, where `value` does not say.

    Raises:
        ValueError: If it is none of these or a field is out of its range.
    """
    if isinstance(value, Mapping):
        value = _from_mapping(name, value)
    if not isinstance(value, Ramp):
        value = Ramp(check_weight(name, value))
    return replace(value, start=start if value.start is None else value.start)


def as_ramps(name: str, values: Any) -> dict[str, Ramp]:
    """Return the schedules of a mapping of names to weights; raise a `ValueError` unless it is one."""
    if not isinstance(values, Mapping):
        raise argument_error(name, "a dict of weights by name", describe(values), "Write {'kl_loss': 1e-6}.")
    return {str(key): as_ramp(f"{name}[{key!r}]", value) for key, value in values.items()}


def check_weight(name: str, value: Any) -> float:
    """Return a term's weight as a float; raise a `ValueError` unless it is a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value < math.inf):
        raise argument_error(name, "a finite number >= 0", describe(value), "Use 0 to turn the term off.")
    return float(value)


def check_step(name: str, value: Any) -> int:
    """Return the step from which something happens; raise a `ValueError` unless it is a whole number >= 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value < math.inf) or value % 1:
        raise argument_error(name, "a whole number of steps >= 0", describe(value), "Use 0 for from the first step on.")
    return int(value)


def _from_mapping(name: str, value: Mapping[Any, Any]) -> Ramp:
    known = [field.name for field in fields(Ramp)]
    for key in value:
        if key not in known:
            remedy = nearest(str(key), known) or f"It takes: {', '.join(known)}."
            raise argument_error(f"{name}.{key}", "a field of a ramp", describe(value[key]), remedy)
    if "weight" not in value:
        raise argument_error(name, "a number or a ramp with a `weight`", describe(value), "Add `weight`.")
    return Ramp(**value)
