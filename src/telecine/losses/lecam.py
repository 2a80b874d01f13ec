"""LeCam regularisation (Tseng et al., arXiv:2104.03310) with running means of the logits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from telecine.base.frozen import keep_precision
from telecine.base.precision import at_least_float32
from telecine.base.shapes import Scalar
from telecine.ops.ranks import average_over_ranks


def lecam(*, real: Tensor, fake: Tensor, real_average: Scalar, fake_average: Scalar) -> Scalar:
    """Return `mean(relu(real - fake_average)^2) + mean(relu(real_average - fake)^2)`, part of the discriminator's loss.

    Equation 3 with the relu of the authors' code: a logit is pulled towards the moving average of the other side, real
    logits only down, fake logits only up. It slows down a discriminator that overfits to little data, and does nothing
    to one that confuses real and fake.

    Args:
        real: Logits of real samples, of any shape.
        fake: Logits of reconstructions, of any shape.
        real_average: Moving average of `real`, 0-d; it gets no gradient.
        fake_average: Moving average of `fake`, 0-d; it gets no gradient.
    """
    real = at_least_float32(real)
    fake = at_least_float32(fake)
    alpha_r = at_least_float32(real_average).detach()
    alpha_f = at_least_float32(fake_average).detach()
    return (real - alpha_f).relu().square().mean() + (alpha_r - fake).relu().square().mean()


class RunningMean(nn.Module):
    """An exponential moving average: `m <- decay * m + (1 - decay) * value`; 0 before the first value.

    The first values are averaged evenly until the decay takes over, so there is no bias towards 0. Values that are not
    finite are ignored. No host-device synchronisation.

    Args:
        decay: In [0, 1). The default is 1D-tokenizer's: a small one follows the noise of single batches.
    """

    mean: Tensor
    num_values: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("num_values", torch.zeros(()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RunningMean":
        # Half precision would round small updates to zero.
        return super()._apply(lambda tensor: keep_precision(fn, tensor), recurse)

    @torch.no_grad()
    def update(self, value: Scalar) -> None:
        """Add a 0-d value; its graph is not kept."""
        value = value.detach().to(self.mean.dtype)
        is_finite = torch.isfinite(value)
        self.num_values += is_finite
        fraction = (1 / self.num_values.clamp(min=1)).clamp(min=1 - self.decay)
        self.mean.lerp_(torch.where(is_finite, value, self.mean), fraction)


class LeCam(nn.Module):
    """LeCam regularisation (Tseng et al., arXiv:2104.03310) with its running means of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.real = RunningMean()
        self.fake = RunningMean()

    def forward(self, *, real: Tensor, fake: Tensor) -> Scalar:
        """Return the regulariser of a batch of logits. In training mode the means are updated first."""
        if self.training and torch.is_grad_enabled():
            real_mean = at_least_float32(real.detach()).mean()
            fake_mean = at_least_float32(fake.detach()).mean()
            real_mean, fake_mean = average_over_ranks(torch.stack([real_mean, fake_mean]))
            self.real.update(real_mean)
            self.fake.update(fake_mean)
        # Copies: the next update changes the means in place.
        return lecam(
            real=real,
            fake=fake,
            real_average=self.real.mean.clone(),
            fake_average=self.fake.mean.clone(),
        )
