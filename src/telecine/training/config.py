"""The settings of a training run, as plain values; their texts are the command line's help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from telecine.autoencoders import CausalVAEConfig
from telecine.data import ClipConfig
from telecine.devices import DeviceName
from telecine.shapes import argument_error

# AlexNet's LPIPS, which validation measures, has no features of anything smaller.
MIN_SIZE = 31


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Which discriminators judge the reconstructions, and their size."""

    video: Literal["first_frame", "plain", "none"] = "first_frame"
    """The discriminator of whole clips: causal with the first frame apart, plain 3D convolutions, or none."""
    image: bool = False
    """Add the 2D discriminator, which sees one random frame of each clip."""
    num_scales: int = 0
    """Add this many discriminators of the clip at 1/2, 1/4, ... of its height and width."""
    dim: int = 32
    """A quarter of the first block's channels."""
    max_dim: int = 512
    """Most channels of any block."""
    antialiased_downsample: bool = True
    """Blur before each stride."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """The terms of the objective and their weights; steps count updates of the autoencoder."""

    disc_start: int = 20_000
    """Step from which the adversarial term counts in the autoencoder's loss."""
    disc_train_start: int = 15_000
    """Step from which the discriminators train, so that they are ready at `disc_start`."""
    perceptual_weight: float = 1.0
    """Weight of LPIPS (VGG16)."""
    perceptual_frames: int | Literal["all"] = 1
    """How many random frames of each clip LPIPS looks at, or "all"."""
    adversarial_loss_weight: float = 0.5
    """Weight of the adversarial terms, times their adaptive weight."""
    multiscale_adversarial_loss_weight: float = 0.0
    """Weight of the adversarial terms of the down-scaled clips; needs `discriminator.num_scales`."""
    grad_penalty_loss_weight: float = 10.0
    """Weight of the gradient penalty on real clips."""
    grad_penalty_every: int = 16
    """Compute the penalty on every n-th step only, with n times its weight."""
    quantizer_aux_loss_weight: float = 1e-6
    """Weight of the autoencoder's auxiliary loss: for a KL autoencoder, of the divergence per latent element."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW for the autoencoder and for the discriminators, and the moving average of the weights."""

    lr: float = 1e-4
    """Learning rate of the autoencoder."""
    disc_lr: float = 1e-4
    """Learning rate of the discriminators."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Decay of AdamW's two moments for the autoencoder."""
    disc_betas: tuple[float, float] = (0.5, 0.9)
    """Decay of AdamW's two moments for the discriminators."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    warmup_steps: int = 500
    """Steps over which both learning rates rise from zero."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up: a constant rate, or half a cosine down to a twentieth at the last step."""
    grad_clip: float = 1.0
    """Largest 2-norm of each network's gradient; longer ones are scaled down to it."""
    ema_decay: float = 0.999
    """Decay of the moving average of the autoencoder's weights, which is what gets evaluated."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run depends on.

    Raises:
        ValueError: A number is out of its range.
    """

    data: str | None = None
    """A folder of videos (searched with its subfolders) or one video. Without it, three short sample clips."""
    val_data: str | None = None
    """Videos to validate on, as `data`. Without it, a part of `data` is held out."""
    run: str = "runs/train"
    """Folder of the run. If it holds a checkpoint, the run goes on from there."""
    steps: int = 100_000
    """Updates of the autoencoder in all."""
    batch_size: int = 4
    """Clips in an update."""
    seed: int = 0
    """Seed of the initial weights, of the clips and of all sampling."""
    device: DeviceName = "auto"
    """Where to compute; "auto" takes an accelerator if there is one, and the run says which."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the networks' forward passes; losses are always float32."""
    log_every: int = 10
    """Steps between two lines of `metrics.jsonl` and of TensorBoard."""
    val_every: int = 1_000
    """Steps between two validations."""
    val_clips: int = 16
    """Held-out clips to validate on."""
    save_every: int = 1_000
    """Steps between two checkpoints."""
    keep: int = 2
    """How many checkpoints to keep, the newest ones."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where scalars and previews go besides the run's folder: any trackers that Accelerate knows."""
    clips: ClipConfig = field(default_factory=ClipConfig)
    """Which clips are cut out of the videos."""
    model: CausalVAEConfig = field(default_factory=CausalVAEConfig)
    """The autoencoder."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The loss."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Who judges the reconstructions."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How weights are updated."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "val_every", "val_clips", "save_every", "keep"):
            _check_at_least(name, getattr(self, name), 1)
        _check_at_least("optimizer.warmup_steps", self.optimizer.warmup_steps, 0)
        _check_at_least("discriminator.num_scales", self.discriminator.num_scales, 0)
        self._check_judges()
        for name in ("height", "width"):
            if getattr(self.clips, name) < MIN_SIZE:
                contract = f"at least {MIN_SIZE}, which LPIPS needs"
                raise argument_error(f"clips.{name}", contract, getattr(self.clips, name), "Use larger clips.")
        for name in ("lr", "disc_lr", "grad_clip"):
            if not getattr(self.optimizer, name) > 0:
                raise argument_error(
                    f"optimizer.{name}", "above 0", getattr(self.optimizer, name), "Use a small number."
                )
        if not 0 <= self.optimizer.ema_decay < 1:
            remedy = "Use 0.999, or 0 to evaluate the raw weights."
            raise argument_error("optimizer.ema_decay", "from 0 to below 1", self.optimizer.ema_decay, remedy)

    def _check_judges(self) -> None:
        """Raise a `ValueError` where the discriminators, their weights and their steps do not go together."""
        objective, judges = self.objective, self.discriminator
        if objective.adversarial_loss_weight > 0 and not (judges.image or judges.video != "none"):
            remedy = "Set `discriminator.video` or `discriminator.image`, or this weight to 0."
            weight = objective.adversarial_loss_weight
            raise argument_error("objective.adversarial_loss_weight", "0 without a discriminator", weight, remedy)
        weight = objective.multiscale_adversarial_loss_weight
        if (weight > 0) != (judges.num_scales > 0):
            contract = "above 0 exactly where `discriminator.num_scales` is"
            remedy = f"`discriminator.num_scales` is {judges.num_scales}."
            raise argument_error("objective.multiscale_adversarial_loss_weight", contract, weight, remedy)
        if judges.num_scales > 0 and judges.video == "none":
            remedy = "They are of the kind that `discriminator.video` names."
            raise argument_error(
                "discriminator.num_scales", "0 without video discriminators", judges.num_scales, remedy
            )
        judged = objective.adversarial_loss_weight > 0 or weight > 0
        if judged and objective.disc_train_start > objective.disc_start:
            contract = f"at most `objective.disc_start` ({objective.disc_start})"
            remedy = "An untrained discriminator would lead the autoencoder astray."
            raise argument_error("objective.disc_train_start", contract, objective.disc_train_start, remedy)


def _check_at_least(name: str, value: Any, least: int) -> None:
    if value < least:
        raise argument_error(name, f"at least {least}", value, f"Use {least} or more.")
