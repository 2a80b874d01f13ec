"""The state of a training run: networks, optimizers, moving average, number of updates."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from telecine.autoencoders import VideoAutoencoder
from telecine.objective.layer_activations import LayerActivations
from telecine.training.logging import IntervalMeans
from telecine.training.optim import MovingAverage, parameters_of

if TYPE_CHECKING:
    from telecine.objective import VideoAutoencoderLoss


# A rollback multiplies the learning rates by this.
LR_FACTOR = 0.5


class Rollback(NamedTuple):
    """The run went back once, after a divergence."""

    step: int
    """Where it diverged."""
    to: int
    """The step of the checkpoint that it went back to."""
    value: str
    """The value that was not finite."""

    def describe(self, number: int) -> str:
        """Return what happened, for a warning; `number` counts from 1."""
        lower = f"learning rates times {LR_FACTOR**number:g}"
        return f"`{self.value}` was not finite after step {self.step}; went back to step {self.to}, {lower}"


@runtime_checkable
class ShardedModule(Protocol):
    """What FSDP2 adds to a module that it has sharded."""

    def set_requires_gradient_sync(self, requires_gradient_sync: bool) -> None:
        """Set whether a backward averages the gradients over the processes."""


@dataclass
class TrainState:
    """Everything that training changes. A checkpoint saves it.

    The discriminators have no data-parallel wrapper: their gradients are complete before the backward of the
    autoencoder starts, so there is nothing to overlap with communication, and they are averaged afterwards.
    """

    accelerator: Accelerator
    model: nn.Module
    """The autoencoder as training calls it: sharded, or in the wrapper that averages gradients over processes, if
    there are several."""
    autoencoder: VideoAutoencoder
    """The autoencoder without a wrapper."""
    objective: VideoAutoencoderLoss
    optimizer: Optimizer
    """Updates the autoencoder's trained weights and the parameters that the objective learns with them."""
    disc_optimizer: Optimizer | None
    """Updates the discriminators; None if there is none."""
    ema: MovingAverage
    last_layer: Tensor | LayerActivations | None
    """Where the adaptive weight compares gradients; None if it compares none, or at the reconstruction."""
    grad_clip: float
    """Largest 2-norm of each network's gradient."""
    seed: int
    """Seed of the random numbers that are drawn for each clip."""
    step: int = 0
    """Number of updates done."""
    log_means: IntervalMeans = field(default_factory=IntervalMeans)
    """Logged values since the last record."""
    num_records: int = 0
    """Number of records in `metrics.jsonl`."""
    rollbacks: list[Rollback] = field(default_factory=list)
    """How often the run went back after a divergence."""

    @property
    def lr_factor(self) -> float:
        """The factor of both learning rates after the rollbacks."""
        return LR_FACTOR ** len(self.rollbacks)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that the autoencoder's step trains."""
        return parameters_of(self.optimizer)

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizers, by the name of their file in a checkpoint."""
        optimizers = {"optimizer": self.optimizer, "disc_optimizer": self.disc_optimizer}
        return {name: optimizer for name, optimizer in optimizers.items() if optimizer is not None}

    @property
    def trains_discriminators(self) -> bool:
        """Whether the discriminators train at this step."""
        return self.disc_optimizer is not None and self.objective.weights.at(self.step).discriminators_train

    @property
    def is_sharded(self) -> bool:
        """Whether the autoencoder's weights are sharded over processes."""
        return isinstance(self.model, ShardedModule)

    def no_sync(self, enabled: bool) -> AbstractContextManager[None]:
        """Return a context in which, if `enabled`, a backward does not average the autoencoder's gradients."""
        if isinstance(self.model, ShardedModule):
            self.model.set_requires_gradient_sync(not enabled)
            return nullcontext()
        return self.accelerator.no_sync(self.model) if enabled else nullcontext()

    def sizes(self) -> tuple[int, int, int]:
        """Return the number of the autoencoder's parameters, of those that are trained, and of the discriminators'."""
        weights = list(self.autoencoder.parameters())
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        discriminators = sum(weight.numel() for weight in self.objective.get_trainable_parameters())
        return sum(weight.numel() for weight in weights), trained, discriminators

    def describe_size(self, steps: float = float("inf")) -> str:
        """Return the number of parameters, for the console, and whether so many steps train no discriminator."""
        total, trained, discriminators = self.sizes()
        part = "" if trained == total else f" ({trained / 1e6:.2f} M of them trained)"
        late = self.objective.weights.disc_train_start
        never = f", not trained before step {late} (`objective.gan.disc_train_start`)" if late >= steps else ""
        in_them = f"{discriminators / 1e6:.2f} M in discriminators" + (never if discriminators else "")
        return f"{total / 1e6:.2f} M parameters{part}, {in_them}"
