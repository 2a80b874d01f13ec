"""The objects of a run from its settings: the objective with its discriminators, the networks, the clips."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from telecine.autoencoders import CausalVAE
from telecine.data import (
    Clip,
    ClipDataset,
    find_videos,
    index_videos,
    sample_videos,
    split_videos,
    validation_clips,
    whole_video,
)
from telecine.devices import pick_device
from telecine.discriminators import (
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
    PatchDiscriminator,
    PatchDiscriminator3D,
)
from telecine.objective import VideoAutoencoderLoss
from telecine.shapes import argument_error
from telecine.training.acceleration import accelerate_networks
from telecine.training.config import DiscriminatorConfig, TrainConfig
from telecine.training.ema import moving_average
from telecine.training.step import Players


@dataclass(frozen=True)
class Clips:
    """What a run trains and validates on."""

    train: ClipDataset
    val: list[Clip]
    fps: float
    """Frames a second of clips of the first video, for previews."""
    num_videos: int
    num_skipped: int


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Return Accelerate's handle of the device, precision and trackers.

    Raises:
        ValueError: If the device asked for is not there, or several processes were launched.
    """
    device = pick_device(config.device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=config.mixed_precision,
        log_with=list(config.trackers),
        project_dir=config.run,
    )
    if accelerator.num_processes > 1:
        got = f"{accelerator.num_processes} of them"
        raise argument_error("the number of processes", "1", got, "Start it with `telecine train` alone for now.")
    if accelerator.device.type != device.type:
        got = f"{device.type} after {accelerator.device.type} in the same process"
        raise argument_error("device", "the same for all runs of a process", got, "Start another process.")
    missing = set(config.trackers) - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        raise argument_error("trackers", "installed", str(sorted(missing)), "Install them with pip.")
    return accelerator


def build_clips(config: TrainConfig) -> Clips:
    """Find, index and split the videos, and read the validation clips.

    Raises:
        DataError: If there is no usable video.
    """
    paths = sample_videos() if config.data is None else find_videos(config.data)
    infos, skipped = index_videos(paths)
    span = config.clips.clip_span
    if config.val_data is None:
        train, held_out = split_videos(infos, config.clips.val_fraction, span)
    else:
        held_out_infos, _ = index_videos(find_videos(config.val_data, name="val_data"))
        train, held_out = ([whole_video(info) for info in videos] for videos in (infos, held_out_infos))
    # Without zoom, as `telecine evaluate` reads clips, so that their figures can be compared.
    val = validation_clips(held_out, replace(config.clips, scale_jitter=1.0), config.val_clips)
    dataset = ClipDataset(train, config.clips, seed=config.seed)
    return Clips(dataset, val, infos[0].fps / config.clips.stride, len(infos), len(skipped))


def build_objective(config: TrainConfig) -> VideoAutoencoderLoss:
    """Return the loss with the discriminators that have a weight, built for the size of the clips."""
    is_on = {name: ramp.is_ever_on for name, ramp in config.objective.ramps().items()}
    judged, scaled = is_on["adversarial_loss_weight"], is_on["multiscale_adversarial_loss_weight"]
    scales = range(1, config.discriminator.num_scales + 1) if scaled else ()
    return VideoAutoencoderLoss(
        **{item.name: getattr(config.objective, item.name) for item in fields(config.objective)},
        discr_kwargs=image_discriminator(config) if judged else None,
        discr_3d_kwargs=video_discriminator(config, 1) if judged else None,
        multiscale_discr_kwargs=[video_discriminator(config, 2**scale) for scale in scales],
    )


def video_discriminator(config: TrainConfig, factor: int) -> nn.Module | None:
    """Return the discriminator of clips whose height and width are divided by `factor`, or None if none is wanted."""
    settings = config.discriminator
    sizes = {**_sizes(config, factor), "frame_num": config.clips.num_frames}
    if settings.video == "first_frame":
        return Discriminator3DWithfirstframe(
            **sizes, time_weighting=settings.time_weighting, pad_mode=settings.pad_mode
        )
    if settings.video == "plain":
        return Discriminator3D(**sizes)
    if settings.video == "patch":
        return PatchDiscriminator3D(**_patch_sizes(settings), num_temporal_layers=settings.num_temporal_layers)
    return None


def image_discriminator(config: TrainConfig) -> nn.Module | None:
    """Return the discriminator of single frames, or None if none is wanted."""
    if config.discriminator.image == "attention":
        return Discriminator(**_sizes(config, 1))
    if config.discriminator.image == "patch":
        return PatchDiscriminator(**_patch_sizes(config.discriminator))
    return None


def _sizes(config: TrainConfig, factor: int) -> dict[str, Any]:
    settings = config.discriminator
    return {
        "dim": settings.dim,
        "max_dim": settings.max_dim,
        "image_size": (-(-config.clips.height // factor), -(-config.clips.width // factor)),
        "antialiased_downsample": settings.antialiased_downsample,
    }


def _patch_sizes(settings: DiscriminatorConfig) -> dict[str, Any]:
    return {
        "dim": 4 * settings.dim,  # of the first layer, as the other kinds have it
        "max_dim": settings.max_dim,
        "num_layers": settings.num_layers,
        "norm": settings.norm,
    }


def build_players(config: TrainConfig, accelerator: Accelerator) -> Players:
    """Return networks, optimizers and moving average on the accelerator's device.

    Raises:
        ValueError: If the clips do not fit the model's strides, or a setting of a network is wrong.
    """
    model = CausalVAE(config.model)
    model.check_clip(config.clips.num_frames, config.clips.height, config.clips.width)
    objective = build_objective(config)
    accelerate_networks(
        objective,
        channels_last=config.channels_last,
        dynamo_backend=config.dynamo_backend,
        device=accelerator.device,
    )
    settings = config.optimizer
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if learned := objective.get_trainable_autoencoder_parameters():
        groups.append({"params": learned, "weight_decay": 0.0})  # a variance, which nothing draws to 1
    optimizer = torch.optim.AdamW(groups, settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
    weights = objective.get_trainable_parameters()
    disc_optimizer = (
        torch.optim.AdamW(weights, settings.disc_lr, betas=settings.disc_betas, weight_decay=settings.weight_decay)
        if weights
        else None
    )
    model, objective, optimizer = accelerator.prepare(model, objective, optimizer)
    return Players(
        accelerator=accelerator,
        model=model,
        objective=objective,
        optimizer=optimizer,
        disc_optimizer=accelerator.prepare(disc_optimizer) if disc_optimizer else None,
        ema=moving_average(accelerator.unwrap_model(model), settings.ema_decay),
        grad_clip=settings.grad_clip,
    )
