"""How far a reconstruction is from its target, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor
from torch.nn import functional as F

from telecine.precision import at_least_float32
from telecine.shapes import Scalar, argument_error

ReconstructionLoss: TypeAlias = Callable[..., Scalar]


def mse(*, reconstruction: Tensor, target: Tensor, weight: Tensor | None = None) -> Scalar:
    """Return the mean squared error; the graph is kept.

    Args:
        reconstruction: Any shape with the batch first, usually `(B, C, T, H, W)` in [-1, 1].
        target: Same shape.
        weight: Non-negative weights of the samples, `(B,)`: see `weighted_mean`. None weighs each with 1.

    Returns:
        A 0-d tensor in [0, 4] for values in [-1, 1], in float32 or the wider input type; smaller is better.

    Raises:
        ValueError: If the shapes differ, or `weight` is not `(B,)`.
    """
    check_pair(reconstruction, target)
    if weight is None:
        # One fused kernel, which keeps no copy of the difference for the backward.
        return F.mse_loss(at_least_float32(reconstruction), at_least_float32(target))
    return weighted_mean(difference(reconstruction=reconstruction, target=target).square(), weight)


def l1(*, reconstruction: Tensor, target: Tensor, weight: Tensor | None = None) -> Scalar:
    """Return the mean absolute error; the graph is kept, and its gradient is 0 where the two are equal.

    Arguments, errors and dtypes are those of `mse`.

    Returns:
        A 0-d tensor in [0, 2] for values in [-1, 1]; smaller is better.
    """
    return weighted_mean(difference(reconstruction=reconstruction, target=target).abs(), weight)


def charbonnier(
    *, reconstruction: Tensor, target: Tensor, weight: Tensor | None = None, epsilon: float = 1e-3
) -> Scalar:
    """Return the mean of `sqrt(d^2 + epsilon^2)`, an L1 that is smooth at 0; the graph is kept.

    Charbonnier et al. ("Two deterministic half-quadratic regularization algorithms for computed imaging", ICIP 1994),
    with the epsilon of LapSRN (Lai et al., arXiv:1704.03915). It stays in the published form, so that a perfect
    reconstruction loses `epsilon` and not 0; the gradient is finite everywhere, and exactly 0 there.

    Args:
        reconstruction: As in `mse`.
        target: As in `mse`.
        weight: As in `mse`.
        epsilon: The error below which the loss turns from linear to quadratic; > 0, in units of the values.

    Returns:
        A 0-d tensor between `epsilon` and `l1 + epsilon` where no weight is given; smaller is better.

    Raises:
        ValueError: As in `mse`, or if `epsilon` is not above 0.
    """
    if not epsilon > 0:
        raise argument_error("epsilon", "above 0", epsilon, "Take `l1` for the limit at 0.")
    d = difference(reconstruction=reconstruction, target=target)
    return weighted_mean((d.square() + epsilon**2).sqrt(), weight)


RECONSTRUCTION_LOSSES: dict[str, ReconstructionLoss] = {"mse": mse, "l1": l1, "charbonnier": charbonnier}


def gaussian_nll(*, distance: Scalar, logvar: Scalar) -> Scalar:
    """Return `distance * exp(-logvar) + logvar`, the loss of a decoder that also learns its noise; the graph is kept.

    One number for all pixels, as in sigma-VAE (Rybkin et al., arXiv:2006.13202) and in the public code of latent
    diffusion. It is least at `logvar = log(distance)`, where it is `1 + log(distance)`: without a lower bound as the
    distance goes to 0. What the distance has to be, for this to be a negative log-likelihood per element in nats:

    - L1: a Laplace distribution of scale `exp(logvar)`, up to the constant log 2.
    - MSE: a Gaussian of variance `exp(logvar)`, times 2 and up to the constant log(2 pi).
    - Anything else, such as a sum with a perceptual distance: a learned weight, but no likelihood.

    Args:
        distance: The mean distance over every element, 0-d.
        logvar: Logarithm of the learned scale, 0-d.

    Returns:
        A 0-d tensor, at least float32; smaller is better, and it may be negative.
    """
    log_var = at_least_float32(logvar)
    return at_least_float32(distance) * (-log_var).exp() + log_var


def weighted_mean(error: Tensor, weight: Tensor | None) -> Scalar:
    """Return `mean_b(weight_b * mean of error_b)`, the plain mean where `weight` is None.

    The weights are not divided by their sum: a batch in which all have weight 1/2 loses half, and what a sample adds
    does not depend on which other samples it came with.

    Args:
        error: `(B, ...)`.
        weight: `(B,)`, non-negative (which is not checked: that would make the host wait for the device).

    Raises:
        ValueError: If `weight` is not `(B,)`.
    """
    if weight is None:
        return error.mean()
    if weight.shape != error.shape[:1]:
        raise argument_error("weight", f"of shape {tuple(error.shape[:1])}", weight, "Pass one weight a sample.")
    return (weight.to(error.dtype) * error.reshape(len(error), -1).mean(1)).mean()


def difference(*, reconstruction: Tensor, target: Tensor) -> Tensor:
    """Return `reconstruction - target` in at least float32; the graph is kept.

    Raises:
        ValueError: If the shapes differ.
    """
    check_pair(reconstruction, target)
    return at_least_float32(reconstruction) - at_least_float32(target)


def check_pair(reconstruction: Tensor, target: Tensor) -> None:
    """Raise a `ValueError` if the shapes differ: broadcasting would compare what does not belong together."""
    if reconstruction.shape != target.shape:
        contract = f"of `target`'s shape {tuple(target.shape)}"
        raise argument_error("reconstruction", contract, reconstruction, "Crop or pad one to the other.")
