"""The logs of both steps, as callers get them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.logged_values import logged_by
from telecine.base.shapes import Scalar
from telecine.losses import GANLoss
from telecine.objective.gan import DiscriminatorTerms
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
    """Return all names that `autoencoder_log` has at any step, apart from auxiliary losses.

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
        by = logged_by(name)
        if name in logged and by in (None, "model") and name.endswith("_loss"):
            raise name_error(name, term=name.removesuffix("_loss"))
        if name in logged or by == "discriminators":
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
    loss: Scalar, terms: Mapping[str, DiscriminatorTerms], gan_loss: GANLoss, split: str
) -> Log:
    """Return the log of the discriminators' step: sums of their terms, means of the statistics of their logits.

    If there are several discriminators, the GAN loss and the statistics of each follow. If none trains, the log has
    the loss alone, which is 0.

    Args:
        loss: The sum of the discriminators' losses.
        terms: The terms of each discriminator that trains at this step, by its name.
        gan_loss: The GAN loss, for the statistics.
        split: The prefix of each name.
    """
    # Values by their names in the log, then by discriminator.
    summed: dict[str, Log] = {}
    averaged: dict[str, Log] = {}
    for d, terms_of_d in terms.items():
        summed.setdefault("discr_loss", {})[d] = terms_of_d.gan_loss
        for name, value in terms_of_d.regularisers.items():
            summed.setdefault(f"{name}_loss", {})[d] = value
        assert terms_of_d.real_logits is not None
        assert terms_of_d.fake_logits is not None
        statistics = logit_statistics(
            real=terms_of_d.real_logits, fake=terms_of_d.fake_logits, gan_loss=gan_loss
        )
        for name, value in statistics.items():
            averaged.setdefault(name, {})[d] = value

    log = {"total_disc_loss": loss}
    for name, values in summed.items():
        log[name] = total(values.values(), like=loss)
    for name, values in averaged.items():
        log[name] = mean(values.values(), like=loss)
    if len(terms) > 1:
        for name in ("discr_loss", *averaged):
            for d, value in (summed | averaged)[name].items():
                log[f"{name}_{d}"] = value
    return detached_copies(log, split)


@torch.no_grad()
def logit_statistics(*, real: Tensor, fake: Tensor, gan_loss: GANLoss) -> Log:
    """Return mean and spread of the logits, the fractions that are right, and the fraction with a gradient.

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
