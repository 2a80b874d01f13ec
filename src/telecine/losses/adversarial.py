"""GAN losses on logits, and feature matching.

A GAN loss returns the losses of both sides. Its arguments are the logits of real samples, `real`, and of
reconstructions, `fake`, of any shape. Larger logits mean "more real". What it declares decides how gradients are taken
and which statistics are logged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import OutputError, argument_error, describe
from telecine.base.precision import at_least_float32
from telecine.base.shapes import Scalar, check_same_shape


class GANLosses(NamedTuple):
    """The losses of both sides, 0-d tensors in at least float32 with their graphs. Each side minimises its own."""

    discriminator: Scalar
    generator: Scalar


@dataclass(frozen=True)
class SeparableGANLoss:
    """A GAN loss whose discriminator's loss is a function of real logits plus one of fake logits.

    Its parts are differentiated one after the other, which needs less memory than `JointGANLoss`, and the autoencoder's
    step computes no real logits. Each part maps logits of any shape to a 0-d tensor in at least float32.
    """

    real: Callable[[Tensor], Scalar]
    """The discriminator's loss of real logits."""
    fake: Callable[[Tensor], Scalar]
    """The discriminator's loss of fake logits."""
    generator: Callable[[Tensor], Scalar]
    """The generator's loss of fake logits."""
    boundary: float = 0.0
    """Logits above this value mean "real", for the logged accuracies."""
    margin: float | None = None
    """Logits beyond this distance from 0 have no gradient, as with the hinge loss; for `hinge_active`."""

    def __call__(self, *, real: Tensor, fake: Tensor) -> GANLosses:
        """Return the losses of both sides.

        Raises:
            TypeError: A part returns anything else than a 0-d tensor.
        """
        discriminator = self.compute_discriminator_loss(real_logits=real, fake_logits=fake)
        generator = self.compute_generator_loss(fake_logits=fake)
        return GANLosses(discriminator=discriminator, generator=generator)

    def compute_generator_loss(self, *, fake_logits: Tensor) -> Scalar:
        """Return the generator's loss."""
        return _call_part("generator", self.generator, fake_logits)

    def compute_discriminator_loss(
        self, *, real_logits: Tensor | None, fake_logits: Tensor | None
    ) -> Scalar:
        """Return the discriminator's loss; only its part of real or of fake logits if the others are None."""
        if real_logits is None:
            assert fake_logits is not None
            return _call_part("fake", self.fake, fake_logits)
        real = _call_part("real", self.real, real_logits)
        if fake_logits is None:
            return real
        return real + _call_part("fake", self.fake, fake_logits)


@dataclass(frozen=True)
class JointGANLoss:
    """A GAN loss that is a function of the logits of both sides. The defaults hold for any function."""

    function: Callable[..., GANLosses]
    """Called with the keyword arguments `real` and `fake`, logits of any shape. Returns `GANLosses`."""
    boundary: float | None = 0.0
    """Logits above this value mean "real", for the logged accuracies. With `None` a pair of a real sample and its
    reconstruction is right if the real logit is larger."""
    margin: float | None = None
    """See `SeparableGANLoss`."""

    def __call__(self, *, real: Tensor, fake: Tensor) -> GANLosses:
        """Return the losses of both sides.

        Raises:
            TypeError: The function returns anything else than `GANLosses` of two 0-d tensors.
        """
        losses = self.function(real=real, fake=fake)
        if not isinstance(losses, GANLosses) or not all(_is_scalar(loss) for loss in losses):
            name = getattr(self.function, "__name__", "the GAN loss")
            remedy = "Return `GANLosses(discriminator=..., generator=...)` and reduce both with `.mean()`."
            contract = "`GANLosses` of two 0-d tensors"
            raise argument_error(
                f"the result of {name}", contract, describe(losses), remedy, OutputError
            )
        return losses

    def compute_generator_loss(self, *, fake_logits: Tensor, real_logits: Tensor) -> Scalar:
        """Return the generator's loss."""
        return self(real=real_logits, fake=fake_logits).generator

    def compute_discriminator_loss(
        self, *, real_logits: Tensor | None, fake_logits: Tensor | None
    ) -> Scalar:
        """Return the discriminator's loss, which needs both logits."""
        assert real_logits is not None
        assert fake_logits is not None
        return self(real=real_logits, fake=fake_logits).discriminator


GANLoss: TypeAlias = SeparableGANLoss | JointGANLoss


def _is_scalar(loss: object) -> bool:
    return isinstance(loss, Tensor) and loss.ndim == 0


def _call_part(name: str, function: Callable[[Tensor], Scalar], logits: Tensor) -> Scalar:
    """Return the loss that a part of a `SeparableGANLoss` computes.

    Args:
        name: The field of the part.
        function: The part.
        logits: Its argument.

    Raises:
        TypeError: It is no 0-d tensor.
    """
    loss = function(logits)
    if not _is_scalar(loss):
        title = f"the result of {getattr(function, '__name__', 'the GAN loss')}"
        got = f"{describe(loss)} of the part `{name}`"
        raise argument_error(title, "a 0-d tensor", got, "Reduce it with `.mean()`.", OutputError)
    return loss


def _hinge_real(logits: Tensor) -> Scalar:
    return (1 - at_least_float32(logits)).relu().mean()  # equation 16, first term


def _hinge_fake(logits: Tensor) -> Scalar:
    return (1 + at_least_float32(logits)).relu().mean()  # equation 16, second term


def _hinge_generator(logits: Tensor) -> Scalar:
    return -at_least_float32(logits).mean()  # equation 17


hinge = SeparableGANLoss(real=_hinge_real, fake=_hinge_fake, generator=_hinge_generator, margin=1.0)
"""The hinge losses.

Geometric GAN (Lim & Ye, arXiv:1705.02894), section 3, and spectral normalisation (Miyato et al., arXiv:1802.05957),
equations 16 and 17. The discriminator's loss is >= 0: 2 if all logits are 0, and 0 if it separates by the whole margin.
The generator's loss is unbounded; smaller means that fakes look more real.
"""


# -log(sigmoid(x)) = softplus(-x) and -log(1 - sigmoid(x)) = softplus(x), without overflow.
def _is_real_nll(logits: Tensor) -> Scalar:
    return F.softplus(-at_least_float32(logits)).mean()


def _is_fake_nll(logits: Tensor) -> Scalar:
    return F.softplus(at_least_float32(logits)).mean()


vanilla = SeparableGANLoss(real=_is_real_nll, fake=_is_fake_nll, generator=_is_real_nll)
"""The losses of the original GAN (Goodfellow et al., arXiv:1406.2661), with D the sigmoid of the logits.

The discriminator's loss is the negative of equation 1. The generator maximises log D(G(z)) instead of minimising
log(1 - D(G(z))), as section 3 recommends: its gradient does not vanish when the discriminator wins. Both losses are in
nats and >= 0; 2 log 2 and log 2 if all logits are 0.
"""


def _square_to_1(logits: Tensor) -> Scalar:
    return 0.5 * (at_least_float32(logits) - 1).square().mean()


def _square_to_0(logits: Tensor) -> Scalar:
    return 0.5 * at_least_float32(logits).square().mean()


least_squares = SeparableGANLoss(
    real=_square_to_1, fake=_square_to_0, generator=_square_to_1, boundary=0.5
)
"""The losses of LSGAN (Mao et al., arXiv:1611.04076), equation 9, with labels 0 and 1.

Both are >= 0, and 1/2 if all logits are 0. The discriminator's loss is 0 if it outputs 1 for real samples and 0 for
fakes, the generator's if the discriminator outputs 1 for fakes.
"""


def _relativistic(*, real: Tensor, fake: Tensor) -> GANLosses:
    check_same_shape(
        "fake",
        fake,
        "real",
        real,
        remedy="Pass as many real samples as fakes to the discriminator.",
    )
    difference = at_least_float32(real) - at_least_float32(fake)
    return GANLosses(
        discriminator=F.softplus(-difference).mean(), generator=F.softplus(difference).mean()
    )


relativistic = JointGANLoss(_relativistic, boundary=None)
"""The losses of the relativistic pairing GAN: the logit of a real sample minus that of its partner.

R3GAN (Huang et al., arXiv:2501.05441) with the loss of RSGAN (Jolicoeur-Martineau, arXiv:1807.00734). The pairs are a
clip and its reconstruction, or the patches of both at the same position. Both losses are in nats and >= 0, and log 2 if
all pairs are equal; one falls as the other rises. A `ValueError` is raised if the shapes of `real` and `fake` differ.
"""

GAN_LOSSES: dict[str, GANLoss] = {
    "hinge": hinge,
    "vanilla": vanilla,
    "least_squares": least_squares,
    "relativistic": relativistic,
}


def feature_matching(*, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Scalar:
    """Return the mean over layers of the mean absolute difference of a discriminator's feature maps.

    pix2pixHD (Wang et al., arXiv:1711.11585), equation 4, divided by the number of layers, so that a weight means the
    same for discriminators of any depth. `real` and `fake` hold one map of any shape per layer; only `fake` gets a
    gradient. The result is a 0-d tensor >= 0, at least float32; smaller is closer, 0 for equal features.

    Raises:
        ValueError: If there are no layers, or the numbers of layers or the shapes of a layer differ.
    """
    if len(real) == 0:
        raise argument_error(
            "real", "one feature map per layer", "none", "Return features from the discriminator."
        )
    if len(fake) != len(real):
        contract = f"as long as `real`, {len(real)} feature maps"
        raise argument_error(
            "fake", contract, str(len(fake)), "Take both from the same discriminator."
        )
    distances = []
    for index, (x, y) in enumerate(zip(real, fake, strict=True)):
        check_same_shape(
            f"fake[{index}]",
            y,
            f"real[{index}]",
            x,
            remedy="Pass both sides through the same layers.",
        )
        distances.append(F.l1_loss(at_least_float32(y), at_least_float32(x.detach())))
    return torch.stack(distances).mean()  # equation 4
