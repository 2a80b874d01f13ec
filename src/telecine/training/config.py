"""The settings of a training run, as plain values; their texts are the command line's help."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from telecine.autoencoders import CausalVAEConfig
from telecine.data import ClipConfig
from telecine.devices import DeviceName
from telecine.objective.schedule import Ramp, as_ramp
from telecine.shapes import argument_error
from telecine.training.trainable import TrainableConfig

# AlexNet's LPIPS, which validation measures, has no features of anything smaller.
MIN_SIZE = 31

Weight: TypeAlias = float | Ramp


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Which discriminators judge the reconstructions, and their size."""

    video: Literal["first_frame", "plain", "patch", "none"] = "first_frame"
    """The discriminator of whole clips: causal with the first frame apart, plain 3D convolutions, fully convolutional
    with a logit for each patch, or none."""
    image: Literal["attention", "patch", "none"] = "none"
    """The discriminator of single frames, which sees a random one of each clip: with attention, fully convolutional
    with a logit for each patch, or none."""
    num_scales: int = 0
    """Add this many discriminators of the clip at 1/2, 1/4, ... of its height and width, of the kind of `video`."""
    dim: int = 32
    """A quarter of the first block's channels."""
    max_dim: int = 512
    """Most channels of any block."""
    antialiased_downsample: bool = True
    """Blur before each stride; "patch" never does."""
    time_weighting: Literal["positions", "frames"] = "positions"
    """What counts alike in the mean over time of "first_frame": the positions that are left, of which the first frame
    has one to itself, or the frames."""
    pad_mode: Literal["first", "constant"] = "first"
    """What the convolutions of "first_frame" see before the clip: its first frame again, or zeros."""
    num_layers: int = 3
    """Layers of "patch" that halve height and width: with 3, a logit for every 8 x 8 pixels."""
    num_temporal_layers: int = 2
    """How many of these halve time as well."""
    norm: Literal["group", "none", "spectral"] = "group"
    """What "patch" normalises: groups of channels, nothing, or its weights by their spectral norm."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """The terms of the objective and their weights; steps count updates of the autoencoder.

    A weight is a number, or a ramp: `{weight: 1.0, start: 1000, steps: 500}` is 0 until step 1000 and rises to 1 from
    there to step 1500; `initial` is what it is before.
    """

    disc_start: int = 20_000
    """Step from which the adversarial terms and feature matching count in the autoencoder's loss."""
    disc_train_start: int = 15_000
    """Step from which the discriminators train, so that they are ready at `disc_start`."""
    recon_loss: Literal["mse", "l1", "charbonnier"] = "mse"
    """Error of each pixel: squared, absolute, or absolute and smooth at 0."""
    nll_reduction: Literal["mean", "sum"] = "mean"
    """"sum" multiplies reconstruction and perceptual loss by the number of values in a clip, as latent diffusion does;
    all other weights then have to be larger by as much to mean the same."""
    learn_logvar: bool = False
    """Learn how much reconstruction and perceptual loss count: as a likelihood whose variance is trained, too."""
    logvar_init: float = 0.0
    """Logarithm of that variance at the start, or for good where it is not learned."""
    perceptual_weight: Weight = 1.0
    """Weight of the perceptual loss, LPIPS."""
    perceptual_net: Literal["vgg", "alex"] = "vgg"
    """Network of the perceptual loss. Validation always measures with "alex"."""
    perceptual_frames: int | Literal["all"] = 1
    """How many random frames of each clip the perceptual loss looks at, or "all"."""
    perceptual_stride: int = 1
    """Choose them among every n-th frame only, from a random one on."""
    perceptual_chunk_size: int | None = None
    """Compare so many frames at a time, and again in the backward: less memory, more time. Without it, all at once."""
    gram_loss_weight: Weight = 0.0
    """Weight of the Gram loss: how differently the perceptual network's features go together, that is, of texture."""
    wavelet_loss_weight: Weight = 0.0
    """Weight of the absolute difference of 3D Haar wavelet coefficients, which stresses detail in space and time."""
    wavelet_levels: int = 1
    """How many times the low band of the wavelets is split."""
    temporal_loss_weight: Weight = 0.0
    """Weight of the absolute difference of the changes from frame to frame, which sees flicker."""
    gan_loss: Literal["hinge", "vanilla", "least_squares", "relativistic"] = "hinge"
    """What discriminators and autoencoder lose to each other."""
    adversarial_loss_weight: Weight = 0.5
    """Weight of the adversarial terms, times their adaptive weight."""
    multiscale_adversarial_loss_weight: Weight = 0.0
    """Weight of the adversarial terms of the down-scaled clips; needs `discriminator.num_scales`."""
    feature_matching_loss_weight: Weight = 0.0
    """Weight of the absolute difference of the discriminators' features of real clips and of reconstructions."""
    adaptive_weight_reference: Literal["perceptual", "recon_and_perceptual", "none"] = "perceptual"
    """Whose gradient the adaptive weight makes each adversarial term as strong as; "none" keeps the weights at 1."""
    adaptive_weight_at: Literal["last_layer", "reconstruction"] = "last_layer"
    """Where these gradients are compared: the decoder's last layer, or the reconstruction, which takes less time."""
    adaptive_weight_min_norm: float = 1e-3
    """An adversarial gradient shorter than this counts as this long, so that the adaptive weight stays small."""
    adaptive_weight_max: float = 1e3
    """Largest adaptive weight."""
    adaptive_weight_decay: float = 0.0
    """Decay of a moving average of the adaptive weight, e.g. 0.99; 0 for the newest value alone."""
    eager_gradients: bool = True
    """Compute each term's gradient together with its value, so that memory is that of the largest term."""
    gradient_checkpointing: bool = False
    """Keep only the outputs of the discriminators' blocks and compute their inside again in the backward: less memory,
    more time."""
    grad_penalty_loss_weight: Weight = 10.0
    """Weight of the gradient penalty."""
    grad_penalty: Literal["one_centered", "r1", "r2", "r1_and_r2", "wgan_gp", "approximate_r1"] = "one_centered"
    """Which gradient of the discriminators is kept small: on real clips (centred at 1, or at 0 for "r1"), on
    reconstructions ("r2"), on both, between the two ("wgan_gp"), or a finite difference on real clips."""
    grad_penalty_every: int = 16
    """Compute the penalty on every n-th step only, with n times its weight."""
    lecam_loss_weight: Weight = 0.0
    """Weight of LeCam's regulariser, which steadies discriminators that have little data."""
    lecam_decay: float = 0.999
    """Decay of LeCam's moving averages of the logits."""
    quantizer_aux_loss_weight: Weight = 1e-6
    """Weight of the autoencoder's auxiliary loss: for a KL autoencoder, of the divergence per latent element."""

    def ramps(self) -> dict[str, Ramp]:
        """Return the schedule of every weight by its name.

        Raises:
            ValueError: If one is negative or not finite.
        """
        return weight_ramps(vars(self))


def weight_ramps(settings: Mapping[str, Any]) -> dict[str, Ramp]:
    """Return the schedule of every weight among the objective's settings, which may come from a file, by its name."""
    return {name: as_ramp(f"objective.{name}", value) for name, value in settings.items() if name.endswith("_weight")}


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
    """What to train on: a folder of videos, images and tar files, searched with its subfolders; one of these; a CSV or
    JSONL list; or a pattern. Without it, three short sample clips."""
    val_data: str | None = None
    """Videos to validate on, as `data`. Without it, a part of `data` is held out."""
    model: str | None = None
    """The autoencoder to fine-tune: a folder or a Hub id of diffusers, of a whole pipeline or of its VAE; a run of
    telecine; or a diffusers `config.json` to train from scratch. Without it, telecine's own, see `causal_vae`."""
    output_dir: str = "runs/train"
    """Folder of the run. If it holds a checkpoint, the run goes on from there."""
    steps: int = 100_000
    """Updates of the autoencoder in all."""
    batch_size: int = 4
    """Clips that go through the networks at once, in each process."""
    gradient_accumulation_steps: int = 1
    """How many such batches make an update."""
    seed: int = 0
    """Seed of the initial weights, of the clips and of all sampling."""
    device: DeviceName = "auto"
    """Where to compute; "auto" takes an accelerator if there is one, and the run says which."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the networks' forward passes; losses are always float32."""
    sharding: Literal["none", "fsdp2"] = "none"
    """With several processes, what each keeps of the autoencoder: all of it, or a share of its weights, gradients and
    optimizer states ("fsdp2")."""
    model_gradient_checkpointing: bool = False
    """Compute the inside of the autoencoder's blocks again in the backward: less memory, more time. Its gradients are
    compared with the usual ones at the start."""
    channels_last: bool = False
    """Lay the weights of discriminators and LPIPS out with channels last, which tensor cores prefer; not on the CPU
    with an exact gradient penalty."""
    dynamo_backend: Literal["no", "inductor", "cudagraphs", "aot_eager"] = "no"
    """Compile discriminators and LPIPS with `torch.compile`; needs `objective.grad_penalty: approximate_r1`, or no
    penalty."""
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
    best_metric: Literal["psnr", "ssim", "lpips_alex"] | None = None
    """Save and keep the checkpoint whose validation is the best by this metric as well, under `best` in the run."""
    push_to_hub: bool = False
    """Upload the averaged weights to the Hub when training ends."""
    hub_model_id: str | None = None
    """The repository to upload to; by default the name of the run's folder, under the user's name. The token is that
    of `hf auth login` or of `HF_TOKEN`: settings are written into the run, where no secret belongs."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where scalars and previews go besides the run's folder: any trackers that Accelerate knows."""
    clips: ClipConfig = field(default_factory=ClipConfig)
    """Which clips are cut out of the videos."""
    causal_vae: CausalVAEConfig = field(default_factory=CausalVAEConfig)
    """telecine's own autoencoder, which is trained where `model` names no other."""
    trainable: TrainableConfig = field(default_factory=TrainableConfig)
    """Which of the autoencoder's weights are trained."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The loss; each weight is a number, or changes over the steps, e.g. `{weight: 1.0, start: 1000, steps: 500}`."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Who judges the reconstructions."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How weights are updated."""

    def __post_init__(self) -> None:
        for name in ("data", "val_data", "model", "output_dir"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, os.path.expanduser(getattr(self, name)))
        counts = ("steps", "batch_size", "gradient_accumulation_steps", "val_clips", "keep")
        for name in (*counts, "log_every", "val_every", "save_every"):
            _check_at_least(name, getattr(self, name), 1)
        _check_at_least("optimizer.warmup_steps", self.optimizer.warmup_steps, 0)
        _check_at_least("discriminator.num_scales", self.discriminator.num_scales, 0)
        _check_at_least("discriminator.num_layers", self.discriminator.num_layers, 1)
        self._check_judges()
        self._check_patches()
        if self.sharding != "none" and self.mixed_precision == "fp16":
            remedy = "Use bf16: a loss scale per process would let their weights drift apart."
            raise argument_error("mixed_precision", "no or bf16 with sharded weights", self.mixed_precision, remedy)
        for bucket in self.clips.train_buckets:
            if min(bucket.height, bucket.width) < MIN_SIZE:
                contract = f"at least {MIN_SIZE} pixels high and wide, which LPIPS needs"
                raise argument_error("clips", contract, str(bucket), "Use larger clips.")
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
        is_on = {name: ramp.is_ever_on for name, ramp in objective.ramps().items()}
        has_judge = judges.image != "none" or judges.video != "none"
        if is_on["adversarial_loss_weight"] and not has_judge:
            remedy = "Set `discriminator.video` or `discriminator.image`, or this weight to 0."
            raise _objective_error(objective, "adversarial_loss_weight", "0 without a discriminator", remedy)
        if is_on["multiscale_adversarial_loss_weight"] != (judges.num_scales > 0):
            contract = "above 0 exactly where `discriminator.num_scales` is"
            remedy = f"`discriminator.num_scales` is {judges.num_scales}."
            raise _objective_error(objective, "multiscale_adversarial_loss_weight", contract, remedy)
        if judges.num_scales > 0 and judges.video == "none":
            remedy = "They are of the kind that `discriminator.video` names."
            raise argument_error(
                "discriminator.num_scales", "0 without video discriminators", judges.num_scales, remedy
            )
        self._check_judged(is_on)

    def _check_judged(self, is_on: Mapping[str, bool]) -> None:
        """Raise a `ValueError` where what needs trained discriminators cannot have them."""
        objective = self.objective
        judged = is_on["adversarial_loss_weight"] or is_on["multiscale_adversarial_loss_weight"]
        for name in ("feature_matching_loss_weight", "lecam_loss_weight"):
            if is_on[name] and not judged:
                remedy = "Discriminators are only built for `objective.adversarial_loss_weight`, however small."
                raise _objective_error(objective, name, "0 without an adversarial term", remedy)
        if judged and objective.disc_train_start > objective.disc_start:
            contract = f"at most `objective.disc_start` ({objective.disc_start})"
            remedy = "An untrained discriminator would lead the autoencoder astray."
            raise _objective_error(objective, "disc_train_start", contract, remedy)

    def _check_patches(self) -> None:
        """Raise a `ValueError` where a clip has no patch to judge, which would come out only once judging begins."""
        judges = self.discriminator
        factor = 2**judges.num_scales if judges.video == "patch" else 1
        smallest = -(-min(min(bucket.height, bucket.width) for bucket in self.clips.train_buckets) // factor)
        most = smallest.bit_length() - 1
        if "patch" in (judges.video, judges.image) and judges.num_layers > most:
            contract = f"at most {most}, which halve {smallest} pixels to one"
            remedy = "Use fewer, or larger clips, or fewer of `discriminator.num_scales`."
            raise argument_error("discriminator.num_layers", contract, judges.num_layers, remedy)


def _objective_error(objective: ObjectiveConfig, name: str, contract: str, remedy: str) -> Exception:
    return argument_error(f"objective.{name}", contract, getattr(objective, name), remedy)


def _check_at_least(name: str, value: Any, least: int) -> None:
    if value < least:
        raise argument_error(name, f"at least {least}", value, f"Use {least} or more.")
