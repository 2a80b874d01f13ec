"""The settings of a training run. Their docstrings are the help of the command line."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from telecine.base.checks import argument_error
from telecine.settings.autoencoder import CausalVAEConfig
from telecine.settings.data import ClipConfig
from telecine.settings.discriminators import MIN_SIZES, DiscriminatorConfig
from telecine.settings.group import (
    Count,
    CountOrZero,
    Decay,
    DeviceName,
    Integer,
    NonNegative,
    Positive,
    UserPath,
    group,
)
from telecine.settings.objective import ObjectiveConfig

# Settings, and groups of them, that decide which weights exist and their shapes: a run that resumes keeps them. The
# discriminators' linear heads depend on the size of the clips.
NETWORK_SETTINGS = (
    "causal_vae.",
    "discriminator.",
    "trainable.",
    "predictive.",
    "clips.num_frames",
    "clips.height",
    "clips.width",
    "objective.reconstruction.learn_logvar",
)
# Those of them that say where weights start: the weights of a run that resumes are those of its checkpoint.
START_SETTINGS = ("discriminator.init",)
# If workers fail this often in a row, without a batch in between, the data itself is taken to be the cause.
MAX_FAILURES = 3
# The side of the window of SSIM, which validations also measure of clips without colours.
_SSIM_SIDE = 11
_SECONDS_PER_YEAR = 31_536_000
# The largest number of updates, and of batches in an update. Numbers of clips then stay below 2^63.
_MOST = 10**8
# A larger learning rate of AdamW overflows sooner or later: it changes each weight by about as much in an update.
LearningRate: TypeAlias = Annotated[Positive, Field(le=10)]


@group
class OptimizerConfig:
    """AdamW for the autoencoder and for the discriminators, and the moving average of the weights."""

    name: Literal["adamw", "adamw_8bit"] = "adamw"
    """"adamw_8bit" is that of bitsandbytes (`telecine[8bit]`): its states have a quarter of the memory. On CUDA and the
    CPU, without sharding; `plan` counts whole states."""
    lr: LearningRate = 1e-4
    """Learning rate of the autoencoder."""
    disc_lr: LearningRate = 1e-4
    """Learning rate of the discriminators."""
    betas: tuple[Decay, Decay] = (0.5, 0.9)
    """AdamW's decay rates for the autoencoder."""
    disc_betas: tuple[Decay, Decay] = (0.5, 0.9)
    """AdamW's decay rates for the discriminators."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    warmup_steps: CountOrZero = 500
    """Number of steps over which both learning rates rise from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate after warm-up: constant, or half a cosine down to 1/20 at the last step."""
    grad_clip: Positive = 1.0
    """Largest 2-norm of each network's gradient; larger ones are scaled down to it."""
    ema_decay: Decay = 0.999
    """Decay of the moving average of the autoencoder's weights, which is evaluated and saved as the result."""


@group
class TrainableConfig:
    """Which weights are trained; all others are frozen.

    Raises:
        ValueError: A setting of LoRA differs from its default without LoRA.
    """

    weights: Literal["all", "decoder", "lora"] = "all"
    """"all" trains all weights except those that a custom module has frozen. "decoder" trains the decoder only: latents
    stay the same, so that models trained on them remain usable. "lora" trains LoRA adapters of the decoder's
    convolutions and linear layers, which are merged into the weights when they are saved; the last layer, which the
    adaptive weight needs, is trained fully."""
    patterns: tuple[str, ...] = ()
    """Train only weights whose name matches one of these patterns, e.g. "decoder.up_blocks.*", even if the module has
    frozen them. With "lora", names of layers anywhere in the model."""
    lora_rank: Count = 16
    """Rank of the LoRA adapters."""
    lora_alpha: Positive = 16.0
    """Scale of the LoRA adapters, times 1 / rank."""

    def __post_init__(self) -> None:
        if self.weights == "lora":
            return
        contract = 'left out unless `weights` is "lora"'
        remedy = f"Add `--config lora`, or `--trainable.weights lora`; {self.weights} has no LoRA adapters."
        if self.lora_rank != TrainableConfig.lora_rank:
            raise argument_error("lora_rank", contract, self.lora_rank, remedy)
        if self.lora_alpha != TrainableConfig.lora_alpha:
            raise argument_error("lora_alpha", contract, self.lora_alpha, remedy)


@group
class PredictiveConfig:
    """Predictive reconstruction (PV-VAE, arXiv:2605.02134): the last frames of a clip are hidden from the encoder.

    Each update drops a random number of the last latent frames, each micro-batch of each process its own: the frames
    before them are encoded, `fill` stands in the place of those that are missing, and all frames are decoded and
    compared. Terms that read the latent see what is decoded. Add `objective.terms.temporal` for the error of frame
    differences, and train the decoder alone afterwards with `--config decoder --model` and this run.
    """

    max_dropped: Annotated[NonNegative, Field(le=1)] = 0.0
    """Largest fraction of the latent frames after the first one that is dropped; 0 for ordinary reconstruction, 1 as in
    the paper. The number is drawn evenly from 0 to this fraction, rounded down."""
    fill: Literal["learned", "zero"] = "learned"
    """What the decoder gets for a dropped latent frame at each position: a vector that is trained with the model and is
    0 at the start, or 0."""


@group
class TrainConfig:
    """Every setting of a training run.

    Defaults are those of each part by itself: the objective's have no GAN. Recipes hold settings that train well
    together, see `read_config`.

    Raises:
        ValueError: A setting is out of range, or settings contradict each other.
    """

    data: UserPath | tuple[UserPath, ...] | None = None
    """Training data: a folder of videos, images and tar files, searched recursively; one such file; a CSV, JSONL
    or Parquet list; or a glob pattern; on a disk or at s3://, gs://, hf:// or https://; or several of these,
    as a list. Without it, four short sample videos."""
    val_data: UserPath | tuple[UserPath, ...] | None = None
    """Validation data, as `data`; frames in both are not trained on. Without it, a part of `data` is held out."""
    model: UserPath | None = None
    """The autoencoder to fine-tune: a folder or a Hub id of diffusers, of a whole pipeline or of its VAE; a run of
    telecine; tiny, the model in the package; a diffusers `config.json` to train from scratch; or the dotted path of a
    module's class, such as `my_package.Tiny`, see `--allow_code`. Without it, telecine's own, see `causal_vae`."""
    model_arguments: Mapping[str, object] = field(default_factory=dict)
    """Arguments of the class that `model` names, such as `{width: 16}`."""
    random_weights: bool = False
    """Train `model` from scratch: only its configuration is read. Without `model`, training is from scratch anyway."""
    init: UserPath | None = None
    """Start telecine's own autoencoder from another one: a run, or a folder or Hub id with its weights. It may have
    another compression, other channels or another size: layers of the same place and shape are copied, the others are
    new. Not with `model`, nor with LoRA. For `telecine distill`: start the student from a model that `telecine prune`
    made of the teacher, in place of `student`."""
    output_dir: UserPath = "runs/train"
    """Folder of the run. If it holds a checkpoint, the run resumes from it."""
    steps: Annotated[Count, Field(le=_MOST)] = 100_000
    """Total number of updates of the autoencoder."""
    batch_size: Count | Literal["auto"] = 4
    """Clips per forward pass in each process; "auto" plans the largest number that fits the device's free memory, and
    the run's `config.yaml` holds that number."""
    gradient_accumulation_steps: Annotated[Count, Field(le=_MOST)] = 1
    """Number of such batches per update."""
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """Seed of the initial weights, the clips and all sampling."""
    device: DeviceName = "auto"
    """Where to compute; "auto" uses an accelerator if there is one. The run prints which."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the networks' forward passes; losses are always computed in float32. "fp16" is for GPUs."""
    allow_tf32: bool | None = None
    """Whether updates may compute float32 in TF32 on NVIDIA's GPUs from Ampere on: faster, with factors of 10 bits.
    Left out, PyTorch's default holds: in convolutions, and not in products of matrices. Validation and evaluation never
    use it."""
    sharding: Literal["none", "fsdp2"] = "none"
    """Several processes replicate the autoencoder ("none"), or shard its weights, gradients and optimizer ("fsdp2")."""
    context_parallel: Count = 1
    """Processes that share each clip, for clips that are larger than a device: each computes the autoencoder on a part
    of the rows, with the same results. It divides the number of processes. For telecine's own models, and for Wan,
    CogVideoX and LTX-Video of diffusers."""
    process_timeout: Annotated[Positive, Field(le=_SECONDS_PER_YEAR)] = 900.0
    """Seconds that each of several processes waits for the others before the run ends with an error. The longest pause
    of one has to be shorter, e.g. saving a checkpoint. While videos are read at the start they wait for any time."""
    model_gradient_checkpointing: bool = False
    """Recompute the inside of the autoencoder's blocks in the backward: less memory, more time. For diffusers' models,
    the gradients are compared with the ordinary ones at the start."""
    temporal_chunk: Count | None = None
    """Compute the autoencoder in chunks of this many frames, with the activations of one chunk in memory at a time, so
    that clips may have any length. The gradients are those of whole clips, which is the default. A multiple of
    `time_compression` for telecine's own model, of 4 for Wan, QwenImage and Magvit; 8 for CogVideoX, 16 for KVAE and
    Kandinsky 6 SR."""
    channels_last: bool = False
    """Store the weights of discriminators and LPIPS in channels-last layout, which tensor cores prefer. Not on the CPU
    with an exact gradient penalty."""
    dynamo_backend: Literal["no", "inductor", "cudagraphs", "aot_eager"] = "no"
    """Compile the autoencoder, LPIPS, and discriminators without an exact gradient penalty with `torch.compile`: the
    first updates take minutes. Not with sharding, context parallelism, temporal chunks or gradient checkpointing."""
    log_every: Count = 10
    """Steps between two records in `metrics.jsonl` and TensorBoard."""
    val_every: Count = 1_000
    """Steps between two validations."""
    val_clips: Count = 16
    """Number of held-out clips to validate on."""
    save_every: Count = 1_000
    """Steps between two checkpoints."""
    keep: Count = 2
    """Number of checkpoints to keep, the newest ones."""
    latent_clips: CountOrZero = 128
    """Training clips over which mean and standard deviation of the latent are measured before a checkpoint, if the
    encoder is trained. The saved models carry them as `latents_mean` and `latents_std`, or as `scaling_factor`, as
    their class has it; pipelines of diffusers normalise with them. 0 keeps those of the base model."""
    latent_cache: UserPath | None = None
    """Folder that keeps the latents of training clips, if the encoder is frozen: it then runs once for each clip, for
    all runs with this encoder and these clips. With `clips.num_clips` clips come again within a run. Left out, the
    encoder runs in every update."""
    best_metric: Literal["psnr", "ssim", "lpips_alex"] | None = None
    """Also keep the checkpoint with the best validation by this metric, as `best` in the run's folder."""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """When a value is not finite: end the run with an error ("stop"), or go back to the last checkpoint and train on
    with half the learning rates ("rollback"), at most three times in a run."""
    push_to_hub: bool = False
    """Upload the averaged weights to the Hub when training ends."""
    hub_model_id: str | None = None
    """The repository to upload to; by default the name of the run's folder, under the user's name. The token is that
    of `hf auth login` or of `HF_TOKEN`: settings are saved in the run, where secrets do not belong."""
    linear_baseline: bool = True
    """Also measure the best linear autoencoder with the same latent on the validation clips, and show it beside every
    validation. It is fitted to 300 training clips, which takes seconds."""
    linear_start: bool = True
    """Start telecine's own autoencoder as that linear one, not at random. Other models start from their weights."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers of Accelerate that get the scalars, besides the run's folder: tensorboard, wandb, trackio and others.
    These three also get a grid of reconstructions with each validation."""
    tracker_project: str = "telecine"
    """Name of the project in trackers; the run there has the name of the run's folder."""
    tracker_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Arguments with which a tracker is started, by its name, e.g. `{wandb: {entity: my_team, group: my_study}}`."""
    clips: ClipConfig = field(default_factory=ClipConfig)
    """Which clips are cut from the videos."""
    causal_vae: CausalVAEConfig = field(default_factory=CausalVAEConfig)
    """telecine's own autoencoder, which is trained if `model` is not set."""
    trainable: TrainableConfig = field(default_factory=TrainableConfig)
    """Which of the autoencoder's weights are trained."""
    predictive: PredictiveConfig = field(default_factory=PredictiveConfig)
    """Which frames are hidden from the encoder, for the decoder to predict."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The loss. A weight is a number or a ramp, e.g. `{weight: 1.0, start: 1000, steps: 500}`."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The discriminators."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How weights are updated."""

    @property
    def clips_per_pass(self) -> int:
        """`batch_size` as a number; "auto" must have been replaced by one."""
        assert isinstance(self.batch_size, int)
        return self.batch_size

    def clips_per_step(self, num_processes: int) -> int:
        """Return the number of clips in an update, over all processes."""
        num_data_ranks = num_processes // self.context_parallel
        return self.clips_per_pass * self.gradient_accumulation_steps * num_data_ranks

    def __post_init__(self) -> None:
        # While a process replaces workers that do not answer, the others must wait for it.
        shortest = MAX_FAILURES * self.clips.timeout
        if self.process_timeout <= shortest:
            contract = f"more than {MAX_FAILURES} times `clips.timeout`, {shortest:g} seconds"
            raise argument_error(
                "process_timeout",
                contract,
                self.process_timeout,
                "Raise `process_timeout`, or lower `clips.timeout`.",
            )
        if self.init is not None and (self.model is not None or self.trainable.weights == "lora"):
            contract = "left out with `model` or LoRA"
            remedy = "It starts telecine's own autoencoder, see `causal_vae`; `model` alone trains one on as it is."
            raise argument_error("init", contract, repr(self.init), remedy)
        if not self.clips.has_colours:
            self._check_without_colours()
        if self.predictive.max_dropped > 0:
            self._check_predictive()
        self._check_discriminators()
        bucket = min(self.clips.train_buckets, key=lambda bucket: min(bucket.height, bucket.width))
        side = min(bucket.height, bucket.width)
        self.discriminator.check_size(side)
        if self.sharding != "none":
            self._check_sharding()
        if self.dynamo_backend != "no":
            self._check_compilation()
        if self.context_parallel > 1 and self.latent_cache is not None:
            remedy = "Let each process have whole clips, or let the encoder run in every update."
            raise argument_error(
                "latent_cache", "left out with `context_parallel`", repr(self.latent_cache), remedy
            )
        metric = "LPIPS" if self.clips.has_colours else "SSIM"
        smallest = MIN_SIZES["alex"] if self.clips.has_colours else _SSIM_SIDE
        if side < smallest:
            contract = f"at least {smallest} pixels high and wide, which {metric} needs"
            raise argument_error("clips", contract, str(bucket), "Use larger clips.")

    def _check_without_colours(self) -> None:
        """Check that no setting needs RGB; `check_functions` of the objective checks its terms."""
        if self.objective.term_schedules()["perceptual"].ramp.is_ever_on:
            raise argument_error(
                "objective.perceptual_weight",
                f"0 for {self.clips.num_channels} channels",
                self.objective.perceptual_weight,
                "LPIPS needs RGB frames: set `objective.perceptual_weight` to 0.",
            )
        if self.discriminator.video == "features":
            contract = f"a discriminator of {self.clips.num_channels} channels"
            raise argument_error(
                "discriminator.video", contract, "features, which needs RGB", "Use patch."
            )
        if self.best_metric == "lpips_alex":
            contract = "psnr or ssim for channels without colours"
            raise argument_error("best_metric", contract, self.best_metric, "LPIPS needs RGB.")

    def _check_predictive(self) -> None:
        if self.latent_cache is not None:
            remedy = "The cache has latents of whole clips."
            raise argument_error(
                "latent_cache",
                "left out with `predictive.max_dropped`",
                repr(self.latent_cache),
                remedy,
            )
        if self.sharding != "none":
            remedy = "Replicate the weights: the encoder alone does not gather sharded ones."
            raise argument_error(
                "sharding", '"none" with `predictive.max_dropped`', self.sharding, remedy
            )

    def _check_sharding(self) -> None:
        if self.latent_cache is not None:
            remedy = "Replicate the weights: the encoder alone does not gather sharded ones."
            raise argument_error(
                "latent_cache", "left out with sharded weights", repr(self.latent_cache), remedy
            )
        if self.optimizer.name != "adamw":
            remedy = "Sharding divides its states by the number of processes."
            raise argument_error(
                "optimizer.name", "adamw with sharded weights", self.optimizer.name, remedy
            )
        if self.mixed_precision == "fp16":
            remedy = "Use bf16: with a loss scale per process the weights would diverge."
            raise argument_error(
                "mixed_precision", "no or bf16 with sharded weights", self.mixed_precision, remedy
            )

    def _check_compilation(self) -> None:
        uncompiled = {
            "sharding": self.sharding != "none",
            "context_parallel": self.context_parallel > 1,
            "temporal_chunk": self.temporal_chunk is not None,
            "model_gradient_checkpointing": self.model_gradient_checkpointing,
            "objective.gradient_checkpointing": self.objective.gradient_checkpointing,
        }
        for name, is_on in uncompiled.items():
            if is_on:
                remedy = f"`{name}` cannot be compiled: set it to its default, or compile nothing."
                raise argument_error(
                    "dynamo_backend", f"`no` with `{name}`", self.dynamo_backend, remedy
                )

    def _check_discriminators(self) -> None:
        discriminator = self.discriminator
        terms = self.objective.term_schedules()
        adversarial = terms["adversarial"].ramp.is_ever_on
        multiscale = terms["multiscale_adversarial"].ramp.is_ever_on
        if adversarial and discriminator.image == discriminator.video == "none":
            weight = self.objective.adversarial_loss_weight
            remedy = "Set `discriminator.video` or `discriminator.image`, or this weight to 0."
            raise argument_error(
                "objective.adversarial_loss_weight", "0 without a discriminator", weight, remedy
            )
        if multiscale != (discriminator.num_scales > 0):
            contract = "above 0 exactly if `discriminator.num_scales` is"
            weight = self.objective.multiscale_adversarial_loss_weight
            remedy = f"`discriminator.num_scales` is {discriminator.num_scales}."
            raise argument_error(
                "objective.multiscale_adversarial_loss_weight", contract, weight, remedy
            )
        if discriminator.num_scales > 0 and discriminator.video == "none":
            remedy = "They are of the kind that `discriminator.video` names."
            raise argument_error(
                "discriminator.num_scales",
                "0 without video discriminators",
                discriminator.num_scales,
                remedy,
            )
        has_adversarial = adversarial or multiscale
        for term in terms.values():
            if term.needs == "any discriminator" and term.ramp.is_ever_on and not has_adversarial:
                contract = "0 without an adversarial term"
                remedy = "Discriminators are built only for `objective.adversarial_loss_weight`, however small."
                raise argument_error(f"objective.{term.setting}", contract, term.weight, remedy)
        disc_start = self.objective.disc_start
        disc_train_start = self.objective.gan.disc_train_start
        if has_adversarial and disc_train_start > disc_start:
            contract = f"at most `objective.disc_start` ({disc_start})"
            remedy = "An untrained discriminator would mislead the autoencoder."
            raise argument_error(
                "objective.gan.disc_train_start", contract, disc_train_start, remedy
            )
