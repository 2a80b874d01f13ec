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
from telecine.objective.terms import TermValues
from telecine.objective.weights import Weights, mean, total
from telecine.ops.ranks import with_averaged_gradient
from telecine.settings import AdaptiveWeightConfig


class VideoLosses(NamedTuple):
    """The values of the terms of the autoencoder's loss that need no discriminator."""

    recon: Scalar
    terms: TermValues
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
        generator_losses: The terms that are computed with discriminators, by term, then by discriminator.
        logvar: The logarithm of the learned variance, 0-d, or None without one.
    """
    recon = video_losses.recon
    lpips = video_losses.terms.get("perceptual")
    logged = {"recon_loss": recon}
    for name, value in video_losses.terms.items():
        logged[f"{name}_loss"] = value

    # The error of the reconstruction; with a learned variance, its negative log-likelihood, up to a constant.
    recon_total = recon
    if lpips is not None:
        recon_total = recon + weights["perceptual"] * lpips
    if logvar is not None:
        recon_total = gaussian_nll(distance=recon_total, logvar=with_averaged_gradient(logvar))
    recon_total = batch.num_elements * recon_total
    if logvar is not None:
        logged["nll_loss"] = recon_total
        logged["logvar"] = logvar

    # What the gradients of adversarial terms are compared with: LPIPS without its weight, as in CogVideo, or the
    # weighted sum, as in VQGAN.
    references = {"recon_and_perceptual": recon_total}
    if lpips is not None:
        references["perceptual"] = batch.num_elements * lpips

    # The other terms, whose weights the sum applies.
    terms = {name: value for name, value in video_losses.terms.items() if name != "perceptual"}
    adversarial = generator_losses.get("adversarial", {})
    multiscale = generator_losses.get("multiscale_adversarial", {})
    by_discriminator = adversarial | multiscale
    adaptive = adaptive_weights(config, by_discriminator, references, batch.grad_at)
    if adversarial:
        weighted = [adaptive[d] * loss for d, loss in adversarial.items()]
        terms["adversarial"] = total(weighted, like=recon)
    if multiscale:
        weighted = [adaptive[d] * loss for d, loss in multiscale.items()]
        terms["multiscale_adversarial"] = total(weighted, like=recon)
    features = generator_losses.get("feature_matching", {})
    if features:
        terms["feature_matching"] = mean(features.values(), like=recon)
        logged["feature_matching_loss"] = terms["feature_matching"]
    if batch.aux:
        terms["quantizer_aux"] = total(batch.aux.values(), like=recon)

    loss = recon_total + weights.sum(terms)
    logged["total_loss"] = loss
    return loss, autoencoder_log(
        logged, by_discriminator, adaptive, batch.aux, weights, batch.split
    )


def sum_discriminator_losses(
    batch: Batch, discriminator_losses: Mapping[str, DiscriminatorLoss]
) -> tuple[Scalar, Log]:
    """Return the sum of the losses of the discriminators that train at this step, and its log."""
    loss = total([losses.loss for losses in discriminator_losses.values()], like=batch.real)
    if torch.is_grad_enabled() and not loss.requires_grad:
        loss.requires_grad_()  # no discriminator trains: `backward()` does nothing
    log = discriminator_log(
        loss,
        {name: losses.gan_loss for name, losses in discriminator_losses.items()},
        {name: losses.regularisers for name, losses in discriminator_losses.items()},
        {name: losses.statistics for name, losses in discriminator_losses.items()},
        like=batch.real,
        split=batch.split,
    )
    return loss, log
