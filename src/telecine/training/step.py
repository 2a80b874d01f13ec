"""One update: the autoencoder's step, then the discriminators' step on the same reconstruction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from telecine.autoencoders import CausalVAE
from telecine.losses import mse
from telecine.objective import VideoAutoencoderLoss


class TrainingError(RuntimeError):
    """Training cannot go on; what was saved before is whole."""


@dataclass
class Players:
    """The two networks that train against each other, with their optimizers, as Accelerate prepared them.

    `optimizer` has the autoencoder's weights and what the objective itself learns beside them.
    """

    accelerator: Accelerator
    model: nn.Module
    objective: nn.Module
    optimizer: Optimizer
    disc_optimizer: Optimizer | None
    ema: AveragedModel
    grad_clip: float

    @property
    def autoencoder(self) -> CausalVAE:
        """The autoencoder without the wrapper that synchronises it."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def averaged(self) -> CausalVAE:
        """The autoencoder with its averaged weights."""
        assert isinstance(self.ema.module, CausalVAE)
        return self.ema.module

    @property
    def loss(self) -> VideoAutoencoderLoss:
        """The objective without the wrapper that synchronises its discriminators."""
        return self.accelerator.unwrap_model(self.objective)


def update(players: Players, video: Tensor, step: int) -> dict[str, float]:
    """Train both networks on one batch and return the log of both steps.

    The autoencoder runs once: the discriminators see the reconstruction that it was trained on.

    Args:
        players: The networks and optimizers.
        video: Real clips `(B, 3, T, H, W)` in [-1, 1].
        step: Number of updates before this one.

    Raises:
        TrainingError: If the data, a term of the loss or a gradient is not finite; no weight has changed then in
            the step that it was found in.
    """
    model, loss = players.autoencoder, players.loss
    trains_both = players.disc_optimizer is not None and step >= loss.disc_train_start
    with players.accelerator.autocast():
        output = players.model(video)
        if trains_both:
            both = loss.update(video, output.video, step, output.aux, model.last_layer)
            total, log = both.loss, both.log
        else:
            total, log = loss(video, output.video, 0, step, output.aux, model.last_layer)
    # The reconstruction loss need not be a mean squared error, which is what a PSNR is made of.
    error = mse(reconstruction=output.video.detach(), target=video)
    values = finite_values({"data": video.mean(), **log, "train/mse": error}, step)
    learned = [*model.parameters(), *loss.get_trainable_autoencoder_parameters()]
    values |= descend(players, total, players.optimizer, learned, "grad_norm", step)
    players.ema.update_parameters(model)

    if not trains_both:
        return values
    assert players.disc_optimizer is not None
    log = dict(both.disc_log)
    if not loss.penalises(step):
        del log["train/grad_penalty_loss"]  # it was not computed: its 0 would only spoil the mean
    values |= finite_values(log, step)
    weights = loss.get_trainable_parameters()
    return values | descend(players, both.disc_loss, players.disc_optimizer, weights, "disc_grad_norm", step)


def descend(
    players: Players, total: Tensor, optimizer: Optimizer, parameters: Iterable[nn.Parameter], name: str, step: int
) -> dict[str, float]:
    """Backward, clip, step the optimizer, and let go of the gradients; return their norm before clipping by name."""
    players.accelerator.backward(total)
    norm = float(players.accelerator.clip_grad_norm_(parameters, players.grad_clip))  # waits for an accelerator
    # A gradient scaler skips steps whose half-precision gradients overflow, and lowers its scale: that is no failure.
    if not math.isfinite(norm) and players.accelerator.scaler is None:
        raise diverged(f"`train/{name}`", norm, step)
    optimizer.step()
    # Accelerate unscales the gradients of all optimizers together: what is left here would count again there.
    optimizer.zero_grad(set_to_none=True)
    return {f"train/{name}": norm} if math.isfinite(norm) else {}


def finite_values(log: Mapping[str, Tensor], step: int) -> dict[str, float]:
    """Read a log's values at once, which waits for an accelerator, and raise if one is not finite."""
    values = dict(zip(log, torch.stack([value.float() for value in log.values()]).tolist(), strict=True))
    # The total is the last to blame: the term that spoiled it is what helps.
    for name in sorted(values, key=lambda name: "total" in name):
        if not math.isfinite(values[name]):
            raise diverged(f"`{name}`", values[name], step)
    values.pop("data", None)
    return values


def diverged(what: str, value: float, step: int) -> TrainingError:
    """Build the error of a value that is not finite."""
    return TrainingError(
        f"{what} must be finite, but got {value} at step {step}; the weights were not changed by it. Look at the data "
        "if it is the data; otherwise lower the learning rate or the weight of that term, or turn mixed precision off, "
        "and run the same command again: it goes on from the last checkpoint."
    )
