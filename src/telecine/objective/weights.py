"""The weight of every term at a step: constants and ramps, and what is off before `disc_start`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from telecine.base.checks import check_step
from telecine.settings import ObjectiveConfig, Weight, as_ramp

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
        self.terms = {name: f"{name}_loss_weight" for name in config.terms}
        given: dict[str, Weight] = {
            "perceptual_weight": config.perceptual_weight,
            "adversarial_loss_weight": config.adversarial_loss_weight,
            "multiscale_adversarial_loss_weight": config.multiscale_adversarial_loss_weight,
            "feature_matching_loss_weight": config.gan.feature_matching_loss_weight,
            "quantizer_aux_loss_weight": config.quantizer_aux_loss_weight,
            "grad_penalty_loss_weight": config.grad_penalty_loss_weight,
            "lecam_loss_weight": config.gan.lecam_loss_weight,
            **{self.terms[name]: term.weight for name, term in config.named_terms.items()},
        }
        self.ramps = {name: as_ramp(weight, name, self._start_of(name)) for name, weight in given.items()}
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
