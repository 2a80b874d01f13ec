"""Discriminators of images and videos: CogVideo's with its state-dict names, PatchGAN, frozen features, pairs."""

from telecine.discriminators.attention import FeedForward, LinearSpaceAttention
from telecine.discriminators.augment import augment, check_augmentations
from telecine.discriminators.base import DiscriminatorOutput, as_output, frame_gradients, frozen
from telecine.discriminators.blocks import DiscriminatorBlock, DiscriminatorBlock3D
from telecine.discriminators.build import DiscriminatorSpec, build_discriminator
from telecine.discriminators.conditional import ConditionalDiscriminator
from telecine.discriminators.features import FeatureDiscriminator
from telecine.discriminators.first_frame import CausalConv3d, DiscriminatorBlock3DWithfirstframe, DownSample3D
from telecine.discriminators.image import Discriminator
from telecine.discriminators.layers import Blur
from telecine.discriminators.patch import PatchDiscriminator, PatchDiscriminator3D
from telecine.discriminators.video import Discriminator3D, Discriminator3DWithfirstframe
from telecine.settings import Augmentation

__all__ = [
    "Augmentation",
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
    "check_augmentations",
    "frame_gradients",
    "frozen",
]
