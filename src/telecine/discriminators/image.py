"""The 2D discriminator: residual blocks with linear attention at every scale, one logit per image."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from telecine.base.checks import check_counts
from telecine.discriminators.base import DiscriminatorOutput, GradientCheckpointing, Sees
from telecine.discriminators.blocks import (
    DiscriminatorBlock,
    Head,
    ImageSize,
    as_image_size,
    check_input,
    head_size,
    layer_widths,
    with_attention,
)


class Discriminator(GradientCheckpointing):
    """StyleGAN-like image discriminator with linear attention, as in MAGVIT-2's public code and CogVideo.

    Any batch, height and width work, including other sizes than the one it was built for; samples are independent.

    Args:
        dim: A quarter of the first block's channels; they double at each scale.
        image_size: Height and width that it is built for, an int or a pair; each at least 4.
        channels: Channels of the images.
        max_dim: Maximum of channels of any block.
        attn_heads: Without effect, as in CogVideo; accepted because published configurations contain it.
        attn_dim_head: As `attn_heads`.
        linear_attn_dim_head: Channels per head of the linear attention.
        linear_attn_heads: Heads of the linear attention.
        ff_mult: Width of the feed-forward layers.
        antialiased_downsample: Blur before each stride.

    Raises:
        ValueError: If a size is not a positive int, or `image_size` is below 4.
    """

    sees: ClassVar[Sees] = "frames"
    samples_are_independent: ClassVar[bool] = True

    def __init__(
        self,
        *,
        dim: int,
        image_size: ImageSize,
        channels: int = 3,
        max_dim: int = 512,
        attn_heads: int = 8,
        attn_dim_head: int = 32,
        linear_attn_dim_head: int = 8,
        linear_attn_heads: int = 16,
        ff_mult: int = 4,
        antialiased_downsample: bool = False,
    ) -> None:
        super().__init__()
        check_counts(dim=dim, channels=channels, max_dim=max_dim, ff_mult=ff_mult)
        check_counts(linear_attn_dim_head=linear_attn_dim_head, linear_attn_heads=linear_attn_heads)
        self.channels = channels
        size = as_image_size(image_size)
        widths = layer_widths(dim, size, channels, max_dim)
        self.blocks = nn.Sequential()
        for level, (width_in, width_out) in enumerate(widths, start=1):
            block = DiscriminatorBlock(width_in, width_out, level < len(widths), antialiased_downsample)
            self.blocks.append(with_attention(block, width_out, linear_attn_dim_head, linear_attn_heads, ff_mult))
        self.to_logits = Head(widths[-1][1], head_size(size))

    def forward(self, x: Tensor) -> DiscriminatorOutput:
        """Map images `(B, C, H, W)` in [-1, 1] to logits `(B,)` and each block's output; larger means more real.

        Raises:
            ValueError: If the input is not a batch of images with `channels` channels.
        """
        check_input(x, ndim=4, channels=self.channels)
        features = []
        for block in self.blocks:
            x = self.run_block(block, x)
            features.append(x)
        return DiscriminatorOutput(self.to_logits(x), tuple(features))
