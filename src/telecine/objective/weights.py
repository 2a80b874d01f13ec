"""The weight of every term at a step, weighted sums, and the log of a step."""

from collections.abc import Collection, Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.shapes import Scalar
from telecine.objective.batch import Batch
from telecine.settings import ObjectiveConfig, Ramp

Log: TypeAlias = dict[str, Tensor]

# How the names begin that the discriminators' step and training add to the log of the autoencoder's step.
_ADDED = (
    *("total_disc_loss", "discr_loss", "lecam_loss", "logits_real", "logits_fake", "accuracy_real", "accuracy_fake"),
    *("hinge_active", "grad_norm", "grad_clipped", "grad_overflow", "grad_penalty_loss", "update_ratio"),
    *("frame_gradient_", "adversarial_gradient_", "ema_psnr_behind"),
)


class Weights(dict[str, float]):
    """The weight of each term at one step by the term's name; a term of weight 0 is not computed.

    That of the gradient penalty is times its interval, and 0 on the steps between.
    """

    scheduled: Mapping[str, float]  # the weights that are ramps, by their names in the log
    discriminators_train: bool  # whether the discriminators train at this step

    def sum(self, terms: Mapping[str, Scalar | Collection[Scalar]]) -> Scalar | float:
        """Return the sum of weight times term; a term may have several parts. Skip zero weights: 0 * NaN is NaN."""
        on = {name: [term] if isinstance(term, Tensor) else [*term] for name, term in terms.items() if self[name] != 0}
        weighted = [self[name] * total(parts, like=parts[0]) for name, parts in on.items() if parts]
        return sum(weighted[1:], weighted[0]) if weighted else 0.0


class WeightSchedule:
    """Every weight as a function of the step."""

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

    def step_with_most_terms(self, num_steps: int | None = None) -> int:
        """Return a step at which as many terms as possible are on, and a gradient penalty if there is one.

        With `num_steps` it is before that step, and the penalty may be off.
        """
        ramps = [term.ramp for term in self.terms.values()]
        changes = [(ramp.start or 0) + ramp.steps for ramp in ramps] + [self.disc_start, self.disc_train_start]
        every = self.penalty_every
        # The first step with a penalty from each change on, and the last one before it: a ramp may end at 0.
        steps = {max(0, last) // every * every for step in changes for last in (step - 1, step + every - 1)}
        if num_steps is not None:
            steps = {min(step, num_steps - 1) for step in steps}
        return min(steps, key=lambda step: (step < self.disc_train_start, len(self.off_at(step)), -step))

    def at(self, step: int) -> Weights:
        """Return the weights of both steps of an update."""
        weights = Weights({name: term.at(step) for name, term in self.terms.items()})
        ramps = {name: term for name, term in self.terms.items() if isinstance(term.weight, Ramp)}
        weights.scheduled = {term.weight_key: weights[name] for name, term in ramps.items()}
        weights.discriminators_train = step >= self.disc_train_start
        has_penalty = weights.discriminators_train and step % self.penalty_every == 0
        weights["grad_penalty"] *= self.penalty_every if has_penalty else 0
        return weights


def _named(log: Log, split: str) -> Log:
    """Return the log as callers get it: detached float32 copies, the split before each name."""
    copies = torch.stack([value.detach().float() for value in log.values()]).unbind()
    return {f"{split}/{name}": value for name, value in zip(log, copies, strict=True)}


def total(terms: Iterable[Scalar], *, like: Tensor) -> Scalar:
    """Return the sum of the terms, 0 on `like`'s device if there are none."""
    terms = list(terms)
    if len(terms) == 1:
        return terms[0]
    return torch.stack(terms).sum() if terms else torch.zeros((), device=like.device)


def mean(terms: Iterable[Scalar], *, like: Tensor) -> Scalar:
    """Return the mean of the terms, 0 on `like`'s device if there are none."""
    terms = list(terms)
    return total(terms, like=like) / len(terms) if len(terms) > 1 else total(terms, like=like)


def _each(name: str, terms: Mapping[str, Tensor]) -> Log:
    """Return `{name}_{discriminator}` for every discriminator if there are several."""
    return {f"{name}_{key}": term for key, term in terms.items()} if len(terms) > 1 else {}


def autoencoder_log(log: Log, g: Log, w: Log, weights: Weights, batch: Batch) -> Log:
    """Return the log of the autoencoder's step as callers get it.

    `log` has the loss and its terms. Added are the generator losses `g`, the adaptive weights `w`, the weights that are
    ramps, and the auxiliary losses; raise a `ValueError` if one of them has the name of another entry.
    """
    like = log["total_loss"]
    log = {
        **log,
        "aux_losses": total(batch.aux.values(), like=like),
        "gen_loss": total(g.values(), like=like),
        "adaptive_weight": mean(w.values(), like=like),
        **_each("gen_loss", g),
        **_each("adaptive_weight", w),
        **{name: torch.full((), value, device=like.device) for name, value in weights.scheduled.items()},
    }
    for name in batch.aux:
        if name.removeprefix("disc_").startswith(_ADDED) or name in (*log, "mse", "lr", "clips_per_second"):
            remedy = f"Rename it, for instance to 'quantizer_{name}'."
            raise argument_error("aux_losses", "named unlike all else in the log", repr(name), remedy)
    return _named(log | {name: value for name, value in batch.aux.items() if name}, batch.split)


def discriminator_log(loss: Scalar, logs: Mapping[str, Log], batch: Batch) -> Log:
    """Return the log of the discriminators' step as callers get it: sums of their terms, means of their statistics.

    Each discriminator's own values follow if there are several. If none trains, losses and mean logits are 0 and the
    other statistics are left out.
    """
    always = ("discr_loss", "grad_penalty_loss", "logits_real", "logits_fake")
    found = {"total_disc_loss": loss}
    for name in dict.fromkeys((*always, *(name for log in logs.values() for name in log if name != "loss"))):
        values = {key: log[name] for key, log in logs.items() if name in log}
        is_sum = name.endswith("_loss")
        found[name] = (total if is_sum else mean)(values.values(), like=batch.real)
        found |= {} if is_sum and name != "discr_loss" else _each(name, values)
    return _named(found, batch.split)
