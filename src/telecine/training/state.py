"""The state of a training run: networks, optimizers, the moving average (EMA) of the weights, number of updates."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from telecine.base.checks import in_millions
from telecine.models import VideoAutoencoder
from telecine.objective import VideoAutoencoderLoss
from telecine.objective.gradient_probes import GradientProbe
from telecine.training.distributed import average_gradients, local_shard
from telecine.training.logging import IntervalMeans
from telecine.training.prediction import Prediction


class MovingAverage:
    """Exponential moving average (EMA) of a model's trained weights; evaluation and export use it.

    After `n` updates the decay is at most `(1 + n) / (10 + n)`, so that the average soon forgets the initial weights:
    until `decay`, in [0, 1), is reached, it spans the last tenth of all updates. The first update copies the weights.
    PyTorch's `AveragedModel` would copy frozen weights and buffers, too. Each process averages its own shards.

    Args:
        model: The model, whose trained weights are copied.
        decay: The largest decay, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.current = {
            name: weight for name, weight in model.named_parameters() if weight.requires_grad
        }
        self.averages = {name: weight.detach().clone() for name, weight in self.current.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the model's current weights."""
        decay = 0.0
        if self.num_updates > 0:
            decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages = [local_shard(weight) for weight in self.averages.values()]
        current = [local_shard(weight) for weight in self.current.values()]
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
            average_shard = local_shard(average)
            weight_shard = local_shard(self.current[name])
            previous = average_shard.clone()
            average_shard.copy_(weight_shard)
            weight_shard.copy_(previous)


# Each rollback multiplies both learning rates by this.
LR_FACTOR = 0.5


class Rollback(NamedTuple):
    """The run went back once, after a divergence."""

    step: int
    """Where it diverged."""
    to: int
    """The step of the checkpoint that it went back to."""
    value: str
    """The logged value that was not finite."""

    def describe(self, number: int) -> str:
        """Return what happened, for a warning; `number` counts from 1."""
        lower = f"learning rates times {LR_FACTOR**number:g}"
        return f"`{self.value}` was not finite after step {self.step}; went back to step {self.to}, {lower}"


@dataclass
class TrainState:
    """Everything that training changes. A checkpoint saves it.

    The discriminators have no data-parallel wrapper: `train_step` averages their gradients over the processes, after
    the backward of all micro-batches. With `eager_gradients` they are complete before the autoencoder's backward, so a
    wrapper would have no computation to overlap its communication with.
    """

    accelerator: Accelerator
    model: nn.Module
    """The autoencoder as training calls it: sharded, or with several processes in DDP's wrapper."""
    autoencoder: VideoAutoencoder
    """The autoencoder without a wrapper."""
    objective: VideoAutoencoderLoss
    optimizer: Optimizer
    """Of the autoencoder's trained weights, and of the parameters that the objective learns with them."""
    disc_optimizer: Optimizer | None
    """Of the discriminators; None if there is none."""
    ema: MovingAverage
    gradient_probe: GradientProbe | None
    """Where the adaptive weight compares gradients; None if it compares none, or at the reconstruction."""
    grad_clip: float
    """The largest 2-norm of each network's gradient."""
    seed: int
    """Of the random numbers that are drawn for each clip."""
    prediction: Prediction | None = None
    """How frames are hidden from the encoder in an update; None if none are."""
    step: int = 0
    """The number of updates done."""
    log_means: IntervalMeans = field(default_factory=IntervalMeans)
    """The means of the values since the last record."""
    is_sharded: bool = False
    """Whether the autoencoder's weights are sharded over processes (FSDP2)."""
    num_records: int = 0
    """The number of records in `metrics.jsonl`."""
    rollbacks: list[Rollback] = field(default_factory=list)
    """How the run went back after divergences, the oldest first."""

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizers, by the name of their file in a checkpoint."""
        optimizers = {"optimizer": self.optimizer}
        if self.disc_optimizer is not None:
            optimizers["disc_optimizer"] = self.disc_optimizer
        return optimizers

    @property
    def discriminators_train(self) -> bool:
        """Whether the discriminators train in the next update."""
        has_discriminators = self.disc_optimizer is not None
        return has_discriminators and self.objective.schedule.discriminators_train(self.step)

    @contextmanager
    def gradient_sync(self, *, is_last: bool, num_frames: int) -> Iterator[None]:
        """Average the autoencoder's gradients over the processes at the end of the last micro-batch of an update.

        The `with` block has the forward and the backward pass of a micro-batch.

        | gradients of | are averaged |
        |---|---|
        | sharded weights | by FSDP2, in the backward of the last micro-batch |
        | whole weights, if each gets a gradient | by DDP, in the same backward |
        | whole weights, if some may get none | here, after that backward: DDP would wait for those |
        | the vector of a `prediction` | here, as only processes that drop frames have one |
        | what the objective learns: a variance, weights of terms | by the objective, in each backward |
        | discriminators | by `train_step`, after all micro-batches |

        Args:
            is_last: Whether it is the last micro-batch.
            num_frames: Frames of its clips.
        """
        if self.is_sharded:
            cast(Any, self.model).set_requires_gradient_sync(is_last)
            yield
            return
        # Single frames, which a prediction may encode, leave weights that mix frames without a gradient.
        has_single_frames = num_frames == 1 or self.prediction is not None
        has_unused = has_single_frames or self.autoencoder.leaves_weights_unused
        if is_last and not has_unused:
            yield
            return
        with self.accelerator.no_sync(self.model):
            yield
        if is_last:
            weights = [weight for weight in self.autoencoder.parameters() if weight.requires_grad]
            if self.prediction is not None and self.prediction.fill is not None:
                weights.extend(self.prediction.fill.parameters())
            average_gradients(weights)
            if isinstance(self.model, DistributedDataParallel):
                # The next forward sends the buffers of the first process, as after a backward that averages.
                self.model.require_forward_param_sync = True

    def sizes(self) -> tuple[int, int, int]:
        """Return the number of the autoencoder's parameters, of the trained ones, and of the discriminators'."""
        total = 0
        trained = 0
        for weight in self.autoencoder.parameters():
            total += weight.numel()
            if weight.requires_grad:
                trained += weight.numel()
        discriminators = sum(weight.numel() for weight in self.objective.get_trainable_parameters())
        return total, trained, discriminators

    def describe_size(self, steps: int) -> str:
        """Return the number of parameters, and whether a run of `steps` trains no discriminator, for the console."""
        total, trained, discriminators = self.sizes()
        text = f"{in_millions(total)} parameters"
        if trained < total:
            text += f" ({in_millions(trained)} of them trained)"
        text += f", {in_millions(discriminators)} in discriminators"
        first_step = self.objective.schedule.disc_train_start
        if discriminators > 0 and first_step >= steps:
            text += f", not trained before step {first_step} (`objective.gan.disc_train_start`)"
        return text
