"""The weight of every term at a step: constants, ramps, and 0 before `disc_start`."""

from __future__ import annotations

from collections.abc import Mapping

from telecine.settings import ObjectiveConfig, Ramp


class Weights(dict[str, float]):
    """The weight of each term at one step by the term's name; a term of weight 0 is not computed.

    That of the gradient penalty is times its interval, and 0 on the steps between.

    Args:
        values: The weights.
        scheduled: Those that are ramps, by their names in the log.
        discriminators_train: Whether the discriminators train at this step.
    """

    def __init__(
        self, values: Mapping[str, float], *, scheduled: Mapping[str, float], discriminators_train: bool
    ) -> None:
        super().__init__(values)
        self.scheduled = scheduled
        self.discriminators_train = discriminators_train


class WeightSchedule:
    """Every weight as a function of the step.

    Args:
        config: The settings of the objective.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        self.terms = config.all_terms()
        self.disc_start = config.disc_start
        self.disc_train_start = config.gan.disc_train_start
        self.penalty_every = config.penalty.every

    def is_ever_on(self, term: str) -> bool:
        """Return whether the weight of a term is above 0 at any step."""
        return self.terms[term].ramp.is_ever_on

    def off_at(self, step: int) -> list[str]:
        """Return the weights, by their names in the log, that are 0 at this step and above 0 at another."""
        return [term.weight_key for term in self.terms.values() if term.ramp.is_ever_on and not term.at(step)]

    def busiest_step(self, num_steps: int | None = None) -> int:
        """Return a step at which as many terms as possible are on, and a gradient penalty if there is one.

        Args:
            num_steps: Only steps before this one; the penalty may be off then.
        """
        ramps = [term.ramp for term in self.terms.values()]
        changes = [(ramp.start or 0) + ramp.steps for ramp in ramps] + [self.disc_start, self.disc_train_start]
        every = self.penalty_every
        # The first step with a penalty from each change on, and the last one before it: a ramp may end at 0.
        steps = {-(-step // every) * every for step in changes} | {
            max(0, step - 1) // every * every for step in changes
        }
        if num_steps is not None:
            steps = {min(step, num_steps - 1) for step in steps}
        return min(steps, key=lambda step: (step < self.disc_train_start, len(self.off_at(step)), -step))

    def at(self, step: int) -> Weights:
        """Return the weights of both steps of an update."""
        values = {name: term.at(step) for name, term in self.terms.items()}
        scheduled = {
            term.weight_key: values[name] for name, term in self.terms.items() if isinstance(term.weight, Ramp)
        }
        trains = step >= self.disc_train_start
        has_penalty = trains and step % self.penalty_every == 0
        values["grad_penalty"] *= self.penalty_every if has_penalty else 0
        return Weights(values, scheduled=scheduled, discriminators_train=trains)
