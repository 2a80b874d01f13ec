"""The 3D-to-2D discriminators: video blocks while time lasts, then the image discriminator's blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from torch import Tensor, nn

from telecine.discriminators.blocks import (
    DiscriminatorBlock,
    DiscriminatorBlock3D,
    Head,
    as_image_size,
    check_choice,
    check_input,
    check_positive,
    head_size,
    layer_widths,
    with_attention,
)
from telecine.discriminators.first_frame import (
    PAD_MODES,
    DiscriminatorBlock3DWithfirstframe,
    PadMode,
    mean_over_frames,
)
from telecine.discriminators.output import DiscriminatorOutput, Sees
from telecine.discriminators.recompute import Recomputing

TimeWeighting: TypeAlias = Literal["positions", "frames"]
TIME_WEIGHTINGS: tuple[TimeWeighting, ...] = get_args(TimeWeighting)


class _HybridDiscriminator(Recomputing):
    """`floor(log2(frame_num))` video blocks, the mean over what is left of time, then 2D blocks with attention.

    The last block is always a 2D one without a stride, so long clips at small sizes keep some frames for the mean.
    """

    sees: ClassVar[Sees] = "video"
    samples_are_independent: ClassVar[bool] = True
    time_weighting: TimeWeighting = "positions"

    def __init__(
        self,
        video_block: Callable[..., nn.Module],
        *,
        dim: int,
        image_size: Any,
        frame_num: int,
        channels: int,
        max_dim: int,
        linear_attn_dim_head: int,
        linear_attn_heads: int,
        ff_mult: int,
        antialiased_downsample: bool,
        antialiased_time: bool,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, frame_num=frame_num, channels=channels, max_dim=max_dim, ff_mult=ff_mult)
        check_positive(linear_attn_dim_head=linear_attn_dim_head, linear_attn_heads=linear_attn_heads)
        if antialiased_time and not antialiased_downsample:
            raise ValueError("`antialiased_time` must come with `antialiased_downsample=True`, which is off.")
        self.channels = channels
        size = as_image_size(image_size)
        widths = layer_widths(dim, size, channels, max_dim)
        self.temporal_num_layers = min(frame_num.bit_length() - 1, len(widths) - 1)
        self.blocks = nn.ModuleList()
        for level, (width_in, width_out) in enumerate(widths, start=1):
            is_last = level == len(widths)
            if level <= self.temporal_num_layers:
                self.blocks.append(
                    video_block(width_in, width_out, antialiased_downsample, antialiased_time=antialiased_time)
                )
            else:
                block = DiscriminatorBlock(width_in, width_out, not is_last, antialiased_downsample)
                self.blocks.append(with_attention(block, width_out, linear_attn_dim_head, linear_attn_heads, ff_mult))
        self.to_logits = Head(widths[-1][1], head_size(size))

    def forward(self, x: Tensor) -> DiscriminatorOutput:
        """Map videos `(B, C, T, H, W)` in [-1, 1] to logits `(B,)` and each block's output; larger means more real.

        The first features have a time axis, those after the mean over time do not.

        Raises:
            ValueError: If the input is not a batch of videos with the channels it was built for.
        """
        check_input(x, ndim=5, channels=self.channels)
        num_frames = x.shape[2]
        features = []
        for level, block in enumerate(self.blocks):
            x = self._mean_over_time(x, num_frames) if level == self.temporal_num_layers else x
            x = self.run_block(block, x)
            features.append(x)
        return DiscriminatorOutput(self.to_logits(x), tuple(features))

    def _mean_over_time(self, x: Tensor, num_frames: int) -> Tensor:
        if self.time_weighting == "positions":
            return x.mean(dim=2)
        return mean_over_frames(x, num_frames, self.temporal_num_layers)


class Discriminator3D(_HybridDiscriminator):
    """Video discriminator of plain 3D convolutions that halve time and space together, then 2D blocks.

    Any batch, number of frames, height and width work, also others than those it was built for; clips do not see
    each other and every frame counts. Where time does not come down to one frame, its mean is taken.

    Args:
        dim: A quarter of the first block's channels; they double at each scale.
        image_size: Height and width it is built for, an int or a pair; each at least 4.
        frame_num: Number of frames it is built for.
        channels: Channels of the video.
        max_dim: Most channels of any block.
        linear_attn_dim_head: Channels of a head of the linear attention.
        linear_attn_heads: Heads of the linear attention.
        ff_mult: Width of the feed-forward layers.
        antialiased_downsample: Blur space before each stride.
        antialiased_time: Blur time as well where time is strided; only with `antialiased_downsample`.

    Raises:
        ValueError: If a size is not a positive int, or `image_size` is below 4.
    """

    def __init__(
        self,
        *,
        dim: int,
        image_size: Any,
        frame_num: int,
        channels: int = 3,
        max_dim: int = 512,
        linear_attn_dim_head: int = 8,
        linear_attn_heads: int = 16,
        ff_mult: int = 4,
        antialiased_downsample: bool = False,
        antialiased_time: bool = False,
    ) -> None:
        super().__init__(
            DiscriminatorBlock3D,
            dim=dim,
            image_size=image_size,
            frame_num=frame_num,
            channels=channels,
            max_dim=max_dim,
            linear_attn_dim_head=linear_attn_dim_head,
            linear_attn_heads=linear_attn_heads,
            ff_mult=ff_mult,
            antialiased_downsample=antialiased_downsample,
            antialiased_time=antialiased_time,
        )


class Discriminator3DWithfirstframe(_HybridDiscriminator):
    """Video discriminator of causal convolutions that keeps the first frame apart while time is pooled.

    Made for autoencoders that encode the first frame by itself (1 + 4k, 1 + 8k frames). Any batch, number of frames,
    height and width work; clips do not see each other and every frame counts: a last frame without a partner is
    pooled with itself.

    As published, the first frame counts far more than any other: 17 frames are pooled to two positions, it alone is
    one of them, and the mean takes both alike; and the causal convolutions see it again before the video begins.
    `time_weighting="frames"` mends the former, `pad_mode="constant"` most of the latter; neither has parameters.
    `frame_gradients` measures what is left.

    Args:
        dim: A quarter of the first block's channels; they double at each scale.
        image_size: Height and width it is built for, an int or a pair; each at least 4.
        frame_num: Number of frames it is built for; `floor(log2(frame_num))` times at most time is pooled.
        channels: Channels of the video.
        max_dim: Most channels of any block.
        linear_attn_dim_head: Channels of a head of the linear attention.
        linear_attn_heads: Heads of the linear attention.
        ff_mult: Width of the feed-forward layers.
        antialiased_downsample: Blur space before each stride.
        antialiased_time: Blur time as well where time is strided; only with `antialiased_downsample`.
        time_weighting: What the mean over the time that is left weighs alike: its "positions", as published, or the
            "frames" of the video, so that each position counts by the number of frames that were pooled into it.
        pad_mode: What the causal convolutions see before the first frame: the "first" frame again, as published, or
            "constant" zeros.

    Raises:
        ValueError: If a size is not a positive int, `image_size` is below 4, or an option is unknown.
    """

    def __init__(
        self,
        *,
        dim: int,
        image_size: Any,
        frame_num: int,
        channels: int = 3,
        max_dim: int = 512,
        linear_attn_dim_head: int = 8,
        linear_attn_heads: int = 16,
        ff_mult: int = 4,
        antialiased_downsample: bool = False,
        antialiased_time: bool = False,
        time_weighting: TimeWeighting = "positions",
        pad_mode: PadMode = "first",
    ) -> None:
        check_choice(TIME_WEIGHTINGS, time_weighting=time_weighting)
        check_choice(PAD_MODES, pad_mode=pad_mode)
        super().__init__(
            partial(DiscriminatorBlock3DWithfirstframe, pad_mode=pad_mode),
            dim=dim,
            image_size=image_size,
            frame_num=frame_num,
            channels=channels,
            max_dim=max_dim,
            linear_attn_dim_head=linear_attn_dim_head,
            linear_attn_heads=linear_attn_heads,
            ff_mult=ff_mult,
            antialiased_downsample=antialiased_downsample,
            antialiased_time=antialiased_time,
        )
        self.time_weighting = time_weighting
