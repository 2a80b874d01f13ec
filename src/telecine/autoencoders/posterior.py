"""The Gaussian posterior that an encoder predicts."""

from __future__ import annotations

from torch import Tensor

from telecine.losses.divergence import kl_to_standard_normal
from telecine.precision import at_least_float32
from telecine.randomness import Generators, randn
from telecine.shapes import Scalar, argument_error

# exp(20) and its square stay finite in float32, exp(-30) keeps 1/variance finite; between them nothing is changed.
LOGVAR_RANGE = (-30.0, 20.0)


class DiagonalGaussian:
    """A normal distribution with independent elements, given by its mean and the logarithm of its variance.

    `logvar` is clamped to [-30, 20]: a wild value early in training would otherwise overflow `exp` and turn the whole
    run into NaN. Both are kept in float32 at least, so that small deviations survive autocast.

    Args:
        mean: any shape, e.g. `(batch, channel, time, height, width)`.
        logvar: the same shape.

    Raises:
        ValueError: the shapes differ.
    """

    def __init__(self, *, mean: Tensor, logvar: Tensor) -> None:
        if mean.shape != logvar.shape:
            remedy = "Split the encoder's output into two equal halves."
            raise argument_error("logvar", f"of `mean`'s shape {tuple(mean.shape)}", logvar, remedy)
        self.mean = at_least_float32(mean)
        self.logvar = at_least_float32(logvar).clamp(*LOGVAR_RANGE)

    def sample(self, generator: Generators = None) -> Tensor:
        """Return `mean + std * noise` (arXiv 1312.6114, section 2.4), of the mean's shape; the graph is kept.

        The noise is of `generator`: one, or one for each clip; PyTorch's own by default.
        """
        noise = randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + (0.5 * self.logvar).exp() * noise

    def mode(self) -> Tensor:
        """Return the most likely latent, which is the mean; the graph is kept."""
        return self.mean

    def kl(self) -> Scalar:
        """Return the divergence from N(0, 1), averaged over every element: see `kl_to_standard_normal`."""
        return kl_to_standard_normal(mean=self.mean, logvar=self.logvar)
