"""What is added up in both steps, with which weight."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from telecine.base.shapes import Scalar
from telecine.losses import gaussian_nll
from telecine.objective.adaptive_weight import adaptive_weights
from telecine.objective.batch import Batch
from telecine.objective.gradients import DiscriminatorLoss, GeneratorLosses
from telecine.objective.log import Log, autoencoder_log, discriminator_log
from telecine.objective.terms import Terms
from telecine.objective.weights import Weights, mean, total
from telecine.ops.ranks import with_averaged_gradient
from telecine.settings import AdaptiveWeightConfig


class VideoLosses(NamedTuple):
    """The values of the terms of the autoencoder's loss that need no discriminator."""

    recon: Scalar
    terms: Terms
    """LPIPS, named "perceptual", and those of `config.terms`. Those of weight 0 are left out."""


def sum_autoencoder_losses(
    config: AdaptiveWeightConfig,
    batch: Batch,
    weights: Weights,
    video_losses: VideoLosses,
    generator_losses: GeneratorLosses,
    *,
    logvar: Tensor | None,
) -> tuple[Scalar, Log]:
    """Return the autoencoder's loss and its log.

    Args:
        config: The settings of the adaptive weight.
        batch: The videos.
        weights: The weights at this step.
        video_losses: The terms that need no discriminator.
        generator_losses: The terms that discriminators cause, by name and discriminator.
        logvar: The logarithm of the learned variance, 0-d, or None without one.
    """
    recon, terms = video_losses
    lpips = terms.get("perceptual")
    values = {name: value for name, value in terms.items() if name != "perceptual"}
    losses = {"recon_loss": recon}  # for the log
    for name, value in terms.items():
        losses[f"{name}_loss"] = value

    # The error of the reconstruction, and what the gradients of adversarial terms are compared with.
    distance = recon
    references = {}
    if lpips is not None:
        distance = recon + weights["perceptual"] * lpips
        references["perceptual"] = batch.num_elements * lpips
    if logvar is not None:  # the negative log-likelihood per element, up to a constant
        distance = gaussian_nll(distance=distance, logvar=with_averaged_gradient(logvar))
    nll = batch.num_elements * distance
    references["recon_and_perceptual"] = nll
    if logvar is not None:
        losses |= {"nll_loss": nll, "logvar": logvar}

    # The terms that discriminators cause.
    g = generator_losses.get("adversarial", {}) | generator_losses.get("multiscale_adversarial", {})
    w = adaptive_weights(config, g, references, batch.grad_at)
    for name in ("adversarial", "multiscale_adversarial"):
        discriminators = generator_losses.get(name, {})
        if discriminators:
            values[name] = total([w[d] * g[d] for d in discriminators], like=recon)
    features = generator_losses.get("feature_matching", {})
    if features:
        values["feature_matching"] = mean(features.values(), like=recon)
        losses["feature_matching_loss"] = values["feature_matching"]

    if batch.aux:
        values["quantizer_aux"] = total(batch.aux.values(), like=recon)
    loss = nll + weights.sum(values)
    losses["total_loss"] = loss
    return loss, autoencoder_log(losses, g, w, batch.aux, weights, batch.split)


def sum_discriminator_losses(
    batch: Batch, discriminator_losses: Mapping[str, DiscriminatorLoss]
) -> tuple[Scalar, Log]:
    """Return the sum of the losses of the discriminators that train at this step, and its log."""
    loss = total([d.loss for d in discriminator_losses.values()], like=batch.real)
    if torch.is_grad_enabled() and not loss.requires_grad:
        loss.requires_grad_()  # no discriminator trains: `backward()` does nothing
    terms = {name: d.terms for name, d in discriminator_losses.items()}
    statistics = {name: d.statistics for name, d in discriminator_losses.items()}
    return loss, discriminator_log(loss, terms, statistics, like=batch.real, split=batch.split)
