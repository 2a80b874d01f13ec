"""Pixel-wise losses of frames and of their changes, and the likelihood with a learned noise level."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error, check_positive
from telecine.base.precision import at_least_float32
from telecine.base.shapes import VALUE_RANGE, Scalar, Video, check_same_shape

# Identical clips have an infinite PSNR, which would make every mean infinite. Rounding to 8 bits alone gives 59 dB.
MAX_PSNR = 100.0


def mse(*, reconstruction: Tensor, target: Tensor, weight: Tensor | None = None) -> Scalar:
    """Return the mean squared error, in [0, 4] for values in [-1, 1]; smaller is better, and the graph is kept.

    It is a 0-d tensor in float32 or the wider input type.

    Args:
        reconstruction, target: Any shape with the batch first, usually `(B, C, T, H, W)` in [-1, 1].
        weight: Non-negative sample weights `(B,)`, see `weighted_mean`; 1 for every sample if `None`.

    Raises:
        ValueError: If the shapes differ, or `weight` is not `(B,)`.
    """
    if weight is None:
        check_same_shape("reconstruction", reconstruction, "target", target)
        # One fused kernel, which saves no copy of the difference for the backward pass.
        return F.mse_loss(at_least_float32(reconstruction), at_least_float32(target))
    return weighted_mean(difference(reconstruction=reconstruction, target=target).square(), weight)


def psnr_of_mse(mse: Tensor, *, value_range: float = VALUE_RANGE[1] - VALUE_RANGE[0]) -> Tensor:
    """Return the peak signal-to-noise ratio of mean squared errors, in dB, at most `MAX_PSNR`; larger is better.

    NaN stays NaN. `value_range` is the largest value less the smallest one: 2 in [-1, 1], 255 for bytes.
    """
    return 10 * torch.log10(value_range**2 / mse.clamp(min=value_range**2 * 10 ** (-MAX_PSNR / 10)))


def l1(*, reconstruction: Tensor, target: Tensor, weight: Tensor | None = None) -> Scalar:
    """Return the mean absolute error, in [0, 2] for values in [-1, 1]; its gradient is 0 where both are equal.

    Args:
        reconstruction, target, weight: See `mse`, as for errors and dtypes.
    """
    return weighted_mean(difference(reconstruction=reconstruction, target=target).abs(), weight)


def charbonnier(
    *, reconstruction: Tensor, target: Tensor, weight: Tensor | None = None, epsilon: float = 1e-3
) -> Scalar:
    """Return the mean of `sqrt(d^2 + epsilon^2) - epsilon`, an L1 loss that is smooth at 0; the graph is kept.

    Charbonnier et al. ("Two deterministic half-quadratic regularization algorithms for computed imaging", ICIP 1994),
    with the epsilon of LapSRN (Lai et al., arXiv:1704.03915). `epsilon` is subtracted, which changes no gradient, so
    that pixels without an error, such as those that a mask leaves out, have none. The loss is about quadratic for
    errors below `epsilon`, in the units of the values, and linear above; it is between `l1 - epsilon` and `l1`. The
    gradient is finite everywhere.

    Args:
        reconstruction, target, weight: See `mse`.
        epsilon: Finite and above 0, in the units of the values.

    Raises:
        ValueError: If `epsilon` is not finite and above 0.
    """
    check_positive("epsilon", epsilon, remedy="Use `l1` for the limit at 0.")
    d = difference(reconstruction=reconstruction, target=target)
    return weighted_mean((d.square() + epsilon**2).sqrt() - epsilon, weight)


# The one pixel loss, by the values of `objective.reconstruction.loss`. Others have a weight, see
# `objective/term_functions.py`.
RECONSTRUCTION_LOSSES: dict[str, Callable[..., Scalar]] = {
    "mse": mse,
    "l1": l1,
    "charbonnier": charbonnier,
}


def temporal_difference(
    *,
    reconstruction: Video,
    target: Video,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> Scalar:
    """Return the mean of `|(x[t+1] - x[t]) - (y[t+1] - y[t])|` over all pairs of consecutive frames.

    The loss penalises flicker, and ignores an error that is the same in every frame. The graph is kept. It is a 0-d
    tensor in [0, 4] for values in [-1, 1], at least float32; smaller is better. A single frame has exactly 0.

    Args:
        reconstruction, target: x and y, `(B, C, T, H, W)`.
        sample_weight: Non-negative weights of the clips `(B,)`, see `weighted_mean`.
        mask: Bool, broadcasts to the videos. The mean is over the changes with True in both frames; 0 without any.

    Raises:
        ValueError: If the shapes differ, or `sample_weight` is not `(B,)`.
    """
    # Both steps are linear.
    changes = difference(reconstruction=reconstruction, target=target).diff(dim=2)
    if changes.shape[2] == 0:
        return changes.sum()  # a mean over no elements would be NaN; the sum is 0 and has a graph
    if mask is None:
        return weighted_mean(changes.abs(), sample_weight)
    mask = mask.expand_as(reconstruction)
    counts = mask[:, :, 1:] & mask[:, :, :-1]
    errors = torch.where(counts, changes.abs(), torch.zeros_like(changes))
    return mean_of_counted(weighted_mean(errors, sample_weight), counts)


def gaussian_nll(*, distance: Scalar, logvar: Scalar) -> Scalar:
    """Return `distance * exp(-logvar) + logvar`, the loss of a decoder that learns its noise level; the graph is kept.

    The noise level is one number for all pixels, as in sigma-VAE (Rybkin et al., arXiv:2006.13202) and in the code of
    latent diffusion. The minimum over logvar, `1 + log(distance)`, is at `logvar = log(distance)`; it has no lower
    bound as the distance goes to 0. For some distances, averaged over all elements, the loss is a negative
    log-likelihood per element in nats; it is 0-d, as both arguments are, and at least float32:

    - L1: Laplace distribution of scale `exp(logvar)`, up to the constant log 2.
    - MSE: twice that of a Gaussian of variance `exp(logvar)`, up to the constant log(2 pi).
    - Any other, such as a sum with a perceptual distance: a learned weight, but no likelihood.
    """
    log_var = at_least_float32(logvar)
    return at_least_float32(distance) * (-log_var).exp() + log_var


def weighted_mean(error: Tensor, weight: Tensor | None) -> Scalar:
    """Return `mean_b(weight_b * mean(error_b))` of errors `(B, ...)`, or the plain mean if `weight` is `None`.

    The weights `(B,)` are not normalised: 1/2 halves the loss, and the contribution of a sample does not depend on the
    other samples of its batch. They are non-negative; a check of values would synchronise host and device.

    Raises:
        ValueError: If `weight` is not `(B,)`.
    """
    if weight is None:
        return error.mean()
    if weight.shape != error.shape[:1]:
        raise argument_error(
            "the sample weights",
            f"of shape {tuple(error.shape[:1])}",
            weight,
            "Pass one weight per sample.",
        )
    return (weight.to(error.dtype) * error.reshape(len(error), -1).mean(1)).mean()


def mean_of_counted(mean: Scalar, counts: Tensor) -> Scalar:
    """Return the mean error over the values that count, from the mean over all; 0 if none counts.

    Args:
        mean: The mean over all values. The error of those that do not count is 0.
        counts: Bool, one flag for each value.
    """
    fraction = counts.to(mean.dtype).mean()
    return mean / torch.where(fraction > 0, fraction, torch.ones_like(fraction))


def difference(*, reconstruction: Tensor, target: Tensor) -> Tensor:
    """Return `reconstruction - target` in at least float32; raise a `ValueError` if the shapes differ."""
    check_same_shape("reconstruction", reconstruction, "target", target)
    return at_least_float32(reconstruction) - at_least_float32(target)
