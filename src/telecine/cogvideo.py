"""The names of CogVideo's `sat/sgm/modules/autoencoding/losses/video_loss.py`, for YAML `target:` lines and imports.

Change `sgm.modules.autoencoding.losses.video_loss` (with or without `sat.` before it) to `telecine.cogvideo` and an
engine's configuration is telecine's.
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
