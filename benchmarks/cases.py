"""What is compared: ours, its plain twin and magvit2-pytorch's discriminator, as the steps of an update on one batch.

The decoder is one convolution whose weight is the last layer, so that the objective is what is measured. As in
training, gradients are there only from a step's backward to its end; nothing is optimised.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, Protocol

import torch
import yaml
from timing import Step, device
from torch import Tensor, nn
from torch.nn import functional as F
from twin import TWINS, TwinLoss

import telecine
from telecine import VideoAutoencoderLoss

OURS, TWIN, MAGVIT2 = "ours", "twin", "magvit2-pytorch"
AUTOENCODER = "autoencoder's step"
DISCRIMINATORS = "discriminators' step"
DISCRIMINATORS_PENALTY = "discriminators' step, penalty"
UPDATE = "update"
UPDATE_PENALTY = "update, penalty"
VIDEO_STEPS = (AUTOENCODER, DISCRIMINATORS, DISCRIMINATORS_PENALTY, UPDATE, UPDATE_PENALTY)
FRAME_STEPS = VIDEO_STEPS[:3]

SINGLE_FRAMES = 4
ADVERSARIAL_WEIGHT = 0.5
PENALTY_WEIGHT = 10.0
# What the comparison decides; the twin could not follow an option of these.
FIXED = {
    "disc_start",
    "discr_kwargs",
    "discr_3d_kwargs",
    "perceptual_weight",
    "perceptual_frames",
    "adversarial_loss_weight",
    "grad_penalty_loss_weight",
    "grad_penalty_every",
}
# Ours computes the penalty at step 0 and not at step 1; the twin, which is asked, does the same.
LAZY = 16
PENALTY_STEP, PLAIN_STEP = 0, 1


@dataclass(frozen=True)
class Setup:
    """One size of networks and clips, and the options of our loss."""

    dim: int
    """A quarter of the channels of the discriminator's first block."""
    size: int
    """Height and width of the clips."""
    frames: int
    batch: int
    perceptual_frames: int = 1
    discriminator: str = "Discriminator3D"
    """Of whole videos, as telecine names it; or "Discriminator", which sees `SINGLE_FRAMES`, without LPIPS."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of `VideoAutoencoderLoss` that stand in place of the defaults, on our side alone."""

    @property
    def sees_frames(self) -> bool:
        """Whether the discriminator is the one of single frames."""
        return self.discriminator == "Discriminator"

    @property
    def title(self) -> str:
        """Say what it is."""
        return f"dim {self.dim}, {self.size} px, {self.frames} frames, batch {self.batch}"

    @property
    def clips(self) -> tuple[int, int, int, int, int]:
        """Return the shape of the videos; where single frames are judged, each is a clip of its own."""
        batch, frames = (SINGLE_FRAMES, 1) if self.sees_frames else (self.batch, self.frames)
        return batch, 3, frames, self.size, self.size

    @property
    def judge_arguments(self) -> dict[str, int]:
        """Return the arguments of the discriminator's class."""
        sizes = {"dim": self.dim, "image_size": self.size}
        return sizes if self.sees_frames else {**sizes, "frame_num": self.frames}

    def judge(self) -> nn.Module:
        """Return our discriminator; what it is measured against starts from its weights."""
        torch.manual_seed(0)
        return getattr(telecine, self.discriminator)(**self.judge_arguments)


class Contestant(Protocol):
    """An objective in two steps."""

    def autoencoder_loss(self, real: Tensor, fake: Tensor, last_layer: Tensor) -> Tensor:
        """Return the loss of the autoencoder's step."""

    def discriminator_loss(self, real: Tensor, fake: Tensor, *, penalty: bool) -> Tensor:
        """Return the loss of the discriminators' step."""

    def update(self, real: Tensor, fake: Tensor, last_layer: Tensor, *, penalty: bool) -> None:
        """Run both steps with their backwards."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return what the discriminators' step trains."""


class Separate:
    """An update in two calls, one after the other's backward."""

    def update(self: Contestant, real: Tensor, fake: Tensor, last_layer: Tensor, *, penalty: bool) -> None:
        """Run both steps with their backwards."""
        self.autoencoder_loss(real, fake, last_layer).backward()
        let_go(self.parameters())  # an unfrozen discriminator has gradients now that nobody asked for
        self.discriminator_loss(real, fake.detach(), penalty=penalty).backward()


class Ours:
    """`VideoAutoencoderLoss`."""

    def __init__(self, setup: Setup) -> None:
        judged: dict[str, Any] = (
            {"discr_kwargs": setup.judge(), "perceptual_weight": 0}
            if setup.sees_frames
            else {"discr_3d_kwargs": setup.judge(), "perceptual_frames": setup.perceptual_frames}
        )
        weights = {"adversarial_loss_weight": ADVERSARIAL_WEIGHT, "grad_penalty_loss_weight": PENALTY_WEIGHT}
        given = {"disc_start": 0, "grad_penalty_every": LAZY, **weights, **judged, **setup.options}
        self.loss = VideoAutoencoderLoss(**given).to(device())
        assert self.loss.penalises(PENALTY_STEP)
        assert not self.loss.penalises(PLAIN_STEP)

    def autoencoder_loss(self, real: Tensor, fake: Tensor, last_layer: Tensor) -> Tensor:
        """Return the loss of the autoencoder's step."""
        return self.loss(real, fake, 0, PLAIN_STEP, last_layer=last_layer)[0]

    def discriminator_loss(self, real: Tensor, fake: Tensor, *, penalty: bool) -> Tensor:
        """Return the loss of the discriminators' step."""
        return self.loss(real, fake, 1, PENALTY_STEP if penalty else PLAIN_STEP)[0]

    def update(self, real: Tensor, fake: Tensor, last_layer: Tensor, *, penalty: bool) -> None:
        """Run both steps with their backwards, in the loss' own call for both."""
        both = self.loss.update(real, fake, PENALTY_STEP if penalty else PLAIN_STEP, last_layer=last_layer)
        both.loss.backward()
        both.disc_loss.backward()

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return what the discriminators' step trains."""
        return self.loss.get_trainable_parameters()


class Twin(Separate):
    """`TwinLoss`."""

    def __init__(self, setup: Setup) -> None:
        judge = TWINS[setup.discriminator](**setup.judge_arguments)
        judge.load_state_dict(setup.judge().state_dict(), strict=True)
        judged = (
            {"discr": judge, "perceptual_weight": 0.0}
            if setup.sees_frames
            else {"discr_3d": judge, "perceptual_frames": setup.perceptual_frames}
        )
        self.loss = TwinLoss(
            **judged, adversarial_loss_weight=ADVERSARIAL_WEIGHT, grad_penalty_loss_weight=PENALTY_WEIGHT
        ).to(device())

    def autoencoder_loss(self, real: Tensor, fake: Tensor, last_layer: Tensor) -> Tensor:
        """Return the loss of the autoencoder's step."""
        return self.loss.autoencoder_step(real, fake, last_layer)[0]

    def discriminator_loss(self, real: Tensor, fake: Tensor, *, penalty: bool) -> Tensor:
        """Return the loss of the discriminators' step."""
        return self.loss.discriminator_step(real, fake, penalty=penalty)[0]

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return what the discriminators' step trains."""
        return self.loss.parameters()


class Magvit2(Separate):
    """magvit2-pytorch's own discriminator of frames, hinge losses and penalty."""

    def __init__(self, setup: Setup) -> None:
        package = magvit2()
        assert package is not None
        self.package = package
        self.judge = package.Discriminator(**setup.judge_arguments)
        self.judge.load_state_dict(setup.judge().state_dict(), strict=True)
        self.judge.to(device())

    def autoencoder_loss(self, real: Tensor, fake: Tensor, last_layer: Tensor) -> Tensor:
        """Return the loss of the autoencoder's step."""
        g = self.package.hinge_gen_loss(self.judge(fake.squeeze(2)))
        return F.mse_loss(fake, real) + ADVERSARIAL_WEIGHT * g

    def discriminator_loss(self, real: Tensor, fake: Tensor, *, penalty: bool) -> Tensor:
        """Return the loss of the discriminators' step."""
        real = real.squeeze(2).clone().requires_grad_(penalty)
        d_real, d_fake = self.judge(real), self.judge(fake.squeeze(2))
        loss = self.package.hinge_discr_loss(d_fake, d_real)
        return loss + PENALTY_WEIGHT * self.package.gradient_penalty(real, d_real, center=1.0) if penalty else loss

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return what the discriminators' step trains."""
        return self.judge.parameters()


CONTESTANTS: dict[str, type[Ours] | type[Twin] | type[Magvit2]] = {OURS: Ours, TWIN: Twin, MAGVIT2: Magvit2}


def magvit2() -> ModuleType | None:
    """Return magvit2-pytorch's module, or None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from magvit2_pytorch import magvit2_pytorch
    except ImportError:
        return None
    return magvit2_pytorch


def contestants_of(setup: Setup) -> list[str]:
    """Return who can do the work: magvit2-pytorch has a discriminator of single frames alone."""
    return [OURS, TWIN, *([MAGVIT2] if setup.sees_frames and magvit2() else [])]


def steps_of(name: str, setup: Setup) -> dict[str, Step]:
    """Return the steps of a contestant by title; all share one batch and one set of networks."""
    contestant = CONTESTANTS[name](setup)
    generator = torch.Generator().manual_seed(0)
    real = (torch.rand(setup.clips, generator=generator) * 2 - 1).to(device())
    torch.manual_seed(0)
    decoder = nn.Conv3d(3, 3, 1).to(device())
    with torch.no_grad():
        fake = decoder(real)

    def autoencoder() -> None:
        contestant.autoencoder_loss(real, decoder(real), decoder.weight).backward()
        finish()

    def discriminators(penalty: bool) -> None:
        contestant.discriminator_loss(real, fake, penalty=penalty).backward()
        finish()

    def update(penalty: bool) -> None:
        contestant.update(real, decoder(real), decoder.weight, penalty=penalty)
        finish()

    def finish() -> None:
        let_go([*contestant.parameters(), *decoder.parameters()])

    video = {UPDATE: partial(update, False), UPDATE_PENALTY: partial(update, True)}
    return {
        AUTOENCODER: autoencoder,
        DISCRIMINATORS: partial(discriminators, False),
        DISCRIMINATORS_PENALTY: partial(discriminators, True),
        **({} if setup.sees_frames else video),
    }


def step_of(name: str, setup: Setup, title: str) -> Step:
    """Return one step of a contestant."""
    return steps_of(name, setup)[title]


def let_go(parameters: Iterable[nn.Parameter]) -> None:
    """Drop the gradients."""
    for parameter in parameters:
        parameter.grad = None


def parse_setup(text: str) -> Setup:
    """Read `dim,size,frames,batch`."""
    try:
        dim, size, frames, batch = (int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be dim,size,frames,batch, but got {text!r}") from None
    return Setup(dim, size, frames, batch)


def parse_option(text: str) -> tuple[str, Any]:
    """Read `key=value`, the value as YAML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"must be key=value, but got {text!r}")
    if key in FIXED:
        raise argparse.ArgumentTypeError(f"must be none of {', '.join(sorted(FIXED))}, but got {key}")
    return key, yaml.safe_load(value)
