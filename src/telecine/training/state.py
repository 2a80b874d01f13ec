"""The state of a training run: networks, optimizers, the moving average (EMA) of the weights, number of updates."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from telecine.models import VideoAutoencoder
from telecine.objective import VideoAutoencoderLoss
from telecine.objective.adaptive_weight import LayerActivations
from telecine.training.distributed import local_shard
from telecine.training.logging import IntervalMeans


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class MovingAverage:
    """Exponential moving average (EMA) of a model's trained weights; evaluation and export use it.

    After `n` updates the decay is at most `(1 + n) / (10 + n)`, so that the average soon forgets the initial weights:
    until `decay`, in [0, 1), is reached, it spans the last tenth of all updates. The first update copies the weights.
    PyTorch's `AveragedModel` would copy frozen weights and buffers, too. Each process averages its own shards.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
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
        """Swap the averages into the model inside the `with` block."""
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


# Each rollback multiplies both learning rates by this.
LR_FACTOR = 0.5


class Rollback(NamedTuple):
    """The run went back once, after a divergence."""

    step: int  # where it diverged
    to: int  # the step of the checkpoint that it went back to
    value: str  # that was not finite

    def describe(self, number: int) -> str:
        """Return what happened, for a warning; `number` counts from 1."""
        lower = f"learning rates times {LR_FACTOR**number:g}"
        return f"`{self.value}` was not finite after step {self.step}; went back to step {self.to}, {lower}"


@dataclass
class TrainState:
    """Everything that training changes. A checkpoint saves it.

    The discriminators have no data-parallel wrapper: their gradients are complete before the autoencoder's backward
    starts, so no communication could overlap with it.
    """

    accelerator: Accelerator
    model: nn.Module  # the autoencoder as training calls it: sharded, or with several processes in DDP's wrapper
    autoencoder: VideoAutoencoder  # without a wrapper
    objective: VideoAutoencoderLoss
    optimizer: Optimizer  # of the autoencoder's trained weights and the parameters that the objective learns with them
    disc_optimizer: Optimizer | None  # of the discriminators; None if there is none
    ema: MovingAverage
    # Where the adaptive weight compares gradients; None if it compares none, or at the reconstruction.
    last_layer: Tensor | LayerActivations | None
    grad_clip: float  # the largest 2-norm of each network's gradient
    seed: int  # of the random numbers that are drawn for each clip
    step: int = 0  # the number of updates done
    log_means: IntervalMeans = field(default_factory=IntervalMeans)  # of the values since the last record
    num_records: int = 0  # in `metrics.jsonl`
    rollbacks: list[Rollback] = field(default_factory=list)

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizers, by the name of their file in a checkpoint."""
        discriminators = {} if self.disc_optimizer is None else {"disc_optimizer": self.disc_optimizer}
        return {"optimizer": self.optimizer, **discriminators}

    @property
    def trains_discriminators(self) -> bool:
        """Whether the discriminators train at this step."""
        return self.disc_optimizer is not None and self.objective.schedule.at(self.step).discriminators_train

    @property
    def is_sharded(self) -> bool:
        """Whether the autoencoder's weights are sharded over processes."""
        return hasattr(self.model, "set_requires_gradient_sync")  # which FSDP2 adds to a module

    def no_sync(self, enabled: bool) -> AbstractContextManager[None]:
        """Return a context in which, if `enabled`, a backward does not average the autoencoder's gradients."""
        if self.is_sharded:
            cast(Any, self.model).set_requires_gradient_sync(not enabled)
            return nullcontext()
        return self.accelerator.no_sync(self.model) if enabled else nullcontext()

    def sizes(self) -> tuple[int, int, int]:
        """Return the number of the autoencoder's parameters, of the trained ones, and of the discriminators'."""
        weights = list(self.autoencoder.parameters())
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        discriminators = sum(weight.numel() for weight in self.objective.get_trainable_parameters())
        return sum(weight.numel() for weight in weights), trained, discriminators

    def describe_size(self, steps: int) -> str:
        """Return the number of parameters, and whether a run of `steps` trains no discriminator, for the console."""
        total, trained, discriminators = self.sizes()
        part = "" if trained == total else f" ({trained / 1e6:.2f} M of them trained)"
        late = self.objective.schedule.disc_train_start
        never = f", not trained before step {late} (`objective.gan.disc_train_start`)" if late >= steps else ""
        in_them = f"{discriminators / 1e6:.2f} M in discriminators{never if discriminators else ''}"
        return f"{total / 1e6:.2f} M parameters{part}, {in_them}"
