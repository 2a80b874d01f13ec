"""The 2D discriminator: residual blocks with linear attention at every scale, one logit an image."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from telecine.discriminators.blocks import (
    DiscriminatorBlock,
    Head,
    as_image_size,
    check_input,
    check_positive,
    head_size,
    layer_widths,
    with_attention,
)
from telecine.discriminators.output import DiscriminatorOutput, Sees
from telecine.discriminators.recompute import Recomputing


class Discriminator(Recomputing):
    """StyleGAN-like image discriminator with linear attention, as in MAGVIT-2's public code and CogVideo.

    Any batch, height and width work, also other sizes than the one it was built for; samples do not see each other.

    Args:
        dim: A quarter of the first block's channels; they double at each scale.
        image_size: Height and width it is built for, an int or a pair; each at least 4.
        channels: Channels of the images.
        max_dim: Most channels of any block.
        attn_heads: Accepted because published configurations carry it; it has no effect, there as here.
        attn_dim_head: As `attn_heads`.
        linear_attn_dim_head: Channels of a head of the linear attention.
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
        image_size: Any,
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
        check_positive(dim=dim, channels=channels, max_dim=max_dim, ff_mult=ff_mult)
        check_positive(linear_attn_dim_head=linear_attn_dim_head, linear_attn_heads=linear_attn_heads)
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
            ValueError: If the input is not a batch of images with the channels it was built for.
        """
        check_input(x, ndim=4, channels=self.channels)
        features = []
        for block in self.blocks:
            x = self.run_block(block, x)
            features.append(x)
        return DiscriminatorOutput(self.to_logits(x), tuple(features))
