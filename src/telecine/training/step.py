"""One update of both networks: the autoencoder's step, then the discriminators' step on the same reconstruction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from telecine.autoencoders import Posterior
from telecine.base.errors import TrainingError
from telecine.base.randomness import clip_generators
from telecine.losses import mse
from telecine.objective.batch import BatchOptions
from telecine.objective.layer_activations import LayerActivations
from telecine.objective.running import average_over_ranks
from telecine.settings import OptimizerConfig
from telecine.training.distributed import average_gradients
from telecine.training.logging import ReconstructionGradient, is_gradient_share
from telecine.training.optim import clip_gradients, lr_scale, parameters_of, set_lr, update_ratio
from telecine.training.state import TrainState


class DivergenceError(TrainingError):
    """A value that training computes is not finite.

    Args:
        message: The error, without what helps.
        value: The name of the value.
    """

    def __init__(self, message: str, value: str) -> None:
        super().__init__(message, value)
        self.value = value

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class MicroBatch:
    """Clips that pass through the networks together."""

    video: Tensor
    """`(B, 3, T, H, W)` in [-1, 1]."""
    clips: Sequence[int]
    """The number of each clip in the run, which seeds all random numbers drawn for it."""
    posterior: Posterior | None = None
    """Of the clips' latents, if it is known; otherwise the encoder computes it."""

    @property
    def is_image(self) -> bool:
        """Whether the clips are single frames, which leave weights of some autoencoders unused."""
        return self.video.shape[2] == 1


def train_step(
    state: TrainState, batches: Sequence[MicroBatch], *, measure_update_ratio: bool = False
) -> dict[str, float]:
    """Update both networks once and return the log of both, averaged over processes.

    The autoencoder runs once for each clip: the discriminators train on the reconstruction of its step.

    Args:
        state: The networks and optimizers; its `step` grows by one.
        batches: One or more micro-batches of one shape. Gradients are those of the mean of their losses.
        measure_update_ratio: Whether to log the size of each network's update relative to its weights. This needs a
            copy of the weights after the activations are freed, and one more host sync.

    Raises:
        TrainingError: The data, a term of the loss or a gradient is not finite. The networks whose gradient is not
            finite, or whose loss is not, are not updated.
    """
    scale = 1 / len(batches)
    logs = [accumulate_gradients(state, batch, scale, is_last=batch is batches[-1]) for batch in batches]
    log = finite_values({name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}, state.step)
    log |= optimizer_step(state, state.optimizer, measure_update_ratio=measure_update_ratio)
    state.ema.update()
    if state.trains_discriminators:
        assert state.disc_optimizer is not None
        average_gradients(parameters_of(state.disc_optimizer))
        log |= optimizer_step(state, state.disc_optimizer, prefix="disc_", measure_update_ratio=measure_update_ratio)
    if state.accelerator.scaler is not None:
        state.accelerator.scaler.update()  # after both optimizers: their gradients have the same scale
    state.step += 1
    return log


def set_learning_rates(state: TrainState, settings: OptimizerConfig, num_steps: int) -> float:
    """Set both optimizers' learning rates for the next update, and return that of the autoencoder."""
    scale = lr_scale(settings, state.step, num_steps) * state.lr_factor
    set_lr(state.optimizer, settings.lr * scale)
    if state.disc_optimizer is not None:
        set_lr(state.disc_optimizer, settings.disc_lr * scale)
    return settings.lr * scale


def accumulate_gradients(state: TrainState, batch: MicroBatch, scale: float, *, is_last: bool) -> dict[str, Tensor]:
    """Add the gradients of a micro-batch's losses, times `scale`, to the present gradients, and return the log.

    After the last micro-batch the autoencoder's gradients are averaged over the processes.
    """
    # DDP would wait for the gradients of weights that single frames leave unused; `average_gradients` skips them.
    no_sync = not is_last or (batch.is_image and not state.is_sharded)
    with state.no_sync(no_sync):
        losses, log, gradient = compute_losses(state, batch)
        for loss in losses:
            state.accelerator.backward(scale * loss)
    if is_last and no_sync:
        average_gradients(state.trained)
    return {name: value.float() for name, value in (log | gradient.log).items()}


def compute_losses(
    state: TrainState, batch: MicroBatch
) -> tuple[list[Tensor], dict[str, Tensor], ReconstructionGradient]:
    """Return the losses to minimise at this step, their log, and the gradient's log that a backward will fill.

    The first loss is the autoencoder's, the second, if any, the discriminators'.
    """
    objective, last_layer = state.objective, state.last_layer
    generators = clip_generators(state.seed, batch.clips, batch.video.device)
    if isinstance(last_layer, LayerActivations):
        last_layer.clear()
    with state.accelerator.autocast():
        known = {} if batch.posterior is None else {"posterior": batch.posterior}
        output = state.model(batch.video, generator=generators, **known)
        gradient = ReconstructionGradient(output.video)
        options = BatchOptions(
            generator=generators,
            grad_hook=gradient.adversarial_hook,
            latent=output.latent,
            decode=state.autoencoder.decode,
        )
        if state.trains_discriminators:
            both = objective.update(batch.video, output.video, state.step, output.aux, last_layer, **options)
            losses, log = [both.loss, both.disc_loss], both.log | both.disc_log
        else:
            loss, log = objective(batch.video, output.video, 0, state.step, output.aux, last_layer, **options)
            losses = [loss]
    if objective.weights.at(state.step).penalty == 0:
        log.pop("train/grad_penalty_loss", None)  # its 0 was not computed and would distort the mean
    # A PSNR is computed from the mean squared error, which the reconstruction loss need not be.
    error = mse(reconstruction=output.video.detach(), target=batch.video)
    return losses, {"data": batch.video.mean(), **log, "train/mse": error}, gradient


def optimizer_step(
    state: TrainState, optimizer: Optimizer, *, prefix: str = "", measure_update_ratio: bool = False
) -> dict[str, float]:
    """Clip the gradients, step the optimizer, free the gradients, and return the log.

    The log has `grad_norm` before clipping, `grad_clipped` (0 or 1), with a gradient scaler `grad_overflow` (1 if it
    skipped the step), and, if asked for, `update_ratio`; each name after `train/` and `prefix`. Host sync.
    """
    scaler = state.accelerator.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    weights = parameters_of(optimizer)
    norm = float(clip_gradients(weights, state.grad_clip))
    # A gradient scaler skips the step if half-precision gradients overflow, and lowers its scale: that is no error.
    is_finite = math.isfinite(norm)
    if not is_finite and scaler is None:
        raise divergence_error(f"train/{prefix}grad_norm", norm, state.step)
    before = [weight.detach().clone() for weight in weights] if measure_update_ratio else []
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    log: dict[str, float] = {}
    if is_finite:
        log |= {"grad_norm": norm, "grad_clipped": float(norm > state.grad_clip)}
    if scaler is not None:
        log["grad_overflow"] = float(not is_finite)
    if measure_update_ratio:
        log["update_ratio"] = update_ratio(before, weights)
    return {f"train/{prefix}{name}": value for name, value in log.items()}


def finite_values(log: Mapping[str, Tensor], step: int) -> dict[str, float]:
    """Return a log's values, averaged over processes. All values are read in one host sync.

    Shares of the gradient that are not finite are left out: a gradient of 0 has none.

    Raises:
        TrainingError: Another value is not finite; every process raises it.
    """
    means = average_over_ranks(torch.stack(list(log.values())))
    values = dict(zip(log, means.tolist(), strict=True))
    values = {name: value for name, value in values.items() if math.isfinite(value) or not is_gradient_share(name)}
    # Check totals last: the name of the term that is not finite helps more than that of the sum.
    for name in sorted(values, key=lambda name: "total" in name):
        if not math.isfinite(values[name]):
            raise divergence_error(name, values[name], step)
    values.pop("data", None)
    return values


def divergence_error(name: str, value: float, step: int) -> TrainingError:
    """Return the error for a value that is not finite; no learning rate helps if it is one of the clips."""
    problem = f"`{name}` must be finite, but got {value} at step {step}. The weights were not updated with it."
    if name == "data":
        remedy = "Check the videos. Then run the same command again: it resumes from the last checkpoint."
        return TrainingError(f"{problem} {remedy}")
    remedy = "Lower the learning rates or the weight of that term, or turn mixed precision off."
    return DivergenceError(f"{problem} {remedy}", name)
