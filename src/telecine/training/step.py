"""One update of both networks: the autoencoder's step, then the discriminators' step on the same reconstruction."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from telecine.base.checks import TrainingError, argument_error
from telecine.base.randomness import clip_generators
from telecine.losses import Decode, mse
from telecine.models import LatentAutoencoder, Posterior, Reconstruction, VideoAutoencoder
from telecine.objective.batch import BatchOptions
from telecine.ops.pass_options import shared_spectral_norms
from telecine.ops.ranks import average_over_ranks
from telecine.settings import OptimizerConfig
from telecine.training.distributed import average_gradients, full_tensor, is_sharded, local_shard
from telecine.training.logging import (
    ReconstructionGradient,
    check_names_in_training,
    is_share_of_gradient,
)
from telecine.training.optimizers import parameters_of
from telecine.training.state import LR_FACTOR, TrainState

# The cosine schedule ends at this fraction of the learning rate.
FINAL_LR_SCALE = 0.05
_NOT_UPDATED = "The weights were not updated with it."


class DivergenceError(TrainingError):
    """A computed value is not finite.

    Args:
        message: The text of the error.
        value: The name of the value. Unpickling leaves it out, and sets it afterwards.
    """

    def __init__(self, message: str, value: str = "") -> None:
        super().__init__(message)
        self.value = value


@dataclass(frozen=True)
class MicroBatch:
    """Clips that pass through the networks together."""

    inputs: Tensor
    """Video `(B, C, T, H, W)` in [-1, 1]; or its latents, if the autoencoder trains on latents alone."""
    clips: Sequence[int]
    """The number of each clip in the run, which seeds all random numbers drawn for it."""
    posterior: Posterior | None = None
    """Of the clips' latents, if it is cached; otherwise the encoder computes it."""


def train_step(
    state: TrainState, batches: Sequence[MicroBatch], *, measure_update_ratio: bool = False
) -> dict[str, float]:
    """Update both networks once, with the mean loss of micro-batches of one shape.

    The autoencoder runs once for each clip: the discriminators train on the reconstruction of its step.

    Args:
        state: The networks and optimizers, which are updated in place.
        batches: The micro-batches of this process.
        measure_update_ratio: Whether to log the norm of the update divided by the norm of the weights. It copies the
            weights after the activations are freed, and needs one more host sync.

    Returns:
        The log, averaged over micro-batches and processes.

    Raises:
        TrainingError: If a value of the log or a gradient is not finite. The weights are not updated with it. If it is
            the gradient of the discriminators, the autoencoder has been updated.
    """
    logs = compute_gradients(state, batches)
    try:
        log = finite_values(_mean_over_batches(logs), state.step)
    except DivergenceError:
        _check_data(batches, state.step)  # every process is here: the values are means over them
        raise

    log |= _optimizer_step(state, state.optimizer, measure_update_ratio=measure_update_ratio)
    state.ema.update()
    if state.disc_optimizer is not None and state.discriminators_train:
        average_gradients(parameters_of(state.disc_optimizer))
        log |= _optimizer_step(
            state, state.disc_optimizer, prefix="disc_", measure_update_ratio=measure_update_ratio
        )
    if state.accelerator.scaler is not None:
        state.accelerator.scaler.update()  # after both optimizers: their gradients have the same scale
    state.step += 1
    return log


def compute_gradients(state: TrainState, batches: Sequence[MicroBatch]) -> list[dict[str, Tensor]]:
    """Compute the gradients of both networks for the mean loss of micro-batches.

    Args:
        state: The networks, which have no gradients yet.
        batches: The micro-batches of this process.

    Returns:
        The log of each micro-batch, in float32.

    Raises:
        ValueError: If the autoencoder computes without gradients.
    """
    logs: list[dict[str, Tensor]] = []
    with shared_spectral_norms():
        for batch in batches:
            is_last = batch is batches[-1]
            logs.append(_accumulate_gradients(state, batch, 1 / len(batches), is_last=is_last))
    return logs


def _accumulate_gradients(
    state: TrainState, batch: MicroBatch, scale: float, *, is_last: bool
) -> dict[str, Tensor]:
    """Add `scale` times the gradients of a micro-batch to the networks' gradients, and return its log.

    With `objective.eager_gradients`, most gradients of the losses are taken while the losses are computed: the
    gradients of the discriminators with the double backward of a penalty, and the gradients of LPIPS and of the
    generator's loss for the reconstruction. The backward of a loss then has little to do:

    | loss | what its backward does with eager gradients |
    |---|---|
    | of the autoencoder | adds the gradients for the reconstruction, and runs through the autoencoder |
    | of the discriminators | multiplies the stored gradients by the scale and adds them: no network runs |

    Without them, and in the cases of `choose_gradients` in `objective/gradients.py`, it runs through their graphs.
    """
    if state.gradient_probe is not None:
        state.gradient_probe.clear()
    rng = clip_generators(state.seed, batch.clips, batch.inputs.device)
    with state.gradient_sync(is_last=is_last, num_frames=batch.inputs.shape[2]):
        with state.accelerator.autocast():
            output = _reconstruct(state, batch, rng)
            check_names_in_training(output.aux)
            gradient = ReconstructionGradient()
            losses, log = _compute_losses(state, batch, output, rng, gradient)
        # The PSNR of the log compares with the input video, also where the losses compare with the sample of a teacher.
        # An autoencoder that trains on latents returns a latent in place of the video, and a latent as its target.
        compared_with = batch.inputs
        if state.autoencoder.trains_on_latents and output.target is not None:
            compared_with = output.target
        log["train/mse"] = mse(reconstruction=output.video.detach(), target=compared_with)
        scaled = [scale * loss for loss in losses]
        log |= gradient.measure(output.video, scaled, state.accelerator.backward)
    return {name: value.float() for name, value in log.items()}


def _reconstruct(
    state: TrainState, batch: MicroBatch, rng: list[torch.Generator]
) -> Reconstruction:
    """Return what the autoencoder makes of a micro-batch, with gradients."""
    posterior = batch.posterior
    if state.prediction is not None:
        posterior = state.prediction.encode(state.autoencoder, batch.inputs, rng)
    output: Reconstruction
    if posterior is None:
        output = state.model(batch.inputs, generator=rng)
    else:
        output = state.model(batch.inputs, generator=rng, posterior=posterior)
    if not output.video.requires_grad:
        remedy = "Remove `torch.no_grad` and `detach` from its `forward`."
        contract = "a video that was computed with gradients"
        raise argument_error("the module's output", contract, "a tensor without a graph", remedy)
    return output


def _compute_losses(
    state: TrainState,
    batch: MicroBatch,
    output: Reconstruction,
    rng: list[torch.Generator],
    gradient: ReconstructionGradient,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the losses of the autoencoder and, if they train, of the discriminators, and the log."""
    autoencoder = state.autoencoder
    target = batch.inputs if output.target is None else output.target
    decode: Decode = autoencoder.decode
    if isinstance(autoencoder, LatentAutoencoder) and autoencoder.sampler is not None:
        decode = partial(autoencoder.decode, generator=rng)
    options = BatchOptions(
        generator=rng,
        grad_hook=gradient.keep_adversarial,
        latent=output.latent,
        decode=decode,
        encode=partial(_encoded_mode, autoencoder),
        model=autoencoder,
        first_frame_apart=autoencoder.first_frame_apart,
        sample_weight=output.weight,
        range_is_known=True,
    )
    if state.discriminators_train:
        both = state.objective.both_losses(
            target, output.video, state.step, output.aux, state.gradient_probe, **options
        )
        return [both.loss, both.disc_loss], both.log | both.disc_log
    loss, log = state.objective.autoencoder_loss(
        target, output.video, state.step, output.aux, state.gradient_probe, **options
    )
    return [loss], dict(log)


def _encoded_mode(autoencoder: VideoAutoencoder, video: Tensor) -> Tensor:
    # A model with the frozen encoder of another one encodes without a graph, but gradients pass through the encoder.
    return autoencoder.encoder_model.encode(video).mode()


def _mean_over_batches(logs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each value over logs that all have the same names."""
    names = list(logs[0])
    values = []
    for log in logs:
        values.append(torch.stack([log[name] for name in names]))
    return dict(zip(names, torch.stack(values).mean(0), strict=True))


def _optimizer_step(
    state: TrainState, optimizer: Optimizer, *, prefix: str = "", measure_update_ratio: bool = False
) -> dict[str, float]:
    """Clip the gradients, step the optimizer, free the gradients, and return the log. Host sync."""
    scaler = state.accelerator.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    weights = parameters_of(optimizer)
    norm = float(clip_gradients(weights, state.grad_clip))
    # A gradient scaler skips the step if half-precision gradients overflow, and lowers its scale: that is no error.
    is_finite = math.isfinite(norm)
    if not is_finite and scaler is None:
        outcome = _NOT_UPDATED
        if optimizer is state.disc_optimizer:
            outcome = "Only the autoencoder was updated at this step."
        raise divergence_error(f"train/{prefix}grad_norm", norm, state.step, outcome)
    log: dict[str, float] = {}
    if is_finite:
        log[f"train/{prefix}grad_norm"] = norm
        log[f"train/{prefix}grad_clipped"] = float(norm > state.grad_clip)
    before: list[Tensor] = []
    if measure_update_ratio:
        before = [weight.detach().clone() for weight in weights]
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        log[f"train/{prefix}grad_overflow"] = float(not is_finite)
    optimizer.zero_grad(set_to_none=True)
    if measure_update_ratio:
        after = [weight.detach() for weight in weights]
        update = [new - old for old, new in zip(before, after, strict=True)]
        log[f"train/{prefix}update_ratio"] = float(_total_norm(update) / _total_norm(after))
    return log


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down so that their total 2-norm is at most `max_norm`, and return the norm before scaling.

    PyTorch's `clip_grad_norm_` cannot mix whole and sharded gradients. With sharded ones, every process has to call it.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = _total_norm(gradients)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as PyTorch computes it
    torch._foreach_mul_([local_shard(gradient) for gradient in gradients], scale)
    return norm


def _total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the total 2-norm of whole and sharded tensors; with sharded ones, every process has to call this."""
    sharded = [tensor for tensor in tensors if is_sharded(tensor)]
    whole = [tensor for tensor in tensors if not is_sharded(tensor)]
    totals: list[Tensor] = []
    for group in (sharded, whole):
        if group:
            norms = torch.stack(torch._foreach_norm(group))  # type: ignore[arg-type]
            totals.append(full_tensor(torch.linalg.vector_norm(norms)))
    if len(totals) == 1:
        return totals[0]
    return torch.linalg.vector_norm(torch.stack(totals))


def set_learning_rates(state: TrainState, config: OptimizerConfig, num_steps: int) -> float:
    """Set the learning rates of both optimizers for the next update.

    They are a function of the step, which needs no scheduler state.

    Args:
        state: Its step, its optimizers, and how often it went back after a divergence.
        config: The learning rates, and their warm-up and schedule.
        num_steps: The number of updates of the run, at which a cosine schedule ends.

    Returns:
        The learning rate of the autoencoder.
    """
    scale = LR_FACTOR ** len(state.rollbacks)
    if state.step < config.warmup_steps:
        scale *= (state.step + 1) / config.warmup_steps
    elif config.schedule == "cosine":
        progress = (state.step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        scale *= FINAL_LR_SCALE + (1 - FINAL_LR_SCALE) * cosine
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr * scale
    if state.disc_optimizer is not None:
        for group in state.disc_optimizer.param_groups:
            group["lr"] = config.disc_lr * scale
    return config.lr * scale


def finite_values(log: Mapping[str, Tensor], step: int) -> dict[str, float]:
    """Return a log's values, averaged over processes, in one host sync. Shares of a gradient of 0 are left out.

    Raises:
        DivergenceError: In every process, if a value is not finite.
    """
    means = average_over_ranks(torch.stack(list(log.values())))
    values = dict(zip(log, means.tolist(), strict=True))
    # Check totals last: the name of the term that is not finite helps more than the name of the sum.
    for name in sorted(values, key=lambda name: "total" in name):
        if not math.isfinite(values[name]):
            if not is_share_of_gradient(name):
                raise divergence_error(name, values[name], step)
            del values[name]  # a gradient of 0 has no shares
    return values


def divergence_error(
    name: str, value: float, step: int, outcome: str = _NOT_UPDATED
) -> DivergenceError:
    """Return the error of a value that is not finite.

    Args:
        name: The logged value.
        value: Infinite or NaN.
        step: The number of updates before it.
        outcome: Which weights were updated.
    """
    problem = f"`{name}` must be finite, but got {value} at step {step}. {outcome}"
    remedy = "Lower the learning rates or the weight of that term, or turn mixed precision off."
    return DivergenceError(f"{problem} {remedy}", name)


def _check_data(batches: Sequence[MicroBatch], step: int) -> None:
    """Raise a `TrainingError`, for which a run does not go back, if clips of any process are not finite. Host sync."""
    means = torch.stack([batch.inputs.mean() for batch in batches])
    mean = float(average_over_ranks(means.mean()))
    if not math.isfinite(mean):
        problem = f"`data` must be finite, but got {mean} at step {step}. {_NOT_UPDATED}"
        remedy = (
            "Check the data. Then run the same command again: it resumes from the last checkpoint."
        )
        raise TrainingError(f"{problem} {remedy}")
