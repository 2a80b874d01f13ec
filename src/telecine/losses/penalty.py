"""Penalties on the gradient of the discriminator with respect to its input.

A penalty is a function with any of these keyword arguments:

- `discriminator`: maps an input `(B, ...)` to logits, for penalties that evaluate it at further points;
- `real`, `fake`: the discriminator's inputs `(B, ...)`, which require gradients, see `Penalty.gradient_at`;
- `real_logits`, `fake_logits`: the logits of both, one per sample or a map of them, with their graphs;
- `generator`: source of random numbers on the inputs' device, one generator, or a list with one for each clip, as in
  training; PyTorch's default generator if `None`. `telecine.base.randomness.randn` draws from all of them.

Gradients are taken of the sum of a sample's logits, and norms run over all axes of a sample. Samples must not depend on
each other, as they do with batch normalisation.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from telecine.base.checks import argument_error, check_positive
from telecine.base.precision import at_least_float32, autocast_off
from telecine.base.randomness import Generators, rand, randn
from telecine.base.shapes import Scalar, check_same_shape

LogitsFunction: TypeAlias = Callable[[Tensor], Tensor]
# What a penalty can be a function of, by the names of its parameters.
PENALTY_INPUTS = ("discriminator", "real", "fake", "real_logits", "fake_logits", "generator")


@dataclass(frozen=True)
class Penalty:
    """A penalty function with its declaration. The default holds for any function."""

    function: Callable[..., Scalar]
    """A function of any of `PENALTY_INPUTS`, by name."""
    gradient_at: Literal["inputs", "other points", "nowhere"] = "inputs"
    """Where the discriminator is differentiated. "inputs": at `real` and `fake`, if the function has these parameters.
    "other points": at points that the function computes. "nowhere": the function takes no gradient."""

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The names of `PENALTY_INPUTS` that the function has parameters for."""
        parameters = inspect.signature(getattr(self.function, "forward", self.function)).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return PENALTY_INPUTS
        return tuple(name for name in PENALTY_INPUTS if name in parameters)

    @property
    def double_backward(self) -> bool:
        """Whether the penalty is a function of a gradient, an exact penalty. Autocast is then off for all logits."""
        return self.gradient_at != "nowhere"

    @property
    def reads_fake(self) -> bool:
        """Whether it depends on fakes. If not, it belongs to the real part of the loss."""
        return "fake" in self.inputs or "fake_logits" in self.inputs

    def differentiates(self, name: str) -> bool:
        """Return whether the input `name` must require gradients before its logits are computed."""
        return self.gradient_at == "inputs" and name in self.inputs

    def __call__(self, **arguments: Any) -> Scalar:
        """Return the penalty, a 0-d tensor with its graph. `PENALTY_INPUTS` that are not its inputs are dropped."""
        inputs = dict(arguments)
        for name in PENALTY_INPUTS:
            if name not in self.inputs:
                inputs.pop(name, None)
        return self.function(**inputs)


def one_centered(*, real: Tensor, real_logits: Tensor) -> Scalar:
    """Return `mean_b (||grad D(real_b)||_2 - 1)^2`: see `gradient_penalty`."""
    return gradient_penalty(real=real, logits=real_logits)


def r1(*, real: Tensor, real_logits: Tensor) -> Scalar:
    """Return `1/2 mean_b ||grad D(real_b)||_2^2`, a 0-d tensor >= 0 with its graph (a double backward).

    Mescheder et al. (arXiv:1801.04406), equation 9 without gamma, which is the weight of the penalty.
    """
    gradient = at_least_float32(_input_gradient(real, real_logits))
    # No root: it has no second derivative at 0.
    return 0.5 * gradient.square().flatten(1).sum(1).mean()


def r2(*, fake: Tensor, fake_logits: Tensor) -> Scalar:
    """Return `1/2 mean_b ||grad D(fake_b)||_2^2`: `r1` of the fakes (arXiv:1801.04406, equation 10 without gamma)."""
    return r1(real=fake, real_logits=fake_logits)


def r1_and_r2(*, real: Tensor, fake: Tensor, real_logits: Tensor, fake_logits: Tensor) -> Scalar:
    """Return `r1 + r2`, as R3GAN (Huang et al., arXiv:2501.05441) needs both; the weight is its gamma.

    Args:
        real, fake: The inputs `(B, ...)` of the discriminator, which require gradients.
        real_logits, fake_logits: Their logits, one per sample or a map of them.
    """
    return r1(real=real, real_logits=real_logits) + r2(fake=fake, fake_logits=fake_logits)


def wgan_gp(
    *, discriminator: LogitsFunction, real: Tensor, fake: Tensor, generator: Generators = None
) -> Scalar:
    """Return `mean_b (||grad D(x_hat_b)||_2 - 1)^2` at random points between real samples and fakes.

    Gulrajani et al. (arXiv:1704.00028), equation 3. The discriminator is evaluated on a third batch. The result is a
    0-d tensor >= 0, at least float32, whose graph leads to the discriminator's parameters (a double backward).

    Args:
        discriminator: Maps an input `(B, ...)` to logits.
        real, fake: Its inputs, of one shape.
        generator: Source of the random points, on the inputs' device.

    Raises:
        ValueError: If the shapes of `real` and `fake` differ.
    """
    x = real.detach()
    x_tilde = fake.detach()
    check_same_shape(
        "fake",
        fake,
        "real",
        real,
        remedy="Pass as many real samples as fakes to the discriminator.",
    )
    one_per_clip = (len(x), *[1] * (x.ndim - 1))
    epsilon = rand(
        one_per_clip, generator=generator, device=x.device, dtype=at_least_float32(x).dtype
    )
    # Algorithm 1, line 6
    x_hat = epsilon * x + (1 - epsilon) * x_tilde
    x_hat = x_hat.to(torch.promote_types(x.dtype, x_tilde.dtype)).requires_grad_()
    return gradient_penalty(real=x_hat, logits=discriminator(x_hat))  # equation 3, second term


def approximate_r1(
    *,
    discriminator: LogitsFunction,
    real: Tensor,
    real_logits: Tensor,
    generator: Generators = None,
    sigma: float = 0.01,
) -> Scalar:
    """Return `1/2 mean_b ((D(real_b + sigma n) - D(real_b)) / sigma)^2` with noise n ~ N(0, 1), a finite difference.

    Seaweed-APT (Lin et al., arXiv:2501.08316), section 3.4, divided by 2 sigma^2: its expectation approaches `r1` as
    sigma goes to 0, so that the same weight fits. A weight lambda of the paper is `2 sigma^2 lambda` here, 0.02 for its
    100 at sigma 0.01. The estimate is noisy: its standard deviation is about sqrt(2) times the value for each sample.
    It costs one more forward instead of a double backward.

    Dropout and half precision hide the difference. Under autocast both logits are therefore computed again in float32,
    in one forward of twice the batch size, and `real_logits` are unused. Parameters that are stored in half precision
    need a larger sigma, such as the paper's 0.1 for videos.

    Args:
        discriminator: Maps an input `(B, ...)` to logits.
        real: Its input, which need not require gradients.
        real_logits: The logits of `real`, one per sample or a map of them.
        generator: Source of the noise, on the input's device.
        sigma: Standard deviation of the noise, > 0, in units of the input's values.

    Returns:
        A 0-d tensor >= 0, at least float32.

    Raises:
        ValueError: If `sigma` is not finite and above 0.
    """
    check_positive("sigma", sigma, remedy="Use `r1` for the limit at 0.")
    x = real.detach()
    noise = randn(x.shape, generator=generator, device=x.device, dtype=at_least_float32(x).dtype)
    moved = x + sigma * noise
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        with autocast_off(x.device):
            logits, moved_logits = discriminator(torch.cat((x.to(moved.dtype), moved))).chunk(2)
    else:
        logits = real_logits
        moved_logits = discriminator(moved.to(x.dtype))
    # Subtract before summing: the sum of a large map of logits has no digits left for a small difference.
    difference = at_least_float32(moved_logits) - at_least_float32(logits)
    return 0.5 * (difference.reshape(len(difference), -1).sum(1) / sigma).square().mean()


GRAD_PENALTIES: dict[str, Penalty] = {
    "one_centered": Penalty(one_centered),
    "r1": Penalty(r1),
    "r2": Penalty(r2),
    "r1_and_r2": Penalty(r1_and_r2),
    "wgan_gp": Penalty(wgan_gp, gradient_at="other points"),
    "approximate_r1": Penalty(approximate_r1, gradient_at="nowhere"),
}


def as_penalty(function: Callable[..., Scalar]) -> Penalty:
    """Return a function as a `Penalty`; a `functools.partial` of a known penalty keeps its declaration."""
    if isinstance(function, Penalty):
        return function
    if isinstance(function, functools.partial):
        for penalty in GRAD_PENALTIES.values():
            if penalty.function is function.func:
                return replace(penalty, function=function)
    return Penalty(function)


def gradient_penalty(*, real: Tensor, logits: Tensor, center: float = 1.0) -> Scalar:
    """Return the mean over the batch of `(|| d sum(logits) / d real_b ||_2 - center)^2`.

    The penalty of WGAN-GP (Gulrajani et al., arXiv:1704.00028, equation 3). At real samples instead of interpolates,
    MAGVIT-2's public code and CogVideo have it. The norm runs over every axis but the batch. The result is a
    0-d tensor >= 0 whose graph leads to the discriminator's parameters (a double backward).

    Args:
        real: The samples `(B, ...)` that `logits` were computed from; must require gradients.
        logits: One logit per sample or a map of them.
        center: The gradient norm at which the penalty is 0.

    Raises:
        ValueError: If `real` does not require gradients.
    """
    gradient = at_least_float32(_input_gradient(real, logits))
    # The gradient of `vector_norm` at exactly 0 is 0, so a sample that the discriminator ignores is safe.
    return (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - center).square().mean()


def _input_gradient(x: Tensor, logits: Tensor) -> Tensor:
    if not x.requires_grad:
        remedy = "Call `requires_grad_()` on it before its logits are computed."
        raise argument_error("the input of D", "a tensor that requires gradients", x, remedy)
    return torch.autograd.grad(logits.sum(), x, create_graph=True)[0]
