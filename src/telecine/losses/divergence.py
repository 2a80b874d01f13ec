"""How far a diagonal Gaussian posterior is from the standard normal."""

from __future__ import annotations

from torch import Tensor

from telecine.precision import at_least_float32, autocast_off
from telecine.shapes import Scalar, argument_error


def kl_to_standard_normal(*, mean: Tensor, logvar: Tensor) -> Scalar:
    """Return KL(N(mean, exp(logvar)) || N(0, 1)), averaged over every element; the graph is kept.

    Per element `(mean^2 + exp(logvar) - 1 - logvar) / 2`, in nats: the negative of equation 10's first term in
    arXiv 1312.6114 (appendix B). Zero exactly at mean 0 and logvar 0, never negative; smaller is closer.

    The reduction is the mean over batch, channels and positions, so a weight means the same at any resolution, length
    and latent width. Latent diffusion's code (and diffusers') sums over the latent and divides by the batch: that is
    this value times the number of latent elements per clip, so their `kl_weight` of 1e-6 on a 4 x 32 x 32 latent
    corresponds to 1e-6 * 4096 = 4e-3 here, where reconstruction is averaged over pixels.

    Args:
        mean: any shape, e.g. `(batch, channel, time, height, width)`.
        logvar: logarithm of the variance, of the same shape.

    Returns:
        A 0-d tensor, at least float32 (float64 stays float64), also under autocast.

    Raises:
        ValueError: the shapes differ.
    """
    if mean.shape != logvar.shape:
        raise argument_error("logvar", f"of `mean`'s shape {tuple(mean.shape)}", logvar, "Pass one pair per element.")
    with autocast_off(mean.device):
        mu, log_var = at_least_float32(mean), at_least_float32(logvar)
        # expm1 keeps the digits that exp(x) - 1 loses near the optimum.
        return 0.5 * (mu.square() + log_var.expm1() - log_var).mean()
