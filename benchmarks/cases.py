"""The compared implementations of the objective, and the steps that `objective.py` and `gpu.py` measure.

The decoder is a single convolution whose weight is the last layer, so that a step measures the objective. Gradients
are freed at the end of each step, as in training, and no optimizer runs.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Protocol

import torch
from baseline import BaselineLoss
from baseline_discriminators import BASELINE_DISCRIMINATORS
from measure import Step, device
from torch import Tensor, nn
from torch.nn import functional as F

import telecine
from telecine import VideoAutoencoderLoss

TELECINE, BASELINE, MAGVIT2 = "telecine", "baseline", "magvit2-pytorch"
AUTOENCODER = "autoencoder step"
DISCRIMINATOR = "discriminator step"
DISCRIMINATOR_PENALTY = "discriminator step, penalty"
UPDATE = "update"
UPDATE_PENALTY = "update, penalty"
VIDEO_STEPS = (AUTOENCODER, DISCRIMINATOR, DISCRIMINATOR_PENALTY, UPDATE, UPDATE_PENALTY)
FRAME_STEPS = VIDEO_STEPS[:3]

NUM_SINGLE_FRAMES = 4
ADVERSARIAL_WEIGHT = 0.5
PENALTY_WEIGHT = 10.0
# Telecine computes the penalty at step 0 and not at step 1. The baseline takes it as an argument of the call.
PENALTY_EVERY = 16
PENALTY_STEP, PLAIN_STEP = 0, 1


@dataclass(frozen=True)
class Setup:
    """The size of networks and clips."""

    dim: int
    """A quarter of the channels of the discriminator's first block."""
    size: int
    """Height and width of the clips."""
    num_frames: int
    batch_size: int
    num_perceptual_frames: int = 1
    discriminator_name: str = "Discriminator3D"
    """A discriminator class of telecine. "Discriminator" gets `NUM_SINGLE_FRAMES` clips of one frame, without LPIPS."""

    @property
    def is_image(self) -> bool:
        """Whether the discriminator sees single frames."""
        return self.discriminator_name == "Discriminator"

    @property
    def title(self) -> str:
        """The size, as a title."""
        return f"dim {self.dim}, {self.size} px, {self.num_frames} frames, batch {self.batch_size}"

    @property
    def video_shape(self) -> tuple[int, int, int, int, int]:
        """The shape of the videos `(B, C, T, H, W)`."""
        batch_size, num_frames = (
            (NUM_SINGLE_FRAMES, 1) if self.is_image else (self.batch_size, self.num_frames)
        )
        return batch_size, 3, num_frames, self.size, self.size

    @property
    def discriminator_kwargs(self) -> dict[str, int]:
        """The arguments of the discriminator class."""
        sizes = {"dim": self.dim, "image_size": self.size}
        return sizes if self.is_image else {**sizes, "frame_num": self.num_frames}

    def build_discriminator(self) -> nn.Module:
        """Return telecine's discriminator. The other implementations copy its weights."""
        torch.manual_seed(0)
        return getattr(telecine, self.discriminator_name)(**self.discriminator_kwargs)


class Implementation(Protocol):
    """An objective with both steps."""

    def autoencoder_loss(self, real: Tensor, fake: Tensor, last_layer: Tensor) -> Tensor:
        """Return the loss of the autoencoder step."""

    def discriminator_loss(self, real: Tensor, fake: Tensor, *, penalty: bool) -> Tensor:
        """Return the loss of the discriminator step."""

    def update(self, real: Tensor, fake: Tensor, last_layer: Tensor, *, penalty: bool) -> None:
        """Run forward and backward of both steps."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the discriminators."""


class Telecine:
    """`VideoAutoencoderLoss`."""

    def __init__(self, setup: Setup) -> None:
        networks: dict[str, Any] = (
            {"discr_kwargs": setup.build_discriminator(), "perceptual_weight": 0}
            if setup.is_image
            else {
                "discr_3d_kwargs": setup.build_discriminator(),
                "perceptual.num_frames": setup.num_perceptual_frames,
            }
        )
        settings = {
            "disc_start": 0,
            "adversarial_loss_weight": ADVERSARIAL_WEIGHT,
            "grad_penalty_loss_weight": PENALTY_WEIGHT,
            "penalty.every": PENALTY_EVERY,
        }
        self.loss = VideoAutoencoderLoss(**nested({**settings, **networks})).to(device())
        assert self.loss.schedule.at(PENALTY_STEP)["grad_penalty"] > 0
        assert self.loss.schedule.at(PLAIN_STEP)["grad_penalty"] == 0

    def autoencoder_loss(self, real: Tensor, fake: Tensor, last_layer: Tensor) -> Tensor:
        """Return the loss of the autoencoder step."""
        return self.loss(real, fake, 0, PLAIN_STEP, last_layer=last_layer)[0]

    def discriminator_loss(self, real: Tensor, fake: Tensor, *, penalty: bool) -> Tensor:
        """Return the loss of the discriminator step."""
        return self.loss(real, fake, 1, PENALTY_STEP if penalty else PLAIN_STEP)[0]

    def update(self, real: Tensor, fake: Tensor, last_layer: Tensor, *, penalty: bool) -> None:
        """Run forward and backward of both steps, with `VideoAutoencoderLoss.both_losses`."""
        both = self.loss.both_losses(
            real, fake, PENALTY_STEP if penalty else PLAIN_STEP, last_layer=last_layer
        )
        both.loss.backward()
        both.disc_loss.backward()

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the discriminators."""
        return self.loss.get_trainable_parameters()


class SeparateSteps:
    """An update as two calls, each followed by its backward."""

    def update(
        self: Implementation, real: Tensor, fake: Tensor, last_layer: Tensor, *, penalty: bool
    ) -> None:
        """Run forward and backward of both steps."""
        self.autoencoder_loss(real, fake, last_layer).backward()
        clear_gradients(
            self.parameters()
        )  # a discriminator that is not frozen got gradients that are not used
        self.discriminator_loss(real, fake.detach(), penalty=penalty).backward()


class Baseline(SeparateSteps):
    """`BaselineLoss`."""

    def __init__(self, setup: Setup) -> None:
        discriminator = BASELINE_DISCRIMINATORS[setup.discriminator_name](
            **setup.discriminator_kwargs
        )
        discriminator.load_state_dict(setup.build_discriminator().state_dict(), strict=True)
        networks = (
            {"discr": discriminator, "perceptual_weight": 0.0}
            if setup.is_image
            else {"discr_3d": discriminator, "num_perceptual_frames": setup.num_perceptual_frames}
        )
        self.loss = BaselineLoss(
            **networks,
            adversarial_loss_weight=ADVERSARIAL_WEIGHT,
            grad_penalty_loss_weight=PENALTY_WEIGHT,
        ).to(device())

    def autoencoder_loss(self, real: Tensor, fake: Tensor, last_layer: Tensor) -> Tensor:
        """Return the loss of the autoencoder step."""
        return self.loss.autoencoder_step(real, fake, last_layer)[0]

    def discriminator_loss(self, real: Tensor, fake: Tensor, *, penalty: bool) -> Tensor:
        """Return the loss of the discriminator step."""
        return self.loss.discriminator_step(real, fake, penalty=penalty)[0]

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the discriminators."""
        return self.loss.parameters()


class Magvit2(SeparateSteps):
    """magvit2-pytorch's discriminator of single frames, with its hinge losses and its penalty."""

    def __init__(self, setup: Setup) -> None:
        package = import_magvit2()
        assert package is not None
        self.package = package
        self.discriminator = package.Discriminator(**setup.discriminator_kwargs)
        self.discriminator.load_state_dict(setup.build_discriminator().state_dict(), strict=True)
        self.discriminator.to(device())

    def autoencoder_loss(self, real: Tensor, fake: Tensor, last_layer: Tensor) -> Tensor:
        """Return the loss of the autoencoder step."""
        g = self.package.hinge_gen_loss(self.discriminator(fake.squeeze(2)))
        return F.mse_loss(fake, real) + ADVERSARIAL_WEIGHT * g

    def discriminator_loss(self, real: Tensor, fake: Tensor, *, penalty: bool) -> Tensor:
        """Return the loss of the discriminator step."""
        real = real.squeeze(2).clone().requires_grad_(penalty)
        d_real, d_fake = self.discriminator(real), self.discriminator(fake.squeeze(2))
        loss = self.package.hinge_discr_loss(d_fake, d_real)
        return (
            loss + PENALTY_WEIGHT * self.package.gradient_penalty(real, d_real, center=1.0)
            if penalty
            else loss
        )

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the discriminator."""
        return self.discriminator.parameters()


IMPLEMENTATIONS: dict[str, type[Telecine] | type[Baseline] | type[Magvit2]] = {
    TELECINE: Telecine,
    BASELINE: Baseline,
    MAGVIT2: Magvit2,
}


def import_magvit2() -> ModuleType | None:
    """Return the module of magvit2-pytorch, or `None` if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from magvit2_pytorch import magvit2_pytorch
    except ImportError:
        return None
    return magvit2_pytorch


def implementations_of(setup: Setup) -> list[str]:
    """Return the implementations that support a setup. magvit2-pytorch has a discriminator of single frames only."""
    return [TELECINE, BASELINE, *([MAGVIT2] if setup.is_image and import_magvit2() else [])]


def steps_of(name: str, setup: Setup) -> dict[str, Step]:
    """Return the steps of an implementation by title. All use the same batch and the same networks."""
    implementation = IMPLEMENTATIONS[name](setup)
    generator = torch.Generator().manual_seed(0)
    real = (torch.rand(setup.video_shape, generator=generator) * 2 - 1).to(device())
    torch.manual_seed(0)
    decoder = nn.Conv3d(3, 3, 1).to(device())
    with torch.no_grad():
        fake = decoder(real)

    def autoencoder() -> None:
        implementation.autoencoder_loss(real, decoder(real), decoder.weight).backward()
        clear()

    def discriminator(penalty: bool) -> None:
        implementation.discriminator_loss(real, fake, penalty=penalty).backward()
        clear()

    def update(penalty: bool) -> None:
        implementation.update(real, decoder(real), decoder.weight, penalty=penalty)
        clear()

    def clear() -> None:
        clear_gradients([*implementation.parameters(), *decoder.parameters()])

    updates = {UPDATE: partial(update, False), UPDATE_PENALTY: partial(update, True)}
    return {
        AUTOENCODER: autoencoder,
        DISCRIMINATOR: partial(discriminator, False),
        DISCRIMINATOR_PENALTY: partial(discriminator, True),
        **({} if setup.is_image else updates),
    }


def step_of(name: str, setup: Setup, title: str) -> Step:
    """Return one step of an implementation."""
    return steps_of(name, setup)[title]


def clear_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Free the gradients."""
    for parameter in parameters:
        parameter.grad = None


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with dotted names as groups: `{"penalty.every": 2}` as `{"penalty": {"every": 2}}`."""
    groups: dict[str, Any] = {}
    for name, value in settings.items():
        group, _, key = name.rpartition(".")
        (groups.setdefault(group, {}) if group else groups)[key] = value
    return groups


def parse_setup(text: str) -> Setup:
    """Parse `dim,size,frames,batch`."""
    try:
        dim, size, num_frames, batch_size = (int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be dim,size,frames,batch, but got {text!r}"
        ) from None
    return Setup(dim, size, num_frames, batch_size)
