"""The names of CogVideo's `sat/sgm/modules/autoencoding/losses/video_loss.py`, for YAML `target:` lines and imports.

In a training configuration, replace `sgm.modules.autoencoding.losses.video_loss` (with or without `sat.` before it) by
`telecine.cogvideo` to use telecine's classes.
"""

from telecine.discriminators import Discriminator as Discriminator
from telecine.discriminators import Discriminator3D as Discriminator3D
from telecine.discriminators import Discriminator3DWithfirstframe as Discriminator3DWithfirstframe
from telecine.discriminators.attention import FeedForward as FeedForward
from telecine.discriminators.attention import LinearSpaceAttention as LinearSpaceAttention
from telecine.discriminators.blocks import Blur as Blur
from telecine.discriminators.blocks import CausalConv3d as CausalConv3d
from telecine.discriminators.blocks import DiscriminatorBlock as DiscriminatorBlock
from telecine.discriminators.blocks import DiscriminatorBlock3D as DiscriminatorBlock3D
from telecine.discriminators.blocks import (
    DiscriminatorBlock3DWithfirstframe as DiscriminatorBlock3DWithfirstframe,
)
from telecine.discriminators.blocks import DownSample3D as DownSample3D
from telecine.objective import VideoAutoencoderLoss as VideoAutoencoderLoss

__all__ = [name for name in dir() if name[0].isupper()]
