"""The KL divergence of a posterior from the standard normal distribution."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from torch import Tensor

from telecine.base.checks import argument_error, describe
from telecine.base.precision import at_least_float32
from telecine.base.shapes import Scalar, check_same_shape

Reduction: TypeAlias = Literal["mean", "sum"]


class Gaussian(Protocol):
    """A posterior with moments, such as diffusers' `DiagonalGaussianDistribution`."""

    @property
    def mean(self) -> Tensor:
        """The means."""

    @property
    def logvar(self) -> Tensor:
        """The logarithms of the variances."""


class Moments(NamedTuple):
    """The moments of a normal posterior, whose KL divergence the objective computes: as a mean, or as a sum."""

    mean: Tensor
    """The means, with their graph."""
    logvar: Tensor
    """The logarithms of the variances, of the same shape."""


AuxLoss: TypeAlias = Tensor | float | Gaussian
"""An auxiliary loss: a tensor of one element, a number, or a posterior for its KL divergence."""
AuxLosses: TypeAlias = Mapping[str, AuxLoss]
"""Auxiliary losses by name. Those of a model are 0-d tensors and `Moments`."""


def kl_to_standard_normal(*, mean: Tensor, logvar: Tensor, reduction: Reduction = "mean") -> Scalar:
    """Return KL(N(mean, exp(logvar)) || N(0, 1)) of a batch, in nats, 0-d and >= 0; the graph is kept.

    One element contributes `(mean^2 + exp(logvar) - 1 - logvar) / 2`, the negative of the first term of equation 10 in
    arXiv:1312.6114 (appendix B). With "mean", a weight means the same at any resolution, length and number of latent
    channels. "sum" is the convention of latent diffusion's code and of diffusers, the mean times the number of latent
    elements per clip. That code also sums the reconstruction error. Its `kl_weight` of 1e-6 for a 4 x 32 x 32 latent of
    a 3 x 256 x 256 image therefore corresponds to 1e-6 * 4096 / 196608 = 2e-8 with an error averaged over pixels.

    Args:
        mean, logvar: Any shape with the batch first, e.g. `(B, C, T, H, W)`; at least float32 is used.
        reduction: "mean" over all elements, or "sum" over the elements of a sample and mean over the batch.

    Raises:
        ValueError: If the shapes differ or the reduction is unknown.
    """
    check_same_shape(
        "logvar", logvar, "mean", mean, remedy="Pass one mean and one logvar per element."
    )
    if reduction not in ("mean", "sum"):
        raise argument_error(
            "reduction", '"mean" or "sum"', describe(reduction), "Both average over the batch."
        )
    mu = at_least_float32(mean)
    log_var = at_least_float32(logvar)
    # expm1 keeps the digits that exp(x) - 1 loses near x = 0.
    elements = mu.square() + log_var.expm1() - log_var
    if reduction == "mean":
        return 0.5 * elements.mean()
    return 0.5 * (elements.sum() / len(elements))


def posterior_kl(posterior: Any, reduction: Reduction = "mean") -> Scalar:
    """Return `kl_to_standard_normal` of a posterior with tensors `mean` and `logvar`, such as diffusers'.

    It works for latents with any number of axes. The `kl()` method of diffusers' `DiagonalGaussianDistribution` sums
    over axes 1, 2 and 3 only, and so not over the width of a video's latent `(B, C, T, H, W)`.

    Raises:
        ValueError: If `mean` or `logvar` is missing, as in the distribution of a deterministic autoencoder.
    """
    missing = [
        f"`{name}`"
        for name in ("mean", "logvar")
        if not isinstance(getattr(posterior, name, None), Tensor)
    ]
    if missing:
        got = f"{type(posterior).__name__} without {' and '.join(missing)}"
        remedy = "Such a posterior has no divergence; pass `aux_losses=None`."
        raise argument_error(
            "posterior", "a diagonal Gaussian with tensors `mean` and `logvar`", got, remedy
        )
    return kl_to_standard_normal(mean=posterior.mean, logvar=posterior.logvar, reduction=reduction)
