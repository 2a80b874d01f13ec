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
        terms: The weight of each term by name. That of the gradient penalty is `WeightSchedule.penalty_weight`.
        ramps: The weights that change with the step, by their names in the log.
        discriminators_train: Whether the discriminators train at this step.
    """

    terms: Mapping[str, float]
    ramps: Mapping[str, float]
    discriminators_train: bool

    def __getitem__(self, name: str) -> float:
        return self.terms[name]

    def sum(self, values: Mapping[str, Scalar]) -> Scalar | float:
        """Return the sum of weight times value. Zero weights are skipped: 0 * NaN is NaN."""
        weighted = []
        for name, value in values.items():
            if self.terms[name] != 0:
                weighted.append(self.terms[name] * value)
        if not weighted:
            return 0.0
        return sum(weighted[1:], weighted[0])


class WeightSchedule:
    """Every weight as a function of the step."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.terms = config.term_schedules()
        self.disc_start = config.disc_start
        self.disc_train_start = config.gan.disc_train_start
        self.penalty_every = config.penalty.every

    def is_ever_on(self, term: str) -> bool:
        """Return whether the weight of a term is above 0 at any step."""
        return self.terms[term].ramp.is_ever_on

    def off_at(self, step: int) -> list[str]:
        """Return the weights, by their names in the log, that are 0 at this step and above 0 at another."""
        return [
            term.weight_key
            for term in self.terms.values()
            if term.ramp.is_ever_on and not term.at(step)
        ]

    def step_with_most_terms(self, num_steps: int | None = None) -> int:
        """Return a step at which as many terms as possible are on, and a gradient penalty if there is one.

        Args:
            num_steps: If not `None`, the step is before this one, and the penalty may be off.
        """
        changes = [self.disc_start, self.disc_train_start]
        for term in self.terms.values():
            changes.append((term.ramp.start or 0) + term.ramp.steps)
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

    def penalty_weight(self, step: int) -> float:
        """Return the weight of the gradient penalty: the setting times n on every n-th step, 0 on the others.

        This is lazy regularisation (arXiv:1912.04958), from the step on from which the discriminators train.
        """
        if step < self.disc_train_start or step % self.penalty_every != 0:
            return 0.0
        return self.penalty_every * self.terms["grad_penalty"].at(step)

    def at(self, step: int) -> Weights:
        """Return the weights of both steps of an update."""
        weights: dict[str, float] = {}
        ramps: dict[str, float] = {}
        for name, term in self.terms.items():
            weights[name] = term.at(step)
            if isinstance(term.weight, Ramp):
                ramps[term.weight_key] = weights[name]
        weights["grad_penalty"] = self.penalty_weight(step)
        return Weights(weights, ramps, discriminators_train=step >= self.disc_train_start)


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
