"""The objects of a run from its settings: the objective with its discriminators, the networks, the clips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from telecine.autoencoders import CausalVAE, VideoAutoencoder, as_video_autoencoder
from telecine.autoencoders.causal import saved_config
from telecine.autoencoders.load import class_in, folder_of, is_causal_vae, load_model_or_run
from telecine.autoencoders.student import StudentAutoencoder
from telecine.base.checks import argument_error, count, count_files
from telecine.base.devices import pick_device
from telecine.data import (
    Clip,
    ClipDataset,
    Skipped,
    Span,
    index_videos,
    load_spans,
    log_too_short,
    sample_videos,
    split_videos,
    validation_clips,
    whole_video,
)
from telecine.data.buckets import check_buckets
from telecine.objective.layer_activations import LayerActivations
from telecine.objective.weights import WeightSchedule
from telecine.runs import find_checkpoint
from telecine.settings import OptimizerConfig, TrainConfig
from telecine.training.acceleration import accelerate_networks
from telecine.training.build_discriminators import image_discriminator, video_discriminators
from telecine.training.distributed import broadcast_module, shard
from telecine.training.optim import MovingAverage
from telecine.training.process_group import (
    answer_questions,
    barrier_without_time_limit,
    process_group_settings,
    rank,
)
from telecine.training.state import TrainState
from telecine.training.trainable import select_trainable
from telecine.training.weight_files import load_discriminators

if TYPE_CHECKING:
    from telecine.objective import VideoAutoencoderLoss


@dataclass(frozen=True)
class Clips:
    """What a run trains and validates on."""

    train: ClipDataset
    val: list[Clip]
    fps: float
    """Frames a second of clips of the first video, for previews."""
    num_videos: int
    """Videos that are used."""
    num_images: int
    """Still images that are used."""
    num_skipped: int
    """Files that cannot be decoded or are shorter than a clip, and lines of a list without frames."""

    def describe(self) -> str:
        """Return the numbers of files and held-out clips, for the console."""
        skipped = f", {self.num_skipped} skipped" if self.num_skipped else ""
        return f"{count_files(self.num_videos, self.num_images)}{skipped}, {count(len(self.val), 'held-out clip')}"


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Return Accelerate's handle of the device, the processes, the precision and the trackers.

    Raises:
        ValueError: If the device asked for is not there, or does not go with the precision or the processes.
    """
    device = pick_device(config.device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=config.mixed_precision,
        log_with=list(config.trackers) or None,
        project_dir=config.output_dir,
        kwargs_handlers=[process_group_settings(config.process_timeout)],
    )
    answer_questions()
    if accelerator.device.type != device.type:
        got = f"{device.type} after {accelerator.device.type} in the same process"
        raise argument_error("device", "the same for all runs of a process", got, "Start another process.")
    if config.sharding != "none" and accelerator.num_processes == 1:
        remedy = "Launch several, e.g. with `torchrun --nproc-per-node 2 -m telecine train ...`."
        raise argument_error("sharding", '"none" in a single process', config.sharding, remedy)
    missing = set(config.trackers) - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        raise argument_error("trackers", "installed", str(sorted(missing)), "Install them with pip.")
    return accelerator


def build_autoencoder(config: TrainConfig, own: nn.Module | None = None) -> VideoAutoencoder:
    """Return the autoencoder that `config` names, whole and on the CPU, with what is not trained frozen.

    Args:
        config: The settings.
        own: A module that takes the place of what `config.model` names.

    Raises:
        ValueError: If it cannot be had, or a setting of it is wrong.
    """
    if own is not None:
        model: VideoAutoencoder = as_video_autoencoder(own)
    elif config.model is None or config.random_weights:
        model = without_weights(config)
        if isinstance(model, StudentAutoencoder):
            remedy = "Train a new student with `telecine distill`."
            raise argument_error("random_weights", "false for a student, which has a teacher", "true", remedy)
    else:
        model = load_model_or_run(config.model)
    if config.model_gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if config.temporal_chunk is not None:
        model.enable_temporal_chunks(config.temporal_chunk)
    select_trainable(model, config.trainable)
    return model.train()


def without_weights(config: TrainConfig) -> VideoAutoencoder:
    """Return the autoencoder that `config` names, with random weights: only its configuration is read."""
    if config.model is None:
        return CausalVAE(config.causal_vae)
    checkpoint = find_checkpoint(Path(config.model))
    source = config.model if checkpoint is None else str(checkpoint / "ema")
    folder = folder_of(source, with_weights=False)
    if is_causal_vae(folder):
        return CausalVAE(saved_config(folder))
    if class_in(folder) == StudentAutoencoder.__name__:
        return StudentAutoencoder.without_weights(folder, lambda name: without_weights(replace(config, model=name)))
    from telecine.autoencoders.diffusers import DiffusersAutoencoder
    from telecine.autoencoders.diffusers.loading import find_config

    is_file = source.endswith(".json")
    return DiffusersAutoencoder.from_config(
        source if is_file else find_config(source, subfolder=None, revision=None)[0]
    )


def build_clips(config: TrainConfig, model: VideoAutoencoder) -> Clips:
    """Find, index and split the videos, and read the validation clips. Every process has to call this.

    The first process indexes the videos, the others then read its index. They wait for each other for as long as that,
    and decoding for `clips.cache`, take.

    Raises:
        ValueError: If the model does not reproduce clips of a size that is asked for.
        DataError: If there is no usable video.
    """
    check_buckets(config.clips.train_buckets, model, images=config.clips.image_ratio > 0)
    with barrier_without_time_limit() as wait_for_everyone:
        if rank() > 0:
            wait_for_everyone()
        spans = find_spans(config)
        if rank() == 0:
            wait_for_everyone()
        clips = _read_clips(spans, config, model)
        wait_for_everyone()
    return clips


def _read_clips(spans: Spans, config: TrainConfig, model: VideoAutoencoder) -> Clips:
    """Return the training clips, decoded if `clips.cache` is set, and the validation clips.

    Raises:
        ValueError: If the model does not reproduce single images.
        DataError: If there is no usable video.
    """
    # Without zoom, as `telecine evaluate` reads clips, so that their figures can be compared.
    name = "data" if config.val_data is None else "val_data"
    val = validation_clips(spans.held_out, replace(config.clips, scale_jitter=1.0), config.val_clips, name=name)
    dataset = ClipDataset(spans.train, config.clips, seed=config.seed)
    check_buckets(config.clips.train_buckets, model, images=dataset.image_ratio > 0)  # images alone need no ratio
    is_image = {span.info.path: span.info.is_image for span in spans.found}
    first_video = min(dataset.spans, key=lambda span: span.info.is_image)
    return Clips(
        train=dataset,
        val=val,
        fps=first_video.info.fps / config.clips.stride,
        num_videos=len(is_image) - sum(is_image.values()) - spans.num_short if dataset.image_ratio < 1 else 0,
        num_images=sum(is_image.values()) if dataset.image_ratio > 0 else 0,
        num_skipped=len(spans.skipped) + spans.num_short,
    )


@dataclass(frozen=True)
class Spans:
    """The frames of a data set."""

    found: list[Span]
    """Of all videos and images that can be decoded, in order."""
    train: list[Span]
    held_out: list[Span]
    skipped: list[Skipped]
    """What cannot be decoded, and lines of a list without frames."""
    num_short: int
    """How many videos are shorter than a clip."""


def find_spans(config: TrainConfig) -> Spans:
    """Find, index and split the videos and images.

    Raises:
        DataError: If there is no usable video.
    """
    max_pixels = config.clips.max_pixels
    found, skipped = _demo_spans() if config.data is None else load_spans(config.data, max_pixels=max_pixels)
    num_short = log_too_short(found, min(map(config.clips.span_of, config.clips.train_buckets)))
    if config.val_data is None:
        train, held_out = split_videos(found, config.clips.val_fraction, config.clips.clip_span)
    else:
        train, (held_out, _) = found, load_spans(config.val_data, name="val_data", max_pixels=max_pixels)
    return Spans(found, train, held_out, skipped, num_short)


def _demo_spans() -> tuple[list[Span], list[Skipped]]:
    infos, skipped = index_videos(sample_videos())
    return [whole_video(info) for info in infos], skipped


def build_objective(config: TrainConfig, *, load: bool = True) -> VideoAutoencoderLoss:
    """Return the loss with the discriminators that have a weight, built for the size of the clips.

    Args:
        config: The settings.
        load: Load the weights of the frozen network of the discriminators, which is random otherwise.

    Raises:
        ValueError: A setting of a network is wrong.
        FileNotFoundError: There are no such weights.
    """
    from telecine.objective import VideoAutoencoderLoss  # slow to import

    is_on = WeightSchedule(config.objective).is_ever_on
    has_adversarial, has_scales = is_on("adversarial_loss_weight"), is_on("multiscale_adversarial_loss_weight")
    factors = [1] * has_adversarial + [
        2**scale for scale in range(1, config.discriminator.num_scales + 1) if has_scales
    ]
    videos = video_discriminators(config, factors, load=load)
    return VideoAutoencoderLoss(
        **config.objective.arguments(),
        discr_kwargs=image_discriminator(config) if has_adversarial else None,
        discr_3d_kwargs=videos.pop(0) if videos and has_adversarial else None,
        multiscale_discr_kwargs=videos,
    )


def build_state(
    config: TrainConfig, accelerator: Accelerator, model: VideoAutoencoder, *, is_resumed: bool = False
) -> TrainState:
    """Return networks, optimizers and moving average on the accelerator's device, the same on every process.

    Args:
        config: The settings.
        accelerator: Of this process.
        model: The autoencoder, see `build_autoencoder`; it is moved, and sharded if `config` says so.
        is_resumed: Whether a checkpoint is loaded next, so that the run in `discriminator.init` is not needed.

    Raises:
        ValueError: If a setting of a network is wrong.
    """
    objective = build_objective(config)
    init = None if is_resumed else config.discriminator.init
    if init is not None:
        load_discriminators(objective, init)
    objective.to(accelerator.device)
    accelerate_networks(
        objective,
        channels_last=config.channels_last,
        dynamo_backend=config.dynamo_backend,
        device=accelerator.device,
    )
    broadcast_module(objective)
    model.to(accelerator.device)
    last_layer = last_layer_of(model, config)
    broadcast_module(model)
    if config.sharding == "fsdp2":
        shard(model)
    optimizer, disc_optimizer = build_optimizers(config.optimizer, model, objective)
    wrapped = model if config.sharding == "fsdp2" else data_parallel(model, accelerator)
    return TrainState(
        accelerator=accelerator,
        model=wrapped,
        autoencoder=model,
        objective=objective,
        optimizer=optimizer,
        disc_optimizer=disc_optimizer,
        ema=MovingAverage(model, config.optimizer.ema_decay),
        last_layer=last_layer,
        grad_clip=config.optimizer.grad_clip,
        seed=config.seed,
    )


def data_parallel(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return the model in the wrapper that averages its gradients over processes, or itself if there is only one.

    Accelerate's `prepare_model` would also let the model compute in half precision wherever it is called; here training
    does, and validation does not.
    """
    if accelerator.num_processes == 1:
        return model
    devices = [accelerator.device] if accelerator.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


def last_layer_of(model: VideoAutoencoder, config: TrainConfig) -> Tensor | LayerActivations | None:
    """Return where the adaptive weight compares gradients: the last layer's weight, or its activations.

    The weight would not do if it is sharded, or if its gradient needed the activations of all temporal chunks at once.

    Raises:
        ValueError: If gradients are compared at a layer that is not trained, and so has none.
    """
    settings = config.objective.adaptive_weight
    if settings.reference == "none" or settings.at != "last_layer":
        return None
    weight = model.last_layer
    if config.sharding != "none":
        return LayerActivations(owner_of(weight, model))
    if not weight.requires_grad:
        contract, got = "`reconstruction` if the last layer is frozen", settings.at
        remedy = "Set it to `reconstruction`, which needs no layer."
        raise argument_error("objective.adaptive_weight.at", contract, got, remedy)
    return weight if config.temporal_chunk is None else LayerActivations(owner_of(weight, model))


def owner_of(weight: nn.Parameter, model: nn.Module) -> nn.Module:
    """Return the layer of which `weight` is the weight."""
    return next(layer for layer in model.modules() if getattr(layer, "weight", None) is weight)


def build_optimizers(
    settings: OptimizerConfig, model: nn.Module, objective: VideoAutoencoderLoss
) -> tuple[Optimizer, Optimizer | None]:
    """Return AdamW (arXiv:1711.05101) of the autoencoder's trained weights, and of the discriminators' if any."""
    groups: list[dict[str, Any]] = [{"params": [weight for weight in model.parameters() if weight.requires_grad]}]
    if learned := objective.get_trainable_autoencoder_parameters():
        groups.append({"params": learned, "weight_decay": 0.0})  # decay would change a variance
    decay = settings.weight_decay
    optimizer = torch.optim.AdamW(groups, settings.lr, betas=settings.betas, weight_decay=decay)
    weights = objective.get_trainable_parameters()
    if not weights:
        return optimizer, None
    return optimizer, torch.optim.AdamW(weights, settings.disc_lr, betas=settings.disc_betas, weight_decay=decay)
