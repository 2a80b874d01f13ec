"""The log of a step: its keys, sums and means of terms, and statistics of the discriminators' logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.shapes import Scalar
from telecine.losses import GANLoss
from telecine.objective.weights import Weights

Log: TypeAlias = dict[str, Tensor]
STATISTICS = (
    "logits_real",
    "logits_fake",
    "logits_real_std",
    "logits_fake_std",
    "accuracy_real",
    "accuracy_fake",
    "hinge_active",
)


def named(log: Log, split: str) -> Log:
    """Return the log as callers get it: detached float32 copies, the split before each name."""
    return {f"{split}/{name}": value.detach().to(torch.float32, copy=True) for name, value in log.items()}


def total(terms: Iterable[Scalar], *, like: Tensor) -> Scalar:
    """Return the sum of the terms, 0 on `like`'s device if there are none."""
    terms = list(terms)
    return torch.stack(terms).sum() if terms else torch.zeros((), device=like.device)


def mean(terms: Iterable[Scalar], *, like: Tensor) -> Scalar:
    """Return the mean of the terms, 0 on `like`'s device if there are none."""
    terms = list(terms)
    return total(terms, like=like) / max(len(terms), 1)


def weighted(*terms: tuple[float, Scalar | None]) -> Scalar | float:
    """Return the sum of weight times term. Skip zero weights: 0 * NaN is NaN."""
    return sum((weight * term for weight, term in terms if term is not None and weight != 0), 0.0)


def each(name: str, terms: Mapping[str, Tensor]) -> Log:
    """Return `{name}_{discriminator}` for every discriminator if there are several."""
    return {f"{name}_{key}": term for key, term in terms.items()} if len(terms) > 1 else {}


def of_each(logs: Mapping[str, Log], name: str) -> Log:
    """Return one value of every discriminator that has it, by the discriminator's name."""
    return {key: log[name] for key, log in logs.items() if name in log}


def autoencoder_log(g: Log, w: Log, weights: Weights, aux: Log, *, taken: Log) -> Log:
    """Return the generator losses, adaptive weights, scheduled weights and named auxiliary losses.

    Args:
        g: Generator loss by discriminator.
        w: Adaptive weight by discriminator.
        weights: Of this step.
        aux: The auxiliary losses by name.
        taken: The other entries of the log.

    Raises:
        ValueError: If an auxiliary loss has the name of another entry.
    """
    like = taken["total_loss"]
    log = {
        "gen_loss": total(g.values(), like=like),
        "adaptive_weight": mean(w.values(), like=like),
        **each("gen_loss", g),
        **each("adaptive_weight", w),
        **{name: torch.full((), value, device=like.device) for name, value in weights.scheduled.items()},
    }
    for name in aux:
        if name in taken or name in log:
            remedy = f"Rename it, for instance to 'quantizer_{name}'."
            raise argument_error("aux_losses", "named unlike the objective's own terms", repr(name), remedy)
    return log | {name: value for name, value in aux.items() if name}


def discriminator_log(logs: Mapping[str, Log], *, like: Tensor) -> Log:
    """Return the sums of the discriminators' terms and the means of their statistics.

    Each discriminator's own values follow if there are several. If none trains, losses and mean logits are 0 and the
    other statistics are left out.
    """
    terms = [name for log in logs.values() for name in log if name.endswith("_loss")]
    log = {name: total(of_each(logs, name).values(), like=like) for name in ("discr_loss", "grad_penalty_loss", *terms)}
    log |= each("discr_loss", of_each(logs, "discr_loss"))
    for name in STATISTICS:
        values = of_each(logs, name)
        if values or name in ("logits_real", "logits_fake"):
            log |= {name: mean(values.values(), like=like), **each(name, values)}
    return log


@torch.no_grad()
def logit_statistics(*, real: Tensor, fake: Tensor, gan_loss: GANLoss) -> Log:
    """Return mean and spread of the logits and how many of them are right, 0-d float32; no synchronisation.

    Args:
        real: Logits of real samples, any shape.
        fake: Logits of reconstructions.
        gan_loss: Declares the boundary between real and fake, and the margin. Without a boundary, a pair of a real
            sample and its reconstruction is right if the real logit is larger, and both accuracies are equal.

    Returns:
        `logits_*`, `logits_*_std` (over the batch and all patches, 0 for a single logit) and `accuracy_*` in [0, 1];
        with a margin also `hinge_active` in [0, 1], the fraction of logits that have a gradient.
    """
    real, fake = real.detach().float(), fake.detach().float()
    boundary = gan_loss.boundary
    right_real, right_fake = (real > fake,) * 2 if boundary is None else (real > boundary, fake < boundary)
    log = {
        "logits_real": real.mean(),
        "logits_fake": fake.mean(),
        "logits_real_std": real.std(correction=0),
        "logits_fake_std": fake.std(correction=0),
        "accuracy_real": right_real.float().mean(),
        "accuracy_fake": right_fake.float().mean(),
    }
    if (margin := gan_loss.margin) is not None:
        log["hinge_active"] = ((real < margin).float().mean() + (fake > -margin).float().mean()) / 2
    return log
