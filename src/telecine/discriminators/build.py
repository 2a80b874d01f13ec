"""The discriminators of a run, from its settings."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields

from torch import nn

from telecine.discriminators.base import ConditionalDiscriminator, GradientCheckpointing
from telecine.discriminators.features import FeatureDiscriminator
from telecine.discriminators.patch import PatchDiscriminator, PatchDiscriminator3D
from telecine.discriminators.residual import Discriminator, Discriminator3D, Discriminator3DWithfirstframe
from telecine.perceptual.feature_maps import build_maps
from telecine.settings import ClipConfig, DiscriminatorConfig

# The classes by the names that the settings have; those of frozen features are built apart.
IMAGE: Mapping[str, type[GradientCheckpointing]] = {"attention": Discriminator, "patch": PatchDiscriminator}
VIDEO: Mapping[str, type[GradientCheckpointing]] = {
    "patch": PatchDiscriminator3D,
    "plain": Discriminator3D,
    "first_frame": Discriminator3DWithfirstframe,
}


def build_image_discriminator(config: DiscriminatorConfig, clips: ClipConfig) -> nn.Module | None:
    """Return the discriminator of single frames of the clips, or None without one."""
    return None if config.image == "none" else _build(IMAGE[config.image], config, clips)


def build_video_discriminators(
    config: DiscriminatorConfig, clips: ClipConfig, factors: Sequence[int], *, load: bool
) -> list[nn.Module]:
    """Return the discriminators of clips of 1/factor of the height and width, one for each factor.

    Without `load`, the frozen network of discriminators on features is random.
    """
    if config.video == "none" or not factors:
        return []
    if config.video != "features":
        return [_build(VIDEO[config.video], config, clips, factor) for factor in factors]
    net, weights, layers, size = astuple(config.features)
    shared = build_maps(net, weights, layers, load=load, prefix="discriminator.features.")
    heads = {"dim": 4 * config.dim, "size": size, "conditional": config.conditional}
    return [FeatureDiscriminator(net=shared, **heads) for _ in factors]


def _build(
    kind: type[GradientCheckpointing], config: DiscriminatorConfig, clips: ClipConfig, factor: int = 1
) -> nn.Module:
    is_patch = kind in (PatchDiscriminator, PatchDiscriminator3D)
    options = {
        **{field.name: getattr(config, field.name) for field in fields(config)},
        "channels": clips.num_channels * (1 + config.conditional),
        "dim": config.dim * (4 if is_patch else 1),  # of the other kinds, a quarter of the channels of the first block
        "image_size": (-(-clips.height // factor), -(-clips.width // factor)),
        "frame_num": clips.num_frames,
    }
    network = kind(**{name: options[name] for name in inspect.signature(kind).parameters if name in options})
    return ConditionalDiscriminator(network) if config.conditional else network
