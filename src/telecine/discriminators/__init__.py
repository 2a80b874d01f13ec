"""Discriminators of images and videos: CogVideo's with its state-dict names, PatchGAN, frozen features, pairs."""

from telecine.discriminators.augment import augment
from telecine.discriminators.base import (
    ConditionalDiscriminator,
    DiscriminatorOutput,
    as_output,
    frame_gradients,
    frozen,
)
from telecine.discriminators.blocks import (
    Blur,
    CausalConv3d,
    DiscriminatorBlock,
    DiscriminatorBlock3D,
    DiscriminatorBlock3DWithfirstframe,
    DownSample3D,
    FeedForward,
    LinearSpaceAttention,
)
from telecine.discriminators.build import DiscriminatorSpec, build_discriminator
from telecine.discriminators.features import FeatureDiscriminator
from telecine.discriminators.patch import PatchDiscriminator, PatchDiscriminator3D
from telecine.discriminators.residual import Discriminator, Discriminator3D, Discriminator3DWithfirstframe

__all__ = [
    "Blur",
    "CausalConv3d",
    "ConditionalDiscriminator",
    "Discriminator",
    "Discriminator3D",
    "Discriminator3DWithfirstframe",
    "DiscriminatorBlock",
    "DiscriminatorBlock3D",
    "DiscriminatorBlock3DWithfirstframe",
    "DiscriminatorOutput",
    "DiscriminatorSpec",
    "DownSample3D",
    "FeatureDiscriminator",
    "FeedForward",
    "LinearSpaceAttention",
    "PatchDiscriminator",
    "PatchDiscriminator3D",
    "as_output",
    "augment",
    "build_discriminator",
    "frame_gradients",
    "frozen",
]
