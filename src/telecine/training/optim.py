"""Learning rate schedule, gradient clipping, and the moving average (EMA) of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from telecine.settings import OptimizerConfig
from telecine.training.distributed import full_tensor, is_sharded, local_shard

# The cosine schedule ends at this fraction of the learning rate.
FINAL_LR_SCALE = 0.05
# Added to the norm, as in PyTorch's `clip_grad_norm_`.
EPSILON = 1e-6


def lr_scale(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Return the factor of both learning rates at `step` of `num_steps`, in (0, 1].

    It depends on the step alone, so a resumed run needs no scheduler state.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
    return FINAL_LR_SCALE + (1 - FINAL_LR_SCALE) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def describe_warmup(config: OptimizerConfig, num_steps: int) -> list[str]:
    """Return a line for the console if a run ends inside its warm-up, whose small rates change the weights little."""
    if num_steps >= config.warmup_steps:
        return []
    reached = f"{num_steps / config.warmup_steps:.2g} of `optimizer.lr` is reached"
    ends = f"the run ends within its warm-up: after {num_steps} of {config.warmup_steps} steps, {reached}"
    return [f"{ends}; use a smaller `--optimizer.warmup_steps`"]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down so that their total 2-norm is at most `max_norm`, and return the norm before scaling.

    Smaller gradients are not changed. PyTorch's `clip_grad_norm_` does the same, but cannot mix whole and sharded
    gradients. If some gradients are sharded, every process has to call this.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = total_norm(gradients)
    torch._foreach_mul_([local_shard(g) for g in gradients], (max_norm / (norm + EPSILON)).clamp(max=1.0))
    return norm


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the total 2-norm of whole and sharded tensors. If some are sharded, every process has to call this."""
    groups = ([x for x in tensors if is_sharded(x)], [x for x in tensors if not is_sharded(x)])
    norms = [full_tensor(nn.utils.get_total_norm(group)) for group in groups if group]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


@torch.no_grad()
def update_ratio(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the total 2-norm of the change of all weights, divided by that of the weights after it. Host sync."""
    change = total_norm([new.detach() - old for old, new in zip(before, after, strict=True)])
    return float(change / total_norm([weight.detach() for weight in after]))


class MovingAverage:
    """Exponential moving average (EMA) of a model's trained weights; evaluation and export use it.

    After `n` updates the decay is at most `(1 + n) / (10 + n)`, so that the average soon forgets the initial weights:
    until `decay` is reached, it spans the last tenth of all updates. The first update copies the weights; with `decay`
    0 every update does. `applied()` swaps the averages into the model: PyTorch's `AveragedModel` would copy all of it,
    frozen weights and buffers included. If the weights are sharded, each process averages its shard.

    Args:
        model: The model whose parameters with `requires_grad` are averaged.
        decay: At least 0 and below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.current = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.averages = {name: weight.detach().clone() for name, weight in self.current.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the model's current weights."""
        num = self.num_updates
        decay = min(self.decay, (1 + num) / (10 + num)) if num else 0.0
        averages, current = ([local_shard(x) for x in of.values()] for of in (self.averages, self.current))
        torch._foreach_lerp_(averages, current, 1 - decay)
        self.num_updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Swap the averages into the model inside the `with` block, and swap them back afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self.averages.items():
            averaged, weight = local_shard(average), local_shard(self.current[name])
            previous = averaged.clone()
            averaged.copy_(weight)
            weight.copy_(previous)
