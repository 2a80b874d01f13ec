"""One update of both networks: the autoencoder's step, then the discriminators' step on the same reconstruction."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from telecine.base.checks import TrainingError
from telecine.base.randomness import clip_generators
from telecine.discriminators.spectral_norm import shared_spectral_norms
from telecine.losses import mse
from telecine.models import Posterior
from telecine.objective.adaptive_weight import LayerActivations
from telecine.objective.batch import BatchOptions
from telecine.ops.ranks import average_over_ranks
from telecine.runs.history import History
from telecine.settings import OptimizerConfig
from telecine.training.distributed import average_gradients, full_tensor, is_sharded, local_shard
from telecine.training.logging import ADVERSARIAL_SHARE, ReconstructionGradient
from telecine.training.state import LR_FACTOR, TrainState, parameters_of

# The cosine schedule ends at this fraction of the learning rate.
_FINAL_LR_SCALE = 0.05


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
    scale = 1 / len(batches)
    with shared_spectral_norms():
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
    objective, autoencoder, last_layer = state.objective, state.autoencoder, state.last_layer
    generators = clip_generators(state.seed, batch.clips, batch.video.device)
    if isinstance(last_layer, LayerActivations):
        last_layer.clear()
    # DDP would wait for the gradients of unused weights, such as those of single frames; `average_gradients` does not.
    has_unused = batch.video.shape[2] == 1 or autoencoder.leaves_weights_unused
    no_sync = not is_last or (has_unused and not state.is_sharded)
    with state.no_sync(no_sync):
        with state.accelerator.autocast():
            known = {} if batch.posterior is None else {"posterior": batch.posterior}
            output = state.model(batch.video, generator=generators, **known)
            gradient = ReconstructionGradient(output.video)
            options = BatchOptions(generator=generators, grad_hook=gradient.adversarial_hook, latent=output.latent)
            options |= {"decode": autoencoder.decode, "sample_weight": output.weight}
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
        reference = target if autoencoder.trains_on_latents else batch.video
        error = mse(reconstruction=output.video.detach(), target=reference)
        log = {"data": batch.video.mean(), **log, "train/mse": error}
        for loss in losses:
            state.accelerator.backward(scale * loss)
    if is_last and no_sync:
        average_gradients(parameters_of(state.optimizer))
        state.model.require_forward_param_sync = True  # type: ignore[assignment] # DDP sends buffers before a pass
    return {name: value.float() for name, value in (log | gradient.log).items()}


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
        after = [weight.detach() for weight in weights]
        change = _total_norm([new - old for old, new in zip(before, after, strict=True)])
        log["update_ratio"] = float(change / _total_norm(after))
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


def _total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the total 2-norm of whole and sharded tensors; with sharded ones, every process has to call this."""
    groups = ([x for x in tensors if is_sharded(x)], [x for x in tensors if not is_sharded(x)])
    each = (torch.stack(torch._foreach_norm(group)) for group in groups if group)  # type: ignore[arg-type]
    norms = [full_tensor(torch.linalg.vector_norm(norms)) for norms in each]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def set_learning_rates(state: TrainState, config: OptimizerConfig, num_steps: int) -> float:
    """Set both optimizers' learning rates for the next update, and return that of the autoencoder.

    They are a function of the step, which needs no scheduler state.
    """
    scale = LR_FACTOR ** len(state.rollbacks)
    if state.step < config.warmup_steps:
        scale *= (state.step + 1) / config.warmup_steps
    elif config.schedule == "cosine":
        progress = (state.step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
        scale *= _FINAL_LR_SCALE + (1 - _FINAL_LR_SCALE) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    for optimizer, lr in ((state.optimizer, config.lr), (state.disc_optimizer, config.disc_lr)):
        for group in [] if optimizer is None else optimizer.param_groups:
            group["lr"] = lr * scale
    return config.lr * scale


def _finite_values(log: Mapping[str, Tensor], step: int) -> dict[str, float]:
    """Return a log's values, averaged over processes, in one host sync. Every process raises if one is not finite."""
    means = average_over_ranks(torch.stack(list(log.values())))
    values = dict(zip(log, means.tolist(), strict=True))
    # Check totals last: the name of the term that is not finite helps more than that of the sum.
    for name in sorted(values, key=lambda name: "total" in name):
        if not math.isfinite(values[name]):
            if name != ADVERSARIAL_SHARE and History.frame_of(name) is None:
                raise _divergence_error(name, values[name], step)
            del values[name]  # a gradient of 0 has no shares
    values.pop("data", None)
    return values


def _divergence_error(name: str, value: float, step: int) -> TrainingError:
    problem = f"`{name}` must be finite, but got {value} at step {step}. The weights were not updated with it."
    if name == "data":
        remedy = "Check the data. Then run the same command again: it resumes from the last checkpoint."
        return TrainingError(f"{problem} {remedy}")
    remedy = "Lower the learning rates or the weight of that term, or turn mixed precision off."
    return DivergenceError(f"{problem} {remedy}", name)
