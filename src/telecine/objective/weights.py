"""The weight of every term at a step: constants and ramps, and what is off before `disc_start`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from telecine.base.checks import argument_error, check_step, check_weight, describe, nearest

if TYPE_CHECKING:
    from telecine.objective.config import ObjectiveConfig


def check_start(name: str, value: object) -> int | None:
    """Return a step, or None."""
    return None if value is None else check_step(name, value)


# The fields of a ramp, each with its check.
FIELDS: dict[str, Callable[[str, object], object]] = {
    "weight": check_weight,
    "start": check_start,
    "steps": check_step,
    "initial": check_weight,
}


@dataclass(frozen=True)
class Ramp:
    """A weight that is `initial` before `start` and changes linearly to `weight` within `steps`.

    Steps count updates of the autoencoder. `Ramp(0, initial=1, start=1000, steps=500)` removes a term.

    Raises:
        ValueError: If a weight is negative or not finite, or a step is not a whole number >= 0.
    """

    weight: float
    """The final weight."""
    start: int | None = None
    """Step at which it begins to change; by default `disc_start` for adversarial terms and feature matching, else 0."""
    steps: int = 0
    """Number of steps from `initial` to `weight`; 0 to switch at once."""
    initial: float = 0.0
    """The weight before `start`."""

    def __post_init__(self) -> None:
        for name, check in FIELDS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))

    def at(self, step: int) -> float:
        """Return the weight at a step."""
        start = self.start or 0
        if step < start:
            return self.initial
        fraction = min((step - start) / self.steps, 1.0) if self.steps else 1.0
        return self.initial + (self.weight - self.initial) * fraction

    @property
    def is_ever_on(self) -> bool:
        """Whether the weight is above 0 at any step."""
        return self.weight > 0 or self.initial > 0


Weight: TypeAlias = float | Ramp
# The arguments that count only from `disc_start` on.
ADVERSARIAL = ("adversarial_loss_weight", "multiscale_adversarial_loss_weight", "feature_matching_loss_weight")


@dataclass(frozen=True)
class Weights:
    """The weight of every term at one step; a term of weight 0 is not computed."""

    step: int
    perceptual: float
    adversarial: float
    multiscale: float
    feature_matching: float
    aux: float
    penalty: float
    """Times the interval, on every step that has a penalty; 0 on the other steps."""
    lecam: float
    terms: Mapping[str, float]
    scheduled: Mapping[str, float]
    """Those given as a ramp, by argument name, for the log."""
    discriminators_train: bool


class WeightSchedule:
    """Every weight as a function of the step.

    Args:
        config: The settings of the objective.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        self.disc_start = check_step("disc_start", config.disc_start)
        self.disc_train_start = check_step("gan.disc_train_start", config.gan.disc_train_start)
        self.penalty_every = config.penalty.every
        self.terms = {name: f"{name}_loss_weight" for name in config.named_terms}
        given: dict[str, object] = {
            "perceptual_weight": config.perceptual_weight,
            "adversarial_loss_weight": config.adversarial_loss_weight,
            "multiscale_adversarial_loss_weight": config.multiscale_adversarial_loss_weight,
            "feature_matching_loss_weight": config.gan.feature_matching_loss_weight,
            "quantizer_aux_loss_weight": config.quantizer_aux_loss_weight,
            "grad_penalty_loss_weight": config.grad_penalty_loss_weight,
            "lecam_loss_weight": config.gan.lecam_loss_weight,
            **{self.terms[name]: term.weight for name, term in config.named_terms.items()},
        }
        self.ramps = {name: as_ramp(name, weight, self._start_of(name)) for name, weight in given.items()}
        self.scheduled = [name for name, weight in given.items() if not isinstance(weight, (int, float))]

    def _start_of(self, name: str) -> int:
        return self.disc_start if name in ADVERSARIAL else 0

    def is_ever_on(self, name: str) -> bool:
        """Return whether the weight of this argument is above 0 at any step."""
        return self.ramps[name].is_ever_on

    def is_term_ever_on(self, name: str) -> bool:
        """Return whether the weight of this additional term is above 0 at any step."""
        return self.ramps[self.terms[name]].is_ever_on

    def values(self, step: int) -> dict[str, float]:
        """Return every weight at a step by argument name."""
        return {name: 0.0 if step < self._start_of(name) else ramp.at(step) for name, ramp in self.ramps.items()}

    def off_at(self, step: int) -> list[str]:
        """Return the arguments whose weight is 0 at this step, and above 0 at another."""
        values = self.values(step)
        return [name for name, ramp in self.ramps.items() if ramp.is_ever_on and not values[name]]

    def busiest_step(self, num_steps: int | None = None) -> int:
        """Return a step at which as many terms as possible are on, and a gradient penalty if there is one.

        Args:
            num_steps: Only steps before this one; the penalty may be off then.
        """
        changes = [(ramp.start or 0) + ramp.steps for ramp in self.ramps.values()]
        changes += [self.disc_start, self.disc_train_start]
        every = self.penalty_every
        # The first step with a penalty from each change on, and the last one before it: a ramp may end at 0.
        steps = {-(-step // every) * every for step in changes} | {
            max(0, step - 1) // every * every for step in changes
        }
        if num_steps is not None:
            steps = {min(step, num_steps - 1) for step in steps}
        return min(steps, key=lambda step: (step < self.disc_train_start, len(self.off_at(step)), -step))

    def at(self, step: int) -> Weights:
        """Return what the two steps of an update need."""
        values = self.values(step)
        discriminators_train = step >= self.disc_train_start
        has_penalty = discriminators_train and step % self.penalty_every == 0
        return Weights(
            step=step,
            perceptual=values["perceptual_weight"],
            adversarial=values["adversarial_loss_weight"],
            multiscale=values["multiscale_adversarial_loss_weight"],
            feature_matching=values["feature_matching_loss_weight"],
            aux=values["quantizer_aux_loss_weight"],
            penalty=values["grad_penalty_loss_weight"] * self.penalty_every if has_penalty else 0.0,
            lecam=values["lecam_loss_weight"],
            terms={name: values[argument] for name, argument in self.terms.items()},
            scheduled={name: values[name] for name in self.scheduled},
            discriminators_train=discriminators_train,
        )


def as_ramp(name: str, value: object, start: int = 0) -> Ramp:
    """Return a weight as a `Ramp`.

    Args:
        name: The argument's name, for errors.
        value: A number, a `Ramp`, or a mapping of a ramp's fields, as from a YAML file.
        start: The ramp's start if `value` has none.

    Raises:
        ValueError: If it is none of these or a field is out of range.
    """
    if isinstance(value, Mapping):
        value = _from_mapping(name, value)
    if not isinstance(value, Ramp):
        value = Ramp(check_weight(name, value))
    return replace(value, start=start if value.start is None else value.start)


def _from_mapping(name: str, value: Mapping[str, Any]) -> Ramp:
    for key, given in value.items():
        if key not in FIELDS:
            remedy = nearest(str(key), FIELDS) or f"Its fields are: {', '.join(FIELDS)}."
            raise argument_error(f"{name}.{key}", "a field of a ramp", describe(given), remedy)
        FIELDS[key](f"{name}.{key}", given)
    if "weight" not in value:
        raise argument_error(name, "a number or a ramp with a `weight`", describe(value), "Add `weight`.")
    return Ramp(**value)
