"""The settings of a training run. Their docstrings are the help of the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias, cast

from telecine.base.checks import argument_error, check_count, check_fraction, check_positive, check_weight, describe
from telecine.settings.autoencoder import CausalVAEConfig
from telecine.settings.data import ClipConfig
from telecine.settings.discriminators import MIN_SIZES, DiscriminatorConfig
from telecine.settings.group import PATH, TABLES, Count, DeviceName, Settings
from telecine.settings.objective import ObjectiveConfig

# Settings of older files that are no more, and their value now.
REMOVED: Mapping[str, object] = TABLES["removed"]
# If workers fail this often in a row, without a batch in between, the data itself is taken to be the cause.
MAX_FAILURES = 3
# A learning rate of AdamW above it overflows sooner or later.
_MAX_LR = 10.0


def _check_lr(name: str, value: object) -> float:
    if (rate := check_positive(name, value, remedy="Use a small number.")) > _MAX_LR:
        remedy = "AdamW changes each weight by about as much in an update."
        raise argument_error(name, f"at most {_MAX_LR}", value, remedy)
    return rate


def _check_seed(name: str, value: object) -> int:
    if check_count(name, value, at_least=0) >= 2**32:
        raise argument_error(name, "below 2^32", describe(value), "Use a smaller number.")
    return cast(int, value)


_LearningRate: TypeAlias = Annotated[float, _check_lr]
_CountOr0: TypeAlias = Annotated[int, partial(check_count, at_least=0)]
_Beta: TypeAlias = Annotated[float, partial(check_fraction, remedy="Use 0.9.")]
_Decay: TypeAlias = Annotated[float, partial(check_fraction, remedy="Use 0.999, or 0 to evaluate the raw weights.")]


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    """AdamW for the autoencoder and for the discriminators, and the moving average of the weights."""

    name: Literal["adamw", "adamw_8bit"] = "adamw"
    """"adamw_8bit" is that of bitsandbytes (`telecine[8bit]`): its states have a quarter of the memory. On CUDA and the
    CPU, without sharding; `plan` counts whole states."""
    lr: _LearningRate = 1e-4
    """Learning rate of the autoencoder."""
    disc_lr: _LearningRate = 1e-4
    """Learning rate of the discriminators."""
    betas: tuple[_Beta, _Beta] = (0.5, 0.9)
    """AdamW's decay rates for the autoencoder."""
    disc_betas: tuple[_Beta, _Beta] = (0.5, 0.9)
    """AdamW's decay rates for the discriminators."""
    weight_decay: Annotated[float, partial(check_weight, remedy="Use 0 for none.")] = 0.0
    """Decoupled weight decay."""
    warmup_steps: _CountOr0 = 500
    """Number of steps over which both learning rates rise from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate after warm-up: constant, or half a cosine down to 1/20 at the last step."""
    grad_clip: Annotated[float, partial(check_positive, remedy="Use a small number.")] = 1.0
    """Largest 2-norm of each network's gradient; larger ones are scaled down to it."""
    ema_decay: _Decay = 0.999
    """Decay of the moving average of the autoencoder's weights, which is evaluated and saved as the result."""


@dataclass(frozen=True)
class TrainableConfig(Settings):
    """Which weights are trained; all others are frozen."""

    weights: Literal["all", "decoder", "lora"] = "all"
    """"all" trains all weights except those that a custom module has frozen. "decoder" trains the decoder only: latents
    stay the same, so that models trained on them remain usable. "lora" trains low-rank updates (LoRA) of the decoder's
    convolutions and linear layers, which are merged into the weights when they are saved; the last layer, which the
    adaptive weight needs, is trained fully."""
    patterns: tuple[str, ...] = ()
    """Train only weights whose name matches one of these patterns, e.g. "decoder.up_blocks.*", even if the module has
    frozen them. With "lora", names of layers anywhere in the model."""
    lora_rank: Count = 16
    """Rank of the LoRA updates."""
    lora_alpha: Annotated[float, partial(check_positive, remedy="Use the rank.")] = 16.0
    """Scale of the LoRA updates, times 1 / rank."""


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Every setting of a training run.

    Defaults are those of each part by itself: the objective's have no GAN. Recipes hold settings that train well
    together, see `read_config`.

    Raises:
        ValueError: A setting is out of range, or settings contradict each other.
    """

    data: str | None = field(default=None, metadata=PATH)
    """Training data: a folder of videos, images and tar files, searched recursively; one such file; a CSV or JSONL
    list; or a glob pattern; on a disk or at s3://, gs://, hf:// or https://. Without it, four short sample videos."""
    val_data: str | None = field(default=None, metadata=PATH)
    """Validation data, as `data`; frames in both are not trained on. Without it, a part of `data` is held out."""
    model: str | None = field(default=None, metadata=PATH)
    """The autoencoder to fine-tune: a folder or a Hub id of diffusers, of a whole pipeline or of its VAE; a run of
    telecine; tiny, the model in the package; a diffusers `config.json` to train from scratch; or the dotted path of a
    module's class, such as `my_package.Tiny`, see `--allow_code`. Without it, telecine's own, see `causal_vae`."""
    model_arguments: Mapping[str, object] = field(default_factory=dict)
    """Arguments of the class that `model` names, such as `{width: 16}`."""
    random_weights: bool = False
    """Train `model` from scratch: only its configuration is read. Without `model`, it is so anyway."""
    init: str | None = field(default=None, metadata=PATH)
    """Start telecine's own autoencoder from another one: a run, or a folder or Hub id with its weights. It may have
    another compression, other channels or another size: layers of the same place and shape are copied, the others are
    new. Not with `model`, nor with LoRA."""
    output_dir: str = field(default="runs/train", metadata=PATH)
    """Folder of the run. If it holds a checkpoint, the run resumes from it."""
    steps: Count = 100_000
    """Total number of updates of the autoencoder."""
    batch_size: Annotated[int, partial(check_count, remedy='Use 1 or more, or "auto".')] | Literal["auto"] = 4
    """Clips per forward pass in each process; "auto" plans the largest number that fits the device's free memory, and
    the run's `config.yaml` holds that number."""
    gradient_accumulation_steps: Count = 1
    """Number of such batches per update."""
    seed: Annotated[int, _check_seed] = 0
    """Seed of the initial weights, the clips and all sampling."""
    device: DeviceName = "auto"
    """Where to compute; "auto" uses an accelerator if there is one. The run prints which."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the networks' forward passes; losses are always computed in float32."""
    sharding: Literal["none", "fsdp2"] = "none"
    """Several processes replicate the autoencoder ("none"), or shard its weights, gradients and optimizer ("fsdp2")."""
    process_timeout: Annotated[float, partial(check_positive, remedy="Use some minutes, in seconds.")] = 900.0
    """Seconds that each of several processes waits for the others before the run ends with an error. The longest pause
    of one has to be shorter, e.g. saving a checkpoint. While videos are read at the start they wait for any time."""
    model_gradient_checkpointing: bool = False
    """Recompute the inside of the autoencoder's blocks in the backward: less memory, more time. For diffusers' models,
    the gradients are compared with the ordinary ones at the start."""
    temporal_chunk: Count | None = None
    """Compute the autoencoder in chunks of as many frames, with the activations of one chunk in memory at a time, for
    clips of any length. The gradients are those of whole clips, which is the default. A multiple of `time_compression`
    for telecine's own model, of 4 for Wan, QwenImage and Magvit; 8 for CogVideoX, 16 for KVAE and Kandinsky 6 SR."""
    channels_last: bool = False
    """Store the weights of discriminators and LPIPS in channels-last layout, which tensor cores prefer. Not on the CPU
    with an exact gradient penalty."""
    dynamo_backend: Literal["no", "inductor", "cudagraphs", "aot_eager"] = "no"
    """Compile the autoencoder, LPIPS, and discriminators without an exact gradient penalty with `torch.compile`: the
    first updates take minutes. Not with sharding, temporal chunks or gradient checkpointing."""
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
    latent_clips: _CountOr0 = 128
    """Training clips over which mean and standard deviation of the latent are measured before a checkpoint, if the
    encoder is trained. The saved models carry them as `latents_mean` and `latents_std`, or as `scaling_factor`, as
    their class has it; pipelines of diffusers normalise with them. 0 keeps those of the base model."""
    latent_cache: str | None = field(default=None, metadata=PATH)
    """Folder that keeps the latents of training clips, if the encoder is frozen: it then runs once for each clip, for
    all runs with this encoder and these clips. With `clips.num_clips` clips come again within a run. Left out, the
    encoder runs in every update."""
    best_metric: Literal["psnr", "ssim", "lpips_alex"] | None = None
    """Also keep the checkpoint with the best validation by this metric, as `best` in the run's folder."""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """When a value is not finite: end the run with what helps ("stop"), or go back to the last checkpoint and train on
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
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The loss. A weight is a number or a ramp, e.g. `{weight: 1.0, start: 1000, steps: 500}`."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The discriminators."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How weights are updated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # While a process replaces workers that do not answer, the others must not give it up.
        shortest = MAX_FAILURES * self.clips.timeout
        self.refuse("process_timeout", self.process_timeout <= shortest, times=MAX_FAILURES, shortest=shortest)
        self.refuse("longest process_timeout", self.process_timeout > 365 * 86_400)
        starts_other = self.init is not None and (self.model is not None or self.trainable.weights == "lora")
        self.refuse("init", starts_other, got=describe(self.init))
        if not self.clips.has_colours:
            self._turn_lpips_off()
        self._check_discriminators()
        smallest = min(self.clips.train_buckets, key=lambda bucket: min(bucket.height, bucket.width))
        side = min(smallest.height, smallest.width)
        self.discriminator.check_size(side)
        if self.sharding != "none":
            self.refuse("sharded latent_cache", self.latent_cache is not None, got=repr(self.latent_cache))
            self.refuse("sharded optimizer", self.optimizer.name != "adamw")
            self.refuse("sharded precision", self.mixed_precision == "fp16")
        if self.dynamo_backend != "no":
            self._check_compilation()
        self.refuse("size for LPIPS", side < MIN_SIZES["alex"], got=str(smallest), least=MIN_SIZES["alex"])

    def _turn_lpips_off(self) -> None:
        targets = [term.target for term in self.objective.named_terms.values()]
        others = [name for name in ("alignment", "gram") if name in targets]
        self.refuse("colours", others, what=" and ".join(others))
        self.refuse("features", self.discriminator.video == "features", got="features, which knows RGB")
        self.refuse("best_metric", self.best_metric == "lpips_alex")
        object.__setattr__(self, "objective", replace(self.objective, perceptual_weight=0.0))

    def _check_compilation(self) -> None:
        others = {
            "sharding": self.sharding != "none",
            "temporal_chunk": self.temporal_chunk,
            "model_gradient_checkpointing": self.model_gradient_checkpointing,
            "objective.gradient_checkpointing": self.objective.gradient_checkpointing,
        }
        for name, is_on in others.items():
            self.refuse("compilation", is_on, other=name)

    @property
    def clips_per_pass(self) -> int:
        """`batch_size` as a number; "auto" must have been replaced by one."""
        assert isinstance(self.batch_size, int)
        return self.batch_size

    def clips_per_step(self, num_processes: int) -> int:
        """Return the number of clips in an update, over all processes."""
        return self.clips_per_pass * self.gradient_accumulation_steps * num_processes

    def _check_discriminators(self) -> None:
        objective, discriminator, terms = self.objective, self.discriminator, self.objective.all_terms()
        adversarial = terms["adversarial"].ramp.is_ever_on
        multiscale = terms["multiscale_adversarial"].ramp.is_ever_on
        has_scales = discriminator.num_scales > 0
        self.refuse("no discriminator", adversarial and discriminator.image == discriminator.video == "none")
        self.refuse("scales", multiscale != has_scales)
        self.refuse("scales of video", has_scales and discriminator.video == "none")
        for term in (each for each in terms.values() if each.needs == "any discriminator" and each.ramp.is_ever_on):
            self.refuse("no adversarial term", not (adversarial or multiscale), setting=term.setting)
        starts_late = objective.gan.disc_train_start > objective.disc_start
        self.refuse("disc_train_start", (adversarial or multiscale) and starts_late)


@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    """The settings of a run that trains a student. `model` and `causal_vae` follow from teacher and student."""

    teacher: str | None = None
    """The autoencoder to learn from, which is frozen: a folder or a Hub id of diffusers, of a whole pipeline or of its
    VAE; a run of telecine; or tiny, the model in the package."""
    student: str = "small"
    """The student's decoder: "small", "tiny", "teacher" for one like that of a telecine model, or a YAML or JSON file
    with settings of `causal_vae`."""
    train_encoder: bool = False
    """Train an encoder of the same size, too, instead of keeping the teacher's."""
    latent_weight: Annotated[float, partial(check_positive, remedy="The latent would be another one.")] = 1.0
    """With `train_encoder`: weight of the error of its latent against the teacher's, in units of its variance."""
    teacher_weight: Annotated[float, check_weight] = 0.0
    """Weight of the mean absolute error against the teacher's reconstruction, beside the terms against the video."""
    feature_weight: Annotated[float, check_weight] = 0.0
    """Weight of the squared error of features inside the student's decoder against those of the teacher's, mapped by
    trained projections, each channel in units of its variance. An update then decodes twice."""
    feature_layers: tuple[str, ...] = ()
    """With `feature_weight`: the layers of the teacher's decoder, by name, e.g. [up_blocks.0, up_blocks.1]. Left out,
    the last one of each height and width that the student has inside, too."""
    teacher_decode_steps: int = 8
    """Steps in which a teacher that generates decodes. A student that generates, too, learns to make the same of the
    same noise in one step, as SSDD (arXiv:2510.04961): the teacher's sample replaces the video in the objective."""

    def __post_init__(self) -> None:
        self.refuse("init of a student", self.init is not None and not self.train_encoder)
        super().__post_init__()
        self.refuse("low rank of a student", self.trainable.weights == "lora")
