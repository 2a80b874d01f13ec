"""The names of CogVideo's `sat/sgm/modules/autoencoding/losses/video_loss.py`, for YAML `target:` lines and imports.

In a training configuration, replace `sgm.modules.autoencoding.losses.video_loss` (with or without `sat.` before it) by
`telecine.cogvideo` to use telecine's classes.
"""

from telecine.discriminators import (
    Blur,
    CausalConv3d,
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
    DiscriminatorBlock,
    DiscriminatorBlock3D,
    DiscriminatorBlock3DWithfirstframe,
    DownSample3D,
    FeedForward,
    LinearSpaceAttention,
)
from telecine.objective import VideoAutoencoderLoss

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
    "VideoAutoencoderLoss",
]
