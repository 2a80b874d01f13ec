"""The weight of every term at a step of training."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from telecine.base.shapes import Scalar
from telecine.settings import ObjectiveConfig, Ramp


@dataclass(frozen=True)
class Weights:
    """The weights of all terms at one step. A term of weight 0 is not computed.

    Args:
        by_term: The weight of each term in its loss, by name. The gradient penalty has its setting times
            `WeightSchedule.penalty_factor`.
        ramps: The settings that are ramps at this step, by their names in the log.
        discriminators_train: Whether the discriminators train at this step.
    """

    by_term: Mapping[str, float]
    ramps: Mapping[str, float]
    discriminators_train: bool

    def __getitem__(self, name: str) -> float:
        return self.by_term[name]

    def sum(self, values: Mapping[str, Scalar]) -> Scalar | float:
        """Return the sum of weight times value. Zero weights are skipped: 0 * NaN is NaN."""
        weighted = []
        for name, value in values.items():
            if self.by_term[name] != 0:
                weighted.append(self.by_term[name] * value)
        if not weighted:
            return 0.0
        return sum(weighted[1:], weighted[0])


class WeightSchedule:
    """Every weight as a function of the step."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.schedules = config.term_schedules()
        self.disc_start = config.disc_start
        self.disc_train_start = config.gan.disc_train_start
        self.penalty_every = config.penalty.every

    def is_ever_on(self, term: str) -> bool:
        """Return whether the weight of a term is above 0 at any step."""
        return self.schedules[term].ramp.is_ever_on

    def off_at(self, step: int) -> list[str]:
        """Return the weights, by their names in the log, that are 0 at this step and above 0 at another."""
        return [
            schedule.weight_key
            for schedule in self.schedules.values()
            if schedule.ramp.is_ever_on and not schedule.at(step)
        ]

    def step_with_most_terms(self, num_steps: int | None = None) -> int:
        """Return a step at which as many terms as possible are on, and a gradient penalty if there is one.

        Args:
            num_steps: If not `None`, the step is before this one, and the penalty may be off.
        """
        changes = [self.disc_start, self.disc_train_start]
        for schedule in self.schedules.values():
            changes.append((schedule.ramp.start or 0) + schedule.ramp.steps)
        every = self.penalty_every
        candidates = set()
        for change in changes:
            # The first step with a penalty from each change on, and the last one before it: a ramp may end at 0.
            candidates.add(math.ceil(change / every) * every)
            candidates.add(max(0, change - 1) // every * every)
        if num_steps is not None:
            candidates = {min(step, num_steps - 1) for step in candidates}
        # First, the discriminators train if they ever do; then as few terms as possible are off; then it is late.
        with_discriminators = {step for step in candidates if step >= self.disc_train_start}
        if with_discriminators:
            candidates = with_discriminators
        num_off = {step: len(self.off_at(step)) for step in candidates}
        fewest = min(num_off.values())
        return max(step for step in candidates if num_off[step] == fewest)

    def discriminators_train(self, step: int) -> bool:
        """Return whether the discriminators train at a step."""
        return step >= self.disc_train_start

    def penalty_factor(self, step: int) -> float:
        """Return what the weight of the gradient penalty is multiplied by: n on every n-th step, 0 on the others.

        This is lazy regularisation (arXiv:1912.04958), from the step on from which the discriminators train.
        """
        if not self.discriminators_train(step) or step % self.penalty_every != 0:
            return 0.0
        return self.penalty_every

    def at(self, step: int) -> Weights:
        """Return the weights of both steps of an update."""
        by_term: dict[str, float] = {}
        ramps: dict[str, float] = {}
        for name, schedule in self.schedules.items():
            weight = schedule.at(step)
            if isinstance(schedule.weight, Ramp):
                ramps[schedule.weight_key] = weight
            if name == "grad_penalty":
                weight *= self.penalty_factor(step)
            by_term[name] = weight
        return Weights(by_term, ramps, self.discriminators_train(step))


def total(values: Iterable[Scalar], *, like: Tensor) -> Scalar:
    """Return the sum of the values, 0 on `like`'s device if there are none."""
    values = list(values)
    if len(values) == 1:
        return values[0]
    if not values:
        return torch.zeros((), device=like.device)
    return torch.stack(values).sum()


def mean(values: Iterable[Scalar], *, like: Tensor) -> Scalar:
    """Return the mean of the values, 0 on `like`'s device if there are none."""
    values = list(values)
    if len(values) > 1:
        return total(values, like=like) / len(values)
    return total(values, like=like)
