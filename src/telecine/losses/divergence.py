"""How far a diagonal Gaussian posterior is from the standard normal."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from torch import Tensor

from telecine.precision import at_least_float32, autocast_off
from telecine.shapes import Scalar, argument_error, describe

Reduction: TypeAlias = Literal["mean", "sum"]


def kl_to_standard_normal(*, mean: Tensor, logvar: Tensor, reduction: Reduction = "mean") -> Scalar:
    """Return KL(N(mean, exp(logvar)) || N(0, 1)) of a batch; the graph is kept.

    Per element `(mean^2 + exp(logvar) - 1 - logvar) / 2`, in nats: the negative of equation 10's first term in
    arXiv 1312.6114 (appendix B). Zero exactly at mean 0 and logvar 0, never negative; smaller is closer.

    By default it is averaged over batch, channels and positions, so a weight means the same at any resolution, length
    and latent width. "sum" is the convention of latent diffusion's code (and diffusers'): summed over the latent of a
    clip, averaged over the batch. It is the mean times the number of latent elements per clip. Their reconstruction is
    a sum as well: a `kl_weight` of 1e-6 there, on a 4 x 32 x 32 latent of a 3 x 256 x 256 image, corresponds to
    1e-6 * 4096 / 196608 = 2e-8 beside a reconstruction that is averaged over pixels.

    Args:
        mean: any shape, e.g. `(batch, channel, time, height, width)`.
        logvar: logarithm of the variance, of the same shape.
        reduction: "mean" over every element, or "sum" over each sample's and mean over the batch.

    Returns:
        A 0-d tensor, at least float32 (float64 stays float64), also under autocast.

    Raises:
        ValueError: the shapes differ, or the reduction is unknown.
    """
    if mean.shape != logvar.shape:
        raise argument_error("logvar", f"of `mean`'s shape {tuple(mean.shape)}", logvar, "Pass one pair per element.")
    if reduction not in ("mean", "sum"):
        raise argument_error("reduction", '"mean" or "sum"', describe(reduction), "Both average over the batch.")
    with autocast_off(mean.device):
        mu, log_var = at_least_float32(mean), at_least_float32(logvar)
        # expm1 keeps the digits that exp(x) - 1 loses near the optimum.
        elements = mu.square() + log_var.expm1() - log_var
        return 0.5 * (elements.mean() if reduction == "mean" else elements.sum() / len(elements))


def posterior_kl(posterior: Any, reduction: Reduction = "mean") -> Scalar:
    """Return the divergence of a posterior from N(0, 1): `kl_to_standard_normal` of its moments.

    Of use for latents of any number of axes: the `kl()` of diffusers' own class sums over the axes 1, 2 and 3, which
    leaves the width of a video's latent `(B, C, T, H, W)` unsummed.

    Args:
        posterior: An object with tensors `mean` and `logvar`, such as diffusers' `DiagonalGaussianDistribution`.
        reduction: As in `kl_to_standard_normal`.

    Raises:
        ValueError: If it lacks one of the two, as the distribution of an autoencoder without noise does.
    """
    missing = [name for name in ("mean", "logvar") if not isinstance(getattr(posterior, name, None), Tensor)]
    if missing:
        got = f"{type(posterior).__name__} without {' and '.join(f'`{name}`' for name in missing)}"
        remedy = "Such a posterior has no divergence; pass `aux_losses=None`."
        raise argument_error("posterior", "a diagonal Gaussian with tensors `mean` and `logvar`", got, remedy)
    return kl_to_standard_normal(mean=posterior.mean, logvar=posterior.logvar, reduction=reduction)
