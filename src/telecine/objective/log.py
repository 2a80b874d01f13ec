"""The logs of both steps, as callers get them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.logged_values import find_logged_value
from telecine.base.shapes import Scalar
from telecine.losses import GANLoss
from telecine.objective.terms import TermValues
from telecine.objective.weights import Weights, mean, total
from telecine.settings import Ramp, TermSchedule

Log: TypeAlias = dict[str, Tensor]
"""Detached values by name."""

COGVIDEO_LOG = {
    0: ("perceptual_loss",),
    1: ("discr_loss", "grad_penalty_loss", "logits_real", "logits_fake"),
}
"""What CogVideo's loss logs in the step of each `optimizer_idx`, as 0 while it is not computed."""


def autoencoder_log(
    logged: TermValues,
    generator_losses: Mapping[str, Scalar],
    adaptive_weights: Log,
    aux: Mapping[str, Scalar],
    weights: Weights,
    split: str,
) -> Log:
    """Return the log of the autoencoder's step.

    Args:
        logged: Values by their names in the log: the loss, "total_loss", its terms, and what a learned variance adds.
        generator_losses: The generator's losses by discriminator.
        adaptive_weights: Their adaptive weights by discriminator.
        aux: The auxiliary losses by name.
        weights: The weights at this step; those that are ramps are logged.
        split: The prefix of each name.
    """
    like = logged["total_loss"]
    log = {
        **logged,
        "aux_losses": total(aux.values(), like=like),
        "gen_loss": total(generator_losses.values(), like=like),
        "adaptive_weight": mean(adaptive_weights.values(), like=like),
    }
    if len(generator_losses) > 1:
        log |= {f"gen_loss_{key}": value for key, value in generator_losses.items()}
        log |= {f"adaptive_weight_{key}": value for key, value in adaptive_weights.items()}
    for name, weight in weights.ramps.items():
        log[name] = torch.full((), weight, device=like.device)
    return detached_copies({**log, **{name: value for name, value in aux.items() if name}}, split)


def names_in_autoencoder_log(
    terms: Iterable[TermSchedule], discriminators: Sequence[str], *, has_logvar: bool
) -> list[str]:
    """Return all names that `autoencoder_log` has at any step, beside those of auxiliary losses.

    Args:
        terms: All terms of the objective.
        discriminators: The names of the discriminators.
        has_logvar: Whether the variance is learned.
    """
    names = ["recon_loss", "total_loss", "aux_losses", "gen_loss", "adaptive_weight"]
    if has_logvar:
        names += ["nll_loss", "logvar"]
    for term in terms:
        if term.ramp.is_ever_on and term.part_of is None:
            names.append(f"{term.name}_loss")
        if isinstance(term.weight, Ramp):
            names.append(term.weight_key)
    if len(discriminators) > 1:
        for key in discriminators:
            names += [f"gen_loss_{key}", f"adaptive_weight_{key}"]
    return names


def check_names_of_aux_losses(aux: Mapping[str, Scalar], logged: Sequence[str]) -> None:
    """Check that auxiliary losses have other names than all else that both steps log.

    Raises:
        ValueError: One has the name of an entry of `logged` or of the discriminators' step.
    """
    for name in aux:
        value = find_logged_value(name)
        is_of_discriminators = value is not None and value.logged_by == "discriminators"
        is_of_model = value is not None and value.logged_by == "model"
        if name in logged and (value is None or is_of_model) and name.endswith("_loss"):
            raise name_error(name, term=name.removesuffix("_loss"))
        if name in logged or is_of_discriminators:
            raise name_error(name)


def name_error(aux_loss: str, term: str | None = None) -> Exception:
    """Return the error of an auxiliary loss with the name of another entry of the log.

    Args:
        aux_loss: The name of the auxiliary loss.
        term: The name of the term of `terms` that is the other entry; `None` if it is another value.
    """
    remedy = f"Rename it, for instance to 'quantizer_{aux_loss}'"
    if term is not None:
        # Auxiliary losses of models in the library have fixed names.
        remedy += f", or the term `{term}` of the objective"
    return argument_error(
        "aux_losses", "named unlike all else in the log", repr(aux_loss), f"{remedy}."
    )


def discriminator_log(
    loss: Scalar,
    gan_losses: Mapping[str, Tensor],
    regularisers: Mapping[str, Log],
    statistics: Mapping[str, Log],
    *,
    like: Tensor,
    split: str,
) -> Log:
    """Return the log of the discriminators' step: sums of their terms, means of their statistics.

    If there are several discriminators, the GAN loss and the statistics of each follow. If none trains, the log has
    the loss alone, which is 0.

    Args:
        loss: The sum of the discriminators' losses.
        gan_losses: The GAN loss of each discriminator that trains at this step, by its name.
        regularisers: The other terms of its loss, by their names.
        statistics: Its statistics by name.
        like: A tensor on the device of the log.
        split: The prefix of each name.
    """
    combined = {"total_disc_loss": loss}
    if gan_losses:
        combined["discr_loss"] = total(gan_losses.values(), like=like)
    if len(gan_losses) > 1:
        combined |= {f"discr_loss_{key}": value for key, value in gan_losses.items()}
    for name, values in _by_name(regularisers).items():
        combined[f"{name}_loss"] = total(values.values(), like=like)
    for name, values in _by_name(statistics).items():
        combined[name] = mean(values.values(), like=like)
        if len(values) > 1:
            combined |= {f"{name}_{key}": value for key, value in values.items()}
    return detached_copies(combined, split)


def _by_name(logs: Mapping[str, Log]) -> dict[str, Log]:
    """Return the logs of discriminators as the values of each name, by discriminator."""
    values: dict[str, Log] = {}
    for key, log in logs.items():
        for name, value in log.items():
            values.setdefault(name, {})[key] = value
    return values


@torch.no_grad()
def logit_statistics(*, real: Tensor, fake: Tensor, gan_loss: GANLoss) -> Log:
    """Return mean and spread of the logits, the fractions that are right, and that of logits with a gradient.

    Args:
        real: Logits of real samples, of any shape.
        fake: Logits of reconstructions; of `real`'s shape if the loss has no `boundary`.
        gan_loss: The loss, whose `boundary` and `margin` are compared with.
    """
    real = real.detach().float()
    fake = fake.detach().float()
    if gan_loss.boundary is None:
        flags = [real > fake, real > fake]
    else:
        flags = [real > gan_loss.boundary, fake < gan_loss.boundary]
    if gan_loss.margin is not None:
        flags += [real < gan_loss.margin, fake > -gan_loss.margin]
    fractions = torch.stack(flags).flatten(1).float().mean(1)
    log = {
        "logits_real": real.mean(),
        "logits_fake": fake.mean(),
        "logits_real_std": real.std(correction=0),
        "logits_fake_std": fake.std(correction=0),
        "accuracy_real": fractions[0],
        "accuracy_fake": fractions[1],
    }
    if gan_loss.margin is not None:
        log["hinge_active"] = (fractions[2] + fractions[3]) / 2
    return log


def detached_copies(log: Log, split: str) -> Log:
    """Return detached float32 copies, named with the split before each name."""
    copies = torch.stack([value.detach().float() for value in log.values()]).unbind()
    return {f"{split}/{name}": value for name, value in zip(log, copies, strict=True)}
