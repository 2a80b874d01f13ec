"""One update of both networks: the autoencoder's step, then the discriminators' step on the same reconstruction."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from telecine.autoencoders import Posterior
from telecine.base.checks import TrainingError
from telecine.base.randomness import clip_generators
from telecine.discriminators.spectral_norm import shared_spectral_norms
from telecine.losses import mse
from telecine.objective.adaptive_weight import LayerActivations
from telecine.objective.batch import BatchOptions
from telecine.ops.ranks import average_over_ranks
from telecine.runs.history import History
from telecine.settings import OptimizerConfig
from telecine.training.distributed import average_gradients, full_tensor, is_sharded, local_shard
from telecine.training.logging import ADVERSARIAL_SHARE, ReconstructionGradient
from telecine.training.state import TrainState, parameters_of

# The cosine schedule ends at this fraction of the learning rate.
FINAL_LR_SCALE = 0.05


class DivergenceError(TrainingError):
    """A computed value, of a name, is not finite."""

    def __init__(self, message: str, value: str = "") -> None:  # unpickling passes the message, and sets the name
        super().__init__(message)
        self.value = value


@dataclass(frozen=True)
class MicroBatch:
    """Clips that pass through the networks together."""

    video: Tensor  # `(B, 3, T, H, W)` in [-1, 1]; or the latents, if the autoencoder needs no more
    clips: Sequence[int]  # the number of each clip in the run, which seeds all random numbers drawn for it
    posterior: Posterior | None = None  # of the clips' latents, if it is known; otherwise the encoder computes it


def train_step(
    state: TrainState, batches: Sequence[MicroBatch], *, measure_update_ratio: bool = False
) -> dict[str, float]:
    """Update both networks once, with the mean loss of micro-batches of one shape; return the log of all processes.

    The autoencoder runs once for each clip: the discriminators train on the reconstruction of its step.
    `measure_update_ratio` copies the weights after the activations are freed, and needs one more host sync.
    """
    compiler, scale = state.objective.compiler, 1 / len(batches)
    with shared_spectral_norms(), nullcontext() if compiler is None else compiler.update():
        logs = [accumulate_gradients(state, batch, scale, is_last=batch is batches[-1]) for batch in batches]
    means = torch.stack([torch.stack(list(log.values())) for log in logs]).mean(0)
    log = _finite_values(dict(zip(logs[0], means, strict=True)), state.step)
    log |= _optimizer_step(state, state.optimizer, measure_update_ratio=measure_update_ratio)
    state.ema.update()
    if state.trains_discriminators:
        assert state.disc_optimizer is not None
        average_gradients(parameters_of(state.disc_optimizer))
        log |= _optimizer_step(state, state.disc_optimizer, prefix="disc_", measure_update_ratio=measure_update_ratio)
    if state.accelerator.scaler is not None:
        state.accelerator.scaler.update()  # after both optimizers: their gradients have the same scale
    state.step += 1
    return log


def accumulate_gradients(state: TrainState, batch: MicroBatch, scale: float, *, is_last: bool) -> dict[str, Tensor]:
    """Add a micro-batch's gradients, times `scale`; after the last, average the autoencoder's. Return the log."""
    # DDP would wait for the gradients of unused weights, such as those of single frames; `average_gradients` does not.
    has_unused = batch.video.shape[2] == 1 or state.autoencoder.leaves_weights_unused
    no_sync = not is_last or (has_unused and not state.is_sharded)
    with state.no_sync(no_sync):
        losses, log, gradient = _compute_losses(state, batch)
        for loss in losses:
            state.accelerator.backward(scale * loss)
    if is_last and no_sync:
        average_gradients(parameters_of(state.optimizer))
    return {name: value.float() for name, value in (log | gradient.log).items()}


def _compute_losses(
    state: TrainState, batch: MicroBatch
) -> tuple[list[Tensor], dict[str, Tensor], ReconstructionGradient]:
    """Return the autoencoder's loss and, if they train, the discriminators', their log, and that of the gradient."""
    objective, last_layer = state.objective, state.last_layer
    generators = clip_generators(state.seed, batch.clips, batch.video.device)
    if isinstance(last_layer, LayerActivations):
        last_layer.clear()
    with state.accelerator.autocast():
        known = {} if batch.posterior is None else {"posterior": batch.posterior}
        output = state.model(batch.video, generator=generators, **known)
        gradient = ReconstructionGradient(output.video)
        hook, decode = gradient.adversarial_hook, state.autoencoder.decode
        options = BatchOptions(generator=generators, grad_hook=hook, latent=output.latent, decode=decode)
        options["sample_weight"] = output.weight
        target = batch.video if output.target is None else output.target
        if state.trains_discriminators:
            both = objective.update(target, output.video, state.step, output.aux, last_layer, **options)
            losses, log = [both.loss, both.disc_loss], both.log | both.disc_log
        else:
            loss, log = objective(target, output.video, 0, state.step, output.aux, last_layer, **options)
            losses = [loss]
    for name in ("perceptual", "grad_penalty"):
        if objective.schedule.at(state.step)[name] == 0:
            log.pop(f"train/{name}_loss", None)  # its 0 was not computed and would distort the mean
    # A PSNR is computed from the mean squared error, which the reconstruction loss need not be.
    reference = target if state.autoencoder.trains_on_latents else batch.video
    error = mse(reconstruction=output.video.detach(), target=reference)
    return losses, {"data": batch.video.mean(), **log, "train/mse": error}, gradient


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
        raise _divergence_error(f"train/{prefix}grad_norm", norm, state.step)
    before = [weight.detach().clone() for weight in weights] if measure_update_ratio else []
    log = {"grad_norm": norm, "grad_clipped": float(norm > state.grad_clip)} if is_finite else {}
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        log["grad_overflow"] = float(not is_finite)
    optimizer.zero_grad(set_to_none=True)
    if measure_update_ratio:
        log["update_ratio"] = _update_ratio(before, weights)
    return {f"train/{prefix}{name}": value for name, value in log.items()}


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down so that their total 2-norm is at most `max_norm`, and return the norm before scaling.

    PyTorch's `clip_grad_norm_` cannot mix whole and sharded gradients. With sharded ones, every process has to call it.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = _total_norm(gradients)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as PyTorch computes it
    torch._foreach_mul_([local_shard(g) for g in gradients], scale)
    return norm


@torch.no_grad()
def _update_ratio(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the total 2-norm of the change of all weights, divided by that of the weights after it. Host sync."""
    change = _total_norm([new.detach() - old for old, new in zip(before, after, strict=True)])
    return float(change / _total_norm([weight.detach() for weight in after]))


def _total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the total 2-norm of whole and sharded tensors; with sharded ones, every process has to call this."""
    groups = ([x for x in tensors if is_sharded(x)], [x for x in tensors if not is_sharded(x)])
    each = (torch.stack(torch._foreach_norm(group)) for group in groups if group)  # type: ignore[arg-type]
    norms = [full_tensor(torch.linalg.vector_norm(norms)) for norms in each]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def set_learning_rates(state: TrainState, config: OptimizerConfig, num_steps: int) -> float:
    """Set both optimizers' learning rates for the next update, and return that of the autoencoder."""
    scale = _lr_scale(config, state.step, num_steps) * state.lr_factor
    for optimizer, lr in ((state.optimizer, config.lr), (state.disc_optimizer, config.disc_lr)):
        for group in [] if optimizer is None else optimizer.param_groups:
            group["lr"] = lr * scale
    return config.lr * scale


def _lr_scale(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Return the factor of both learning rates, in (0, 1]. A function of the step needs no scheduler state."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
    return FINAL_LR_SCALE + (1 - FINAL_LR_SCALE) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _finite_values(log: Mapping[str, Tensor], step: int) -> dict[str, float]:
    """Return a log's values, averaged over processes, in one host sync. Every process raises if one is not finite."""
    means = average_over_ranks(torch.stack(list(log.values())))
    values = dict(zip(log, means.tolist(), strict=True))
    # A gradient of 0 has no shares.
    values = {name: value for name, value in values.items() if math.isfinite(value) or not _is_gradient_share(name)}
    # Check totals last: the name of the term that is not finite helps more than that of the sum.
    for name in sorted(values, key=lambda name: "total" in name):
        if not math.isfinite(values[name]):
            raise _divergence_error(name, values[name], step)
    values.pop("data", None)
    return values


def _is_gradient_share(name: str) -> bool:
    """Return whether a log key is of `ReconstructionGradient`, whose values are NaN where the gradient is 0."""
    return name == ADVERSARIAL_SHARE or History.frame_of(name) is not None


def _divergence_error(name: str, value: float, step: int) -> TrainingError:
    problem = f"`{name}` must be finite, but got {value} at step {step}. The weights were not updated with it."
    if name == "data":
        remedy = "Check the data. Then run the same command again: it resumes from the last checkpoint."
        return TrainingError(f"{problem} {remedy}")
    remedy = "Lower the learning rates or the weight of that term, or turn mixed precision off."
    return DivergenceError(f"{problem} {remedy}", name)
