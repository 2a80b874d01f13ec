"""What is added up in both steps, with which weight."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from telecine.base.shapes import Scalar
from telecine.losses import GANLoss, gaussian_nll
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
    perceptual: Scalar | None
    """LPIPS; None while its weight is 0."""
    term_values: TermValues
    """The values of `config.terms` by name. A term of weight 0 is left out."""


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
    lpips = video_losses.perceptual
    recon_total = _reconstruction_error(batch, weights, video_losses, logvar)
    # What the gradients of adversarial terms are compared with: LPIPS without its weight, as in CogVideo, or the
    # weighted sum, as in VQGAN.
    references = {"recon_and_perceptual": recon_total}
    logged = {"recon_loss": recon}
    if lpips is not None:
        references["perceptual"] = batch.num_elements * lpips
        logged["perceptual_loss"] = lpips
    for name, value in video_losses.term_values.items():
        logged[f"{name}_loss"] = value
    if logvar is not None:
        logged["nll_loss"] = recon_total
        logged["logvar"] = logvar

    adversarial = generator_losses.get("adversarial", {})
    multiscale = generator_losses.get("multiscale_adversarial", {})
    by_discriminator = adversarial | multiscale
    adaptive = adaptive_weights(config, by_discriminator, references, batch.grad_at)

    # The other terms. Adversarial terms and auxiliary losses are sums, feature matching is a mean over discriminators.
    values = dict(video_losses.term_values)
    for name, losses in (("adversarial", adversarial), ("multiscale_adversarial", multiscale)):
        if losses:
            values[name] = total([adaptive[d] * loss for d, loss in losses.items()], like=recon)
    features = generator_losses.get("feature_matching", {})
    if features:
        values["feature_matching"] = mean(features.values(), like=recon)
        logged["feature_matching_loss"] = values["feature_matching"]
    if batch.aux:
        values["quantizer_aux"] = total(batch.aux.values(), like=recon)

    loss = recon_total + weights.sum(values)
    logged["total_loss"] = loss
    return loss, autoencoder_log(
        logged, by_discriminator, adaptive, batch.aux, weights, batch.split
    )


def _reconstruction_error(
    batch: Batch, weights: Weights, video_losses: VideoLosses, logvar: Tensor | None
) -> Scalar:
    """Return the pixel loss and LPIPS; with a learned variance, their negative log-likelihood, up to a constant."""
    error = video_losses.recon
    if video_losses.perceptual is not None:
        error = error + weights["perceptual"] * video_losses.perceptual
    if logvar is not None:
        error = gaussian_nll(distance=error, logvar=with_averaged_gradient(logvar))
    return batch.num_elements * error


def sum_discriminator_losses(
    batch: Batch, losses: Mapping[str, DiscriminatorLoss], gan_loss: GANLoss
) -> tuple[Scalar, Log]:
    """Return the sum of the losses of the discriminators that train at this step, and its log.

    Args:
        batch: The videos.
        losses: The losses of the discriminators by name.
        gan_loss: The GAN loss, for the statistics of the logits.
    """
    loss = total([of_one.loss for of_one in losses.values()], like=batch.real)
    if torch.is_grad_enabled() and not loss.requires_grad:
        loss.requires_grad_()  # no discriminator trains: `backward()` does nothing
    terms = {name: of_one.terms for name, of_one in losses.items()}
    return loss, discriminator_log(loss, terms, gan_loss, batch.split)
