"""Posteriors of the latent that an encoder predicts."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from telecine.base.precision import at_least_float32
from telecine.base.randomness import Generators, randn
from telecine.base.shapes import Scalar, check_same_shape
from telecine.losses import kl_to_standard_normal

# exp(20) and its square are finite in float32, and so is 1 / exp(-30).
LOGVAR_RANGE = (-30.0, 20.0)


class Posterior(Protocol):
    """Distribution of the latent given a video."""

    def sample(self, generator: Generators = None) -> Tensor:
        """Return a sample of the latent, differentiable with respect to the encoder."""

    def mode(self) -> Tensor:
        """Return the most likely latent."""

    def aux(self) -> dict[str, Tensor]:
        """Return the auxiliary losses of the latent by name, 0-d: its KL divergence, or a quantizer's losses."""


class DiagonalGaussian:
    """Normal distribution with independent elements.

    `logvar` is clamped to [-30, 20], because a large value early in training overflows `exp` and turns the run into
    NaN. Both moments are float32 at least, so that small deviations survive autocast.

    Args:
        mean: Any shape, e.g. `(batch, channel, time, height, width)`.
        logvar: Logarithm of the variance, of the same shape.

    Raises:
        ValueError: The shapes differ.
    """

    def __init__(self, *, mean: Tensor, logvar: Tensor) -> None:
        remedy = "Split the encoder's output into two equal halves."
        check_same_shape("logvar", logvar, "mean", mean, remedy=remedy)
        self.mean = at_least_float32(mean)
        self.logvar = at_least_float32(logvar).clamp(*LOGVAR_RANGE)

    def sample(self, generator: Generators = None) -> Tensor:
        """Return `mean + std * noise` (arXiv:1312.6114, section 2.4), of the mean's shape; the graph is kept.

        Args:
            generator: Source of the noise: one generator, or one for each clip; PyTorch's default generator if None.
        """
        noise = randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + (0.5 * self.logvar).exp() * noise

    def mode(self) -> Tensor:
        """Return the mean; the graph is kept."""
        return self.mean

    def kl(self) -> Scalar:
        """Return the KL divergence from N(0, 1), averaged over all elements: see `kl_to_standard_normal`."""
        return kl_to_standard_normal(mean=self.mean, logvar=self.logvar)

    def aux(self) -> dict[str, Tensor]:
        """Return `{"kl_loss": KL divergence}`."""
        return {"kl_loss": self.kl()}


class DeterministicPosterior:
    """A latent without noise, of a plain or quantized autoencoder.

    Args:
        latent: E.g. `(batch, channel, time, height, width)`.
        losses: A quantizer's losses by name, 0-d.
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

    def aux(self) -> dict[str, Tensor]:
        """Return the quantizer's losses."""
        return self.losses
