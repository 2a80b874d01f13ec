"""Penalties on the discriminator's gradient with respect to its input.

Each takes what the discriminator was shown and what it said, `real` and `fake`, and the discriminator itself as
`judge` where a penalty has to show it something else. All are summed over the axes of a sample, however many there are,
and over its logits where there is a map of them; samples must not see each other, as with batch normalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from telecine.ops.double_backward import differentiated_twice
from telecine.precision import at_least_float32, autocast_off
from telecine.randomness import Generators, rand, randn
from telecine.shapes import Scalar, argument_error

Judge: TypeAlias = Callable[[Tensor], Tensor]


class Judged(NamedTuple):
    """A batch that a discriminator was shown, and its logits of it.

    `view` is `(B, ...)` and must require gradients where the penalty differentiates with respect to it; `logits` is
    `(B, ...)` as well, one logit a sample or a map of them.
    """

    view: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Penalty:
    """A penalty and what it needs around it."""

    compute: Callable[..., Scalar]
    """The function, called with `judge=, real=, fake=, generator=`."""
    of_real: bool = True
    """Whether the view of the real samples must require gradients before it is judged."""
    of_fake: bool = True
    """Whether that of the fakes must."""
    double_backward: bool = True
    """Whether it differentiates a gradient, for which autocast has to be off where the views are judged."""
    sees_fake: bool = True
    """Whether it looks at the fakes at all, be it at their pixels. If not, it can be taken before they are judged."""


def one_centered(*, judge: Judge, real: Judged, fake: Judged, generator: Generators = None) -> Scalar:
    """Return `mean_b (||grad D(real_b)||_2 - 1)^2`: see `gradient_penalty`."""
    return gradient_penalty(real=real.view, logits=real.logits)


def r1(*, judge: Judge, real: Judged, fake: Judged, generator: Generators = None) -> Scalar:
    """Return `1/2 mean_b ||grad D(real_b)||_2^2`, a 0-d tensor >= 0 with its graph (a double backward).

    Mescheder et al. (arXiv:1801.04406), equation 9 without its gamma: the weight that this gets is the gamma.

    Raises:
        ValueError: If `real.view` does not require gradients.
    """
    return _half_mean_square(real)


def r2(*, judge: Judge, real: Judged, fake: Judged, generator: Generators = None) -> Scalar:
    """Return `1/2 mean_b ||grad D(fake_b)||_2^2`: `r1` of the fakes (arXiv:1801.04406, equation 10 without gamma).

    Raises:
        ValueError: If `fake.view` does not require gradients.
    """
    return _half_mean_square(fake)


def r1_and_r2(*, judge: Judge, real: Judged, fake: Judged, generator: Generators = None) -> Scalar:
    """Return `r1 + r2`, which R3GAN (Huang et al., arXiv:2501.05441) needs both of; the weight is its gamma.

    Raises:
        ValueError: If one of the views does not require gradients.
    """
    return _half_mean_square(real) + _half_mean_square(fake)


def wgan_gp(*, judge: Judge, real: Judged, fake: Judged, generator: Generators = None) -> Scalar:
    """Return `mean_b (||grad D(x_hat_b)||_2 - 1)^2` on random points between the real samples and the fakes.

    Gulrajani et al. (arXiv:1704.00028), equation 3: the penalty of both too small and too large a norm. It judges a
    third batch, and needs a gradient of neither view.

    Args:
        judge: The discriminator.
        real: Of which only the view counts.
        fake: Likewise; the view has the shape of the real one.
        generator: Source of the points, on the views' device; PyTorch's own by default.

    Returns:
        A 0-d tensor >= 0, at least float32, whose graph leads to the discriminator's parameters (a double backward).

    Raises:
        ValueError: If the shapes of the views differ.
    """
    x, x_tilde = real.view.detach(), fake.view.detach()
    if x.shape != x_tilde.shape:
        contract = f"of `real.view`'s shape {tuple(x.shape)}"
        raise argument_error("fake.view", contract, x_tilde, "Show the discriminator as many real samples as fakes.")
    one_each = (len(x), *[1] * (x.ndim - 1))
    epsilon = rand(one_each, generator=generator, device=x.device, dtype=at_least_float32(x).dtype)
    # Algorithm 1, line 6
    x_hat = (epsilon * x + (1 - epsilon) * x_tilde).to(torch.promote_types(x.dtype, x_tilde.dtype)).requires_grad_()
    with differentiated_twice():
        d_hat = judge(x_hat)
    # Equation 3, second term
    return gradient_penalty(real=x_hat, logits=d_hat)


def approximate_r1(
    *, judge: Judge, real: Judged, fake: Judged, generator: Generators = None, sigma: float = 0.01
) -> Scalar:
    """Return `1/2 mean_b ((D(real_b + sigma n) - D(real_b)) / sigma)^2` for noise n of N(0, 1), without a gradient.

    Seaweed-APT (Lin et al., arXiv:2501.08316), section 3.4, divided by 2 sigma^2: its expectation then approaches
    that of `r1` as sigma goes to 0, and the same weight fits. A weight lambda of the paper is `2 sigma^2 lambda` here,
    0.02 for its 100 at sigma 0.01. One noise is a noisy estimate: its standard deviation is about sqrt(2) times the
    value for each sample. There is no double backward, at the price of one more forward.

    The step of the logits is small, and whatever else changes them between two calls drowns it. Dropout does. So does
    the rounding of half precision: under autocast both batches are judged once more in float32, at the price of one
    forward of twice the size. Parameters that are in half precision themselves need a larger sigma, such as the 0.1
    that the paper has for videos.

    Args:
        judge: The discriminator.
        real: Its view need not require gradients; its logits keep their graph, and do not count under autocast.
        fake: Does not count.
        generator: Source of the noise, on the view's device; PyTorch's own by default.
        sigma: Standard deviation of the noise, > 0, in units of the view's values.

    Returns:
        A 0-d tensor >= 0, at least float32, whose graph leads to the discriminator's parameters.

    Raises:
        ValueError: If `sigma` is not above 0.
    """
    if not sigma > 0:
        raise argument_error("sigma", "above 0", sigma, "Take `r1` for the limit at 0.")
    x = real.view.detach()
    noise = randn(x.shape, generator=generator, device=x.device, dtype=at_least_float32(x).dtype)
    moved = x + sigma * noise  # in the noise's type, which is at least float32
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        with autocast_off(x.device):
            logits, moved_logits = judge(torch.cat((x.to(moved.dtype), moved))).chunk(2)
    else:
        logits, moved_logits = real.logits, judge(moved.to(x.dtype))
    # Subtracted before they are summed: the sum of a large map has no digits left for a small step.
    step = at_least_float32(moved_logits) - at_least_float32(logits)
    return 0.5 * (step.reshape(len(step), -1).sum(1) / sigma).square().mean()


GRAD_PENALTIES: dict[str, Penalty] = {
    "one_centered": Penalty(one_centered, of_fake=False, sees_fake=False),
    "r1": Penalty(r1, of_fake=False, sees_fake=False),
    "r2": Penalty(r2, of_real=False),
    "r1_and_r2": Penalty(r1_and_r2),
    "wgan_gp": Penalty(wgan_gp, of_real=False, of_fake=False),
    "approximate_r1": Penalty(approximate_r1, of_real=False, of_fake=False, double_backward=False, sees_fake=False),
}


def gradient_penalty(*, real: Tensor, logits: Tensor, center: float = 1.0) -> Scalar:
    """Return the mean over the batch of `(|| d sum(logits) / d real_b ||_2 - center)^2`.

    The norm is that of WGAN-GP (Gulrajani et al., arXiv:1704.00028, equation 3), taken on the real samples instead
    of on interpolates, as MAGVIT-2's public code and CogVideo do. It runs over every axis but the batch.

    Args:
        real: The real samples `(B, ...)` that `logits` were computed from; must require gradients.
        logits: Their logits; one logit a sample or a map of them, of samples that do not see each other.
        center: The gradient norm at which the penalty vanishes.

    Returns:
        A 0-d tensor >= 0 whose graph leads to the discriminator's parameters (a double backward).

    Raises:
        ValueError: If `real` does not require gradients.
    """
    return (sample_norms(_input_gradient(real, logits)) - center).square().mean()


def sample_norms(tensor: Tensor) -> Tensor:
    """Return the 2-norm of each sample over every axis but the first, shape `(B,)`, in at least float32.

    The gradient of `vector_norm` at exactly zero is zero, so a sample that the discriminator ignores is safe.
    """
    return torch.linalg.vector_norm(at_least_float32(tensor).flatten(1), dim=1)


def _half_mean_square(judged: Judged) -> Scalar:
    """Return `1/2 mean_b ||grad D(view_b)||_2^2`, as sums of squares: a root would have no second gradient at 0."""
    gradient = at_least_float32(_input_gradient(judged.view, judged.logits))
    return 0.5 * gradient.square().flatten(1).sum(1).mean()


def _input_gradient(view: Tensor, logits: Tensor) -> Tensor:
    """Return `d sum(logits) / d view`, of the view's shape, with its graph."""
    if not view.requires_grad:
        remedy = "Call `view.requires_grad_()` before it is judged."
        raise argument_error("view", "a tensor that requires gradients", view, remedy)
    (gradient,) = torch.autograd.grad(logits.sum(), view, create_graph=True)
    return gradient
