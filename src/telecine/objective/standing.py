"""How a discriminator stands, told by its logits; for the log alone."""

from __future__ import annotations

import torch
from torch import Tensor

from telecine.losses import hinge, least_squares
from telecine.losses.adversarial import GANLoss
from telecine.objective.terms import Log, by_critic, each, mean

# Of the labels 0 and 1; the other losses know no labels, and 0 divides what is real from what is not.
LEAST_SQUARES_BOUNDARY = 0.5


@torch.no_grad()
def standing(*, real: Tensor, fake: Tensor, gan_loss: GANLoss, is_separable: bool) -> Log:
    """Return mean and spread of the logits and how many of them are right, 0-d float32; nothing is synchronised.

    Args:
        real: Logits of real samples, any shape.
        fake: Logits of reconstructions.
        gan_loss: Decides where the boundary between real and fake is, and whether there is a hinge.
        is_separable: Whether it judges each logit by itself; otherwise a real sample is judged right where its logit
            is above its partner's, and both accuracies are the same.

    Returns:
        `logits_*`, `logits_*_std` (over the batch and all patches, 0 for a single logit) and `accuracy_*` in [0, 1];
        with the hinge loss `hinge_active` in [0, 1], the share of logits that it still has a gradient for.
    """
    real, fake = real.detach().float(), fake.detach().float()
    boundary = LEAST_SQUARES_BOUNDARY if gan_loss is least_squares else 0.0
    has_partner = not is_separable and real.shape == fake.shape
    lead_real, lead_fake = (real - fake, real - fake) if has_partner else (real - boundary, boundary - fake)
    log = {
        "logits_real": real.mean(),
        "logits_fake": fake.mean(),
        "logits_real_std": real.std(correction=0),
        "logits_fake_std": fake.std(correction=0),
        "accuracy_real": (lead_real > 0).float().mean(),
        "accuracy_fake": (lead_fake > 0).float().mean(),
    }
    if gan_loss is hinge:
        log["hinge_active"] = ((real < 1).float().mean() + (fake > -1).float().mean()) / 2
    return log


def mean_standing(duels: dict[str, Log], *, like: Tensor) -> Log:
    """Return the mean over the discriminators of each of these values, and every one's own where there are several.

    The mean logits are 0 where no discriminator trains; the rest is left out.
    """
    names = ("logits_real_std", "logits_fake_std", "accuracy_real", "accuracy_fake", "hinge_active")
    log: Log = {}
    for name in ("logits_real", "logits_fake", *names):
        values = by_critic(duels, name)
        if values or name not in names:
            log |= {name: mean(values.values(), like=like), **each(name, values)}
    return log
