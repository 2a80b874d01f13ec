"""What the `encode` of a diffusers model returns, read as a posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from telecine.autoencoders.posterior import DiagonalGaussian
from telecine.precision import at_least_float32
from telecine.randomness import Generators
from telecine.shapes import Scalar, argument_error, describe


class PointPosterior:
    """A latent without noise: of a plain or quantised autoencoder, or of one whose variance is not its own.

    Args:
        latent: e.g. `(batch, channel, time, height, width)`.
        losses: what a quantizer loses, by name, 0-d.
    """

    def __init__(self, latent: Tensor, losses: dict[str, Tensor] | None = None) -> None:
        self.latent = at_least_float32(latent)
        self.losses = losses or {}

    def sample(self, generator: Generators = None) -> Tensor:
        """Return the latent; the graph is kept."""
        return self.latent

    def mode(self) -> Tensor:
        """Return the latent; the graph is kept."""
        return self.latent

    def kl(self) -> Scalar:
        """Raise a `ValueError`: a latent without noise has no divergence from the prior."""
        remedy = "Such a model has no divergence; train it without its weight."
        raise argument_error("posterior", "one with a variance", "the latent of a model without noise", remedy)


LatentPosterior = DiagonalGaussian | PointPosterior


def auxiliary_losses(posterior: LatentPosterior) -> dict[str, Tensor]:
    """Return the losses that a posterior brings along, by name: its divergence, or its quantizer's."""
    return {"kl_loss": posterior.kl()} if isinstance(posterior, DiagonalGaussian) else posterior.losses


def read_posterior(output: Any) -> LatentPosterior:
    """Return the posterior in an `encode`'s output, its moments in float32 at least.

    Understood are an object with `latent_dist`, with `latents` or `latent`, a tensor, or a tuple that starts with one
    of these; 0-d floating-point tensors that follow in the tuple are a quantizer's losses.

    Raises:
        ValueError: the output is none of these.
    """
    first, *rest = output if isinstance(output, tuple) else (output,)
    for name in ("latent_dist", "latents", "latent"):
        first = getattr(first, name, first)
    if isinstance(getattr(first, "logvar", None), Tensor):
        # The moments alone: diffusers' own class sums its divergence over the wrong axes for video.
        return DiagonalGaussian(mean=first.mean, logvar=first.logvar)
    latent = first.mode() if callable(getattr(first, "mode", None)) and not isinstance(first, Tensor) else first
    if not isinstance(latent, Tensor):
        contract = "a posterior (`latent_dist`), a latent, or a tuple that starts with one"
        remedy = "Wrap the model in a module of your own that has the members of `VideoAutoencoder`."
        raise argument_error("the output of `encode`", contract, describe(output), remedy)
    losses = [extra for extra in rest if isinstance(extra, Tensor) and extra.ndim == 0 and extra.is_floating_point()]
    return PointPosterior(latent, {"quantizer_loss": torch.stack(losses).sum()} if losses else {})


def reshaped(posterior: LatentPosterior, change: Callable[[Tensor], Tensor]) -> LatentPosterior:
    """Return the posterior of the latent that `change` makes of this one's by moving its elements."""
    if isinstance(posterior, DiagonalGaussian):
        return DiagonalGaussian(mean=change(posterior.mean), logvar=change(posterior.logvar))
    return PointPosterior(change(posterior.latent), posterior.losses)
