"""The discriminators of a run from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from torch import nn

from telecine.discriminators import (
    ConditionalDiscriminator,
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
    FeatureDiscriminator,
    PatchDiscriminator,
    PatchDiscriminator3D,
)
from telecine.discriminators.base import GradientCheckpointing
from telecine.perceptual.feature_maps import build_maps
from telecine.settings import DiscriminatorConfig, TrainConfig


def video_discriminators(config: TrainConfig, factors: Sequence[int], *, load: bool = True) -> list[nn.Module]:
    """Return the discriminators of clips whose height and width are divided by each factor, or none if so set."""
    settings = config.discriminator
    if settings.video == "none" or not factors:
        return []
    if settings.video != "features":
        return [_conditional(settings, _video_network(config, factor)) for factor in factors]
    net, weights, layers, size = astuple(settings.features)
    shared = build_maps(net, weights, layers, load=load, prefix="discriminator.features.")
    options = {"dim": 4 * settings.dim, "size": size, "conditional": settings.conditional}
    return [FeatureDiscriminator(net=shared, **options) for _ in factors]


def _video_network(config: TrainConfig, factor: int) -> GradientCheckpointing:
    settings = config.discriminator
    if settings.video == "patch":
        return PatchDiscriminator3D(**_patch_sizes(settings), num_temporal_layers=settings.num_temporal_layers)
    sizes = {**_sizes(config, factor), "frame_num": config.clips.num_frames}
    if settings.video == "plain":
        return Discriminator3D(**sizes)
    return Discriminator3DWithfirstframe(**sizes, time_weighting=settings.time_weighting)


def image_discriminator(config: TrainConfig) -> nn.Module | None:
    """Return the discriminator of single frames, or None if none is wanted."""
    settings = config.discriminator
    if settings.image == "attention":
        return _conditional(settings, Discriminator(**_sizes(config, 1)))
    if settings.image == "patch":
        return _conditional(settings, PatchDiscriminator(**_patch_sizes(settings)))
    return None


def _conditional(settings: DiscriminatorConfig, network: GradientCheckpointing) -> nn.Module:
    return ConditionalDiscriminator(network) if settings.conditional else network


def _channels(settings: DiscriminatorConfig) -> int:
    return 6 if settings.conditional else 3


def _sizes(config: TrainConfig, factor: int) -> dict[str, Any]:
    settings = config.discriminator
    return {
        "dim": settings.dim,
        "channels": _channels(settings),
        "max_dim": settings.max_dim,
        "image_size": (-(-config.clips.height // factor), -(-config.clips.width // factor)),
        "antialiased_downsample": settings.antialiased_downsample,
    }


def _patch_sizes(settings: DiscriminatorConfig) -> dict[str, Any]:
    return {
        "dim": 4 * settings.dim,  # of the first layer, as the other kinds have it
        "channels": _channels(settings),
        "max_dim": settings.max_dim,
        "num_layers": settings.num_layers,
        "norm": settings.norm,
    }
