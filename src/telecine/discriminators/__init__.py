"""Discriminators of images and videos, with the state-dict names of CogVideo's, and how a config names them."""

from telecine.discriminators.attention import FeedForward, LinearSpaceAttention
from telecine.discriminators.blocks import DiscriminatorBlock, DiscriminatorBlock3D
from telecine.discriminators.blur import Blur
from telecine.discriminators.build import build_discriminator
from telecine.discriminators.first_frame import CausalConv3d, DiscriminatorBlock3DWithfirstframe, DownSample3D
from telecine.discriminators.image import Discriminator
from telecine.discriminators.video import Discriminator3D, Discriminator3DWithfirstframe

__all__ = [
    "Blur",
    "CausalConv3d",
    "Discriminator",
    "Discriminator3D",
    "Discriminator3DWithfirstframe",
    "DiscriminatorBlock",
    "DiscriminatorBlock3D",
    "DiscriminatorBlock3DWithfirstframe",
    "DownSample3D",
    "FeedForward",
    "LinearSpaceAttention",
    "build_discriminator",
]
