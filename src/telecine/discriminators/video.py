"""The 3D-to-2D discriminators: video blocks that halve time, then the image discriminator's blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal, TypeAlias, get_args

from torch import Tensor, nn

from telecine.base.checks import argument_error, check_choice, check_counts
from telecine.discriminators.base import DiscriminatorOutput, GradientCheckpointing, Sees
from telecine.discriminators.blocks import (
    DiscriminatorBlock,
    DiscriminatorBlock3D,
    Head,
    ImageSize,
    as_image_size,
    check_input,
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

TimeWeighting: TypeAlias = Literal["positions", "frames"]
TIME_WEIGHTINGS: tuple[TimeWeighting, ...] = get_args(TimeWeighting)


class _HybridDiscriminator(GradientCheckpointing):
    """`floor(log2(frame_num))` video blocks, the mean over the remaining time, then 2D blocks with attention.

    The last block is always a 2D one without a stride, so several frames of long clips at small sizes remain for the
    mean.
    """

    sees: ClassVar[Sees] = "video"
    samples_are_independent: ClassVar[bool] = True
    time_weighting: TimeWeighting = "positions"

    def __init__(
        self,
        video_block: Callable[..., nn.Module],
        *,
        dim: int,
        image_size: ImageSize,
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
        check_counts(dim=dim, frame_num=frame_num, channels=channels, max_dim=max_dim, ff_mult=ff_mult)
        check_counts(linear_attn_dim_head=linear_attn_dim_head, linear_attn_heads=linear_attn_heads)
        if antialiased_time and not antialiased_downsample:
            remedy = "Set `antialiased_downsample=True` as well."
            raise argument_error("antialiased_time", "False without `antialiased_downsample`", True, remedy)
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

        Features before the mean over time have a time axis, those after it do not.

        Raises:
            ValueError: If the input is not a batch of videos with `channels` channels.
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

    Any batch, number of frames, height and width work, including others than those it was built for. Clips are
    independent, and the logits depend on every frame. If more than one frame remains, their mean is used.

    Args:
        dim: A quarter of the first block's channels; they double at each scale.
        image_size: Height and width that it is built for, an int or a pair; each at least 4.
        frame_num: Number of frames that it is built for.
        channels: Channels of the video.
        max_dim: Maximum of channels of any block.
        linear_attn_dim_head: Channels per head of the linear attention.
        linear_attn_heads: Heads of the linear attention.
        ff_mult: Width of the feed-forward layers.
        antialiased_downsample: Blur space before each stride.
        antialiased_time: Blur time as well before each temporal stride; only with `antialiased_downsample`.

    Raises:
        ValueError: If a size is not a positive int, or `image_size` is below 4.
    """

    def __init__(
        self,
        *,
        dim: int,
        image_size: ImageSize,
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
    """Video discriminator of causal convolutions whose temporal pooling keeps the first frame separate.

    Made for autoencoders that encode the first frame separately (1 + 4k, 1 + 8k frames). Any batch, number of frames,
    height and width work. Clips are independent, and the logits depend on every frame: a last frame without a partner
    is pooled with itself.

    As published, the first frame has far more weight than any other: 17 frames are pooled to two positions, one of
    which is the first frame, and the mean weighs both equally; and the causal convolutions are padded with copies of
    it. `time_weighting="frames"` corrects the former, `pad_mode="constant"` most of the latter; neither has parameters.
    `frame_gradients` measures the remaining difference.

    Args:
        dim: A quarter of the first block's channels; they double at each scale.
        image_size: Height and width that it is built for, an int or a pair; each at least 4.
        frame_num: Number of frames that it is built for; time is pooled at most `floor(log2(frame_num))` times.
        channels: Channels of the video.
        max_dim: Maximum of channels of any block.
        linear_attn_dim_head: Channels per head of the linear attention.
        linear_attn_heads: Heads of the linear attention.
        ff_mult: Width of the feed-forward layers.
        antialiased_downsample: Blur space before each stride.
        antialiased_time: Blur time as well before each temporal stride; only with `antialiased_downsample`.
        time_weighting: Weights of the mean over the remaining time: equal for all "positions", as published, or equal
            for all "frames" of the video, so that a position is weighted by the number of frames pooled into it.
        pad_mode: Padding of the causal convolutions before the first frame: copies of the "first" frame, as published,
            or "constant" zeros.

    Raises:
        ValueError: If a size is not a positive int, `image_size` is below 4, or an option is unknown.
    """

    def __init__(
        self,
        *,
        dim: int,
        image_size: ImageSize,
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
        check_choice("time_weighting", time_weighting, TIME_WEIGHTINGS)
        check_choice("pad_mode", pad_mode, PAD_MODES)
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
