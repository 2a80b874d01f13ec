"""The logs of both steps, as callers get them."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.shapes import Scalar
from telecine.losses import GANLoss
from telecine.objective.terms import Terms
from telecine.objective.weights import Weights, mean, total

Log: TypeAlias = dict[str, Tensor]
"""Detached values by name."""

# Terms that are logged as 0, as in CogVideo, while their weight is 0 and they are not computed.
_ALWAYS_LOGGED = ("perceptual", "grad_penalty")

# The names that an auxiliary loss may not have, beside those of the autoencoder's step: all else that an update logs. A
# test compares them with the log of an update. Whole names of training:
_TRAINING_NAMES = ("mse", "lr", "clips_per_second")
# How names of training begin, after "disc_" for the discriminators' optimizer:
_TRAINING_PREFIXES = (
    "grad_norm",
    "grad_clipped",
    "grad_overflow",
    "update_ratio",
    "frame_gradient_",
    "adversarial_gradient_",
    "ema_psnr_behind",
)
# How names of the discriminators' step begin, with the name of a discriminator behind if there are several:
_DISCRIMINATOR_PREFIXES = (
    "total_disc_loss",
    "discr_loss",
    "lecam_loss",
    "grad_penalty_loss",
    "logits_real",
    "logits_fake",
    "accuracy_real",
    "accuracy_fake",
    "hinge_active",
)


def autoencoder_log(
    losses: Terms,
    generator_losses: Terms,
    adaptive_weights: Log,
    aux: Mapping[str, Scalar],
    weights: Weights,
    split: str,
) -> Log:
    """Return the log of the autoencoder's step.

    Args:
        losses: The loss, named "total_loss", and its terms.
        generator_losses: The generator's loss for each discriminator.
        adaptive_weights: Their adaptive weights.
        aux: The auxiliary losses by name.
        weights: The weights at this step; those that are ramps are logged.
        split: The prefix of each name.

    Raises:
        ValueError: An auxiliary loss has the name of another entry.
    """
    like = losses["total_loss"]
    log = {
        **losses,
        "aux_losses": total(aux.values(), like=like),
        "gen_loss": total(generator_losses.values(), like=like),
        "adaptive_weight": mean(adaptive_weights.values(), like=like),
    }
    if len(generator_losses) > 1:
        log |= {f"gen_loss_{key}": value for key, value in generator_losses.items()}
        log |= {f"adaptive_weight_{key}": value for key, value in adaptive_weights.items()}
    for name, weight in weights.ramps.items():
        log[name] = torch.full((), weight, device=like.device)
    check_names_of_aux_losses(aux, [*log])
    return detached_copies({**log, **{name: value for name, value in aux.items() if name}}, split)


def check_names_of_aux_losses(aux: Mapping[str, Scalar], logged: Sequence[str]) -> None:
    """Check that auxiliary losses have other names than all else that is logged in an update.

    Raises:
        ValueError: One has the name of an entry of `logged`, of the discriminators' step, or of training.
    """
    for name in aux:
        is_of_training = name in _TRAINING_NAMES or name.removeprefix("disc_").startswith(
            _TRAINING_PREFIXES
        )
        is_of_discriminators = name.startswith(_DISCRIMINATOR_PREFIXES)
        if is_of_training or is_of_discriminators or name in logged:
            remedy = f"Rename it, for instance to 'quantizer_{name}'."
            raise argument_error(
                "aux_losses", "named unlike all else in the log", repr(name), remedy
            )


def discriminator_log(
    loss: Scalar,
    terms: Mapping[str, Log],
    statistics: Mapping[str, Log],
    *,
    like: Tensor,
    split: str,
) -> Log:
    """Return the log of the discriminators' step: sums of their terms, means of their statistics.

    If there are several discriminators, the GAN loss and the statistics of each follow. If none trains, losses and mean
    logits are 0 and the other statistics are left out.

    Args:
        loss: The sum of the discriminators' losses.
        terms: The terms of each discriminator that trains at this step, by name.
        statistics: Its statistics by name.
        like: A tensor on the device of the log.
        split: The prefix of each name.
    """
    combined = {"total_disc_loss": loss}
    for name, values in _by_name(terms, always=("gan", "grad_penalty")).items():
        log_name = "discr_loss" if name == "gan" else f"{name}_loss"  # as in CogVideo
        combined[log_name] = total(values.values(), like=like)
        if name == "gan" and len(values) > 1:
            combined |= {f"discr_loss_{key}": value for key, value in values.items()}
    for name, values in _by_name(statistics, always=("logits_real", "logits_fake")).items():
        combined[name] = mean(values.values(), like=like)
        if len(values) > 1:
            combined |= {f"{name}_{key}": value for key, value in values.items()}
    return detached_copies(combined, split)


def _by_name(logs: Mapping[str, Log], *, always: Sequence[str]) -> dict[str, Log]:
    """Return the values of each discriminator by name, those that are `always` logged first."""
    values: dict[str, Log] = {name: {} for name in always}
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


def computed_values(log: Log, weights: Weights, split: str) -> Log:
    """Return a log without the terms that were not computed and logged as 0, which would distort a mean over steps.

    Args:
        log: The log of one step or of both.
        weights: The weights at this step.
        split: The prefix of its names.
    """
    not_computed = [f"{split}/{name}_loss" for name in _ALWAYS_LOGGED if weights[name] == 0]
    return {name: value for name, value in log.items() if name not in not_computed}


def detached_copies(log: Log, split: str) -> Log:
    """Return detached float32 copies, named with the split before each name."""
    copies = torch.stack([value.detach().float() for value in log.values()]).unbind()
    return {f"{split}/{name}": value for name, value in zip(log, copies, strict=True)}
