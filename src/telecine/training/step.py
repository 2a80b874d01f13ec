"""One update: the autoencoder's step, then the discriminators' step on the same reconstruction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from telecine.losses import mse
from telecine.objective import VideoAutoencoderLoss
from telecine.objective.balance import average_over_ranks
from telecine.objective.layer_uses import LayerUses
from telecine.randomness import clip_generators
from telecine.training.clipping import clip_gradients, total_norm
from telecine.training.ema import MovingAverage
from telecine.training.gradients import ReconstructionGradient, is_about_gradients
from telecine.training.ranks import average_gradients


class TrainingError(RuntimeError):
    """Training cannot go on; what was saved before is whole."""


@dataclass
class Players:
    """The two networks that train against each other, with their optimizers.

    `model` is the autoencoder as it is called, in the wrapper that averages its gradients over processes, if any. The
    discriminators are in none: all of their gradients are known before a backward begins, so that there is nothing to
    overlap with sending them, and each process' can be averaged afterwards, whatever the step computed.
    """

    accelerator: Accelerator
    model: nn.Module
    autoencoder: nn.Module
    """The autoencoder itself, for all but training."""
    objective: VideoAutoencoderLoss
    optimizer: Optimizer
    """Of the autoencoder's trained weights and of what the objective itself learns beside them."""
    disc_optimizer: Optimizer | None
    ema: MovingAverage
    last_layer: Tensor | LayerUses | None
    """Where the adaptive weight compares gradients."""
    grad_clip: float
    seed: int
    """Of all that is drawn at random for a clip."""

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the autoencoder's step trains."""
        return _parameters(self.optimizer)

    @property
    def is_sharded(self) -> bool:
        """Whether the autoencoder's weights are spread over processes."""
        return hasattr(self.model, "set_requires_gradient_sync")

    def accumulating(self, on: bool) -> AbstractContextManager[None]:
        """Return a context in which a backward through the autoencoder leaves gradients of this process alone."""
        if self.is_sharded:
            cast(Any, self.model).set_requires_gradient_sync(not on)
            return nullcontext()
        return self.accelerator.no_sync(self.model) if on else nullcontext()


@dataclass(frozen=True)
class MicroBatch:
    """Clips that go through the networks at once."""

    video: Tensor
    """`(B, 3, T, H, W)` in [-1, 1]."""
    clips: Sequence[int]
    """The clips' numbers in the run, from which all that is drawn for them follows."""

    @property
    def is_image(self) -> bool:
        """Whether the clips are single frames, which leave weights of some autoencoders unused."""
        return self.video.shape[2] == 1


def update(
    players: Players, batches: Sequence[MicroBatch], step: int, *, measures_update: bool = False
) -> dict[str, float]:
    """Train both networks on the clips of one step and return the log of both, averaged over processes.

    The autoencoder runs once over each clip: the discriminators see the reconstruction that it was trained on.

    Args:
        players: The networks and optimizers.
        batches: One or more micro-batches, all of one shape; gradients are those of the mean of their losses.
        step: Number of updates before this one.
        measures_update: Log how long each network's update is relative to its weights, too; it takes a copy of them
            meanwhile, when the activations are gone, and another wait for an accelerator.

    Raises:
        TrainingError: If the data, a term of the loss or a gradient is not finite; no weight has changed then in
            the step that it was found in.
    """
    share = 1 / len(batches)
    logs = [accumulate(players, batch, step, share, is_last=batch is batches[-1]) for batch in batches]
    values = finite_values({name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}, step)
    values |= descend(players, players.optimizer, step, measures_update=measures_update)
    players.ema.update()
    if trains_discriminators(players, step):
        assert players.disc_optimizer is not None
        average_gradients(_parameters(players.disc_optimizer))
        values |= descend(players, players.disc_optimizer, step, prefix="disc_", measures_update=measures_update)
    if players.accelerator.scaler is not None:
        players.accelerator.scaler.update()  # after both optimizers: their gradients have one scale
    return values


def trains_discriminators(players: Players, step: int) -> bool:
    """Say whether the discriminators train at a step."""
    return players.disc_optimizer is not None and step >= players.objective.disc_train_start


def accumulate(players: Players, batch: MicroBatch, step: int, share: float, *, is_last: bool) -> dict[str, Tensor]:
    """Add the gradients of `share` times a micro-batch's losses to those that are there, and return the log."""
    # Single frames may leave weights without a gradient, for which the wrapper would wait; see `average_gradients`.
    alone = not is_last or (batch.is_image and not players.is_sharded)
    with players.accumulating(alone):
        losses, log, gradient = forward(players, batch, step)
        for loss in losses:
            players.accelerator.backward(share * loss)
    if is_last and alone:
        average_gradients(players.trained)
    return {name: value.float() for name, value in (log | gradient.log).items()}


def forward(
    players: Players, batch: MicroBatch, step: int
) -> tuple[list[Tensor], dict[str, Tensor], ReconstructionGradient]:
    """Return the losses that train at a step, the autoencoder's first, their log, and what a backward will show."""
    objective, last_layer = players.objective, players.last_layer
    objective.generator = generators = clip_generators(players.seed, batch.clips, batch.video.device)
    if isinstance(last_layer, LayerUses):
        last_layer.forget()
    with players.accelerator.autocast():
        output = players.model(batch.video, generator=generators)
        gradient = ReconstructionGradient(output.video)
        objective.watch = gradient.see_adversarial
        arguments = (batch.video, output.video)
        if trains_discriminators(players, step):
            both = objective.update(*arguments, step, output.aux, last_layer)
            losses, log = [both.loss, both.disc_loss], both.log | both.disc_log
        else:
            loss, log = objective(*arguments, 0, step, output.aux, last_layer)
            losses = [loss]
    if not objective.penalises(step):
        log.pop("train/grad_penalty_loss", None)  # it was not computed: its 0 would only spoil the mean
    # The reconstruction loss need not be a mean squared error, which is what a PSNR is made of.
    error = mse(reconstruction=output.video.detach(), target=batch.video)
    objective.watch = None
    return losses, {"data": batch.video.mean(), **log, "train/mse": error}, gradient


def descend(
    players: Players, optimizer: Optimizer, step: int, *, prefix: str = "", measures_update: bool = False
) -> dict[str, float]:
    """Clip the gradients, step the optimizer, and let go of them; return what there is to log of it.

    That is the norm before clipping, whether it was clipped (0 or 1; a logged mean is the share of updates), with a
    gradient scaler whether the step was skipped, and, if asked for, the norm of the update over that of the weights.
    """
    scaler = players.accelerator.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    weights = _parameters(optimizer)
    norm = float(clip_gradients(weights, players.grad_clip))  # waits for an accelerator
    # A gradient scaler skips steps whose half-precision gradients overflow, and lowers its scale: that is no failure.
    is_finite = math.isfinite(norm)
    if not is_finite and scaler is None:
        raise diverged(f"`train/{prefix}grad_norm`", norm, step)
    before = [weight.detach().clone() for weight in weights] if measures_update else []
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    log: dict[str, float] = {}
    if is_finite:
        log |= {"grad_norm": norm, "grad_clipped": float(norm > players.grad_clip)}
    if scaler is not None:
        log["grad_overflow"] = float(not is_finite)
    if measures_update:
        log["update_ratio"] = update_ratio(before, weights)
    return {f"train/{prefix}{name}": value for name, value in log.items()}


@torch.no_grad()
def update_ratio(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the 2-norm of the change of all weights together over that of the weights; waits for an accelerator."""
    change = total_norm([new.detach() - old for old, new in zip(before, after, strict=True)])
    return float(change / total_norm([weight.detach() for weight in after]))


def finite_values(log: Mapping[str, Tensor], step: int) -> dict[str, float]:
    """Return a log's values, averaged over processes, and raise on each of them if one is not finite.

    All are read at once, which waits for an accelerator.
    """
    means = average_over_ranks(torch.stack(list(log.values())))
    values = dict(zip(log, means.tolist(), strict=True))
    unknown = [name for name, value in values.items() if is_about_gradients(name) and not math.isfinite(value)]
    values = {name: value for name, value in values.items() if name not in unknown}
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


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
