"""The discriminators of MAGVIT-2's public code and CogVideo: residual blocks with attention, one logit per sample."""

import operator
from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias, get_args

from torch import Tensor, nn

from telecine.base.checks import argument_error, check_choice, check_count, describe
from telecine.discriminators.attention import with_attention
from telecine.discriminators.blocks import (
    CausalConv3d,
    DiscriminatorBlock,
    DiscriminatorBlock3D,
    DiscriminatorBlock3DWithfirstframe,
    Head,
    PadMode,
)
from telecine.discriminators.gradient_checkpointing import GradientCheckpointing
from telecine.discriminators.output import DiscriminatorOutput, Sees, check_batch

TimeWeighting: TypeAlias = Literal["positions", "frames"]

# The smallest size with at least one block, which published networks use too.
_MIN_SIZE = 4


class _ResidualDiscriminator(GradientCheckpointing):
    """`floor(log2(frame_num))` video blocks, the mean over the remaining time, then 2D blocks with attention.

    The last block is always a 2D one without a stride, so several frames of long clips at small sizes remain for the
    mean. With one frame, all blocks are 2D.
    """

    sees: ClassVar[Sees] = "video"
    samples_are_independent: ClassVar[bool] = True
    video_block: ClassVar[type[nn.Module]] = DiscriminatorBlock3D
    time_weighting: TimeWeighting = "positions"

    def __init__(
        self,
        *,
        dim: int,
        image_size: int | Sequence[int],
        frame_num: int,
        channels: int = 3,
        max_dim: int = 512,
        linear_attn_dim_head: int = 8,
        linear_attn_heads: int = 16,
        ff_mult: int = 4,
        antialiased_downsample: bool = False,
        antialiased_time: bool = False,
    ) -> None:
        super().__init__()
        if antialiased_time:
            contract = "False, as the blur over time was removed"
            remedy = "Leave it out, and start a new run."
            raise argument_error("antialiased_time", contract, antialiased_time, remedy)
        check_count("dim", dim)
        check_count("frame_num", frame_num)
        check_count("channels", channels)
        check_count("max_dim", max_dim)
        check_count("ff_mult", ff_mult)
        check_count("linear_attn_dim_head", linear_attn_dim_head)
        check_count("linear_attn_heads", linear_attn_heads)
        height, width = _as_image_size(image_size)
        # They reduce the shorter side to at least 4 and below 8.
        num_downsamplings = min(height, width).bit_length() - 3
        num_blocks = num_downsamplings + 1
        self.channels = channels
        self.temporal_num_layers = min(frame_num.bit_length() - 1, num_downsamplings)
        self.blocks = nn.ModuleList()
        width_in = channels
        for index in range(num_blocks):
            width_out = min(4 * dim * 2**index, max_dim)
            if index < self.temporal_num_layers:
                block = self.video_block(width_in, width_out, antialiased_downsample)
            else:
                is_last = index == num_blocks - 1
                block = DiscriminatorBlock(
                    width_in,
                    width_out,
                    downsample=not is_last,
                    antialiased_downsample=antialiased_downsample,
                )
                block = with_attention(
                    block,
                    width_out,
                    dim_head=linear_attn_dim_head,
                    heads=linear_attn_heads,
                    ff_mult=ff_mult,
                )
            self.blocks.append(block)
            width_in = width_out
        # The head's map is rounded down, as in published checkpoints.
        self.to_logits = Head(width_in, (height >> num_downsamplings, width >> num_downsamplings))

    def forward(self, x: Tensor) -> DiscriminatorOutput:
        """Map images `(B, C, H, W)` or videos `(B, C, T, H, W)` in [-1, 1] to logits `(B,)` and each block's output.

        Larger logits mean more real. Only features of videos before the mean over time have a time axis.

        Raises:
            ValueError: If the input has another number of axes or channels.
        """
        check_batch(x, self.sees, self.channels)
        num_frames = x.shape[2]
        features = []
        for index, block in enumerate(self.blocks):
            if x.ndim == 5 and index == self.temporal_num_layers:
                if self.time_weighting == "positions":
                    x = x.mean(dim=2)
                else:
                    x = mean_over_frames(x, num_frames, self.temporal_num_layers)
            x = self.run_block(block, x)
            features.append(x)
        return DiscriminatorOutput(self.to_logits(x), tuple(features))


def mean_over_frames(x: Tensor, num_frames: int, num_poolings: int) -> Tensor:
    """Return the mean over time `(B, C, H, W)` of a pooled video; each position has the weight of its pooled frames.

    The first position contains the first of `num_frames` frames, the following ones `2**num_poolings` frames each, and
    the last one the remaining frames.

    Args:
        x: The pooled video `(B, C, t, H, W)`.
        num_frames: Number of frames before pooling.
        num_poolings: How often pairs of frames were pooled.
    """
    span = 2**num_poolings
    # Filled on the device: copying a list of weights to it may make the host wait.
    weights = x.new_full((x.shape[2], 1, 1), span / num_frames)
    weights[-1].fill_(((num_frames - 2) % span + 1) / num_frames)
    weights[0].fill_(1 / num_frames)
    return (x * weights).sum(2)


def _as_image_size(image_size: object) -> tuple[int, int]:
    """Return `(height, width)`; raise a `ValueError` unless it is an int or a sequence of two ints, at least 4."""
    if isinstance(image_size, int):
        image_size = (image_size, image_size)
    try:
        height, width = map(operator.index, image_size)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        contract = "an int or a pair of ints (height, width)"
        remedy = "Pass the size of the training crops."
        raise argument_error("image_size", contract, describe(image_size), remedy) from None
    if min(height, width) < _MIN_SIZE:
        remedy = "Build the discriminator for larger crops, or up-sample small ones first."
        raise argument_error("image_size", f"at least {_MIN_SIZE}", f"{height} x {width}", remedy)
    return height, width


class Discriminator(_ResidualDiscriminator):
    """StyleGAN-like image discriminator with linear attention, as in MAGVIT-2's public code and CogVideo.

    Any batch, height and width work, including other sizes than the one it was built for; samples are independent.

    Args:
        dim: A quarter of the first block's channels; they double at each scale.
        image_size: Height and width that it is built for, an int or a pair; each at least 4.
        channels: Channels of the images.
        max_dim: Maximum of channels of any block.
        attn_heads, attn_dim_head: Without effect, as in CogVideo; published configurations contain them.
        linear_attn_dim_head, linear_attn_heads: Channels per head and heads of the linear attention.
        ff_mult: Width of the feed-forward layers.
        antialiased_downsample: Blur before each stride.

    Raises:
        ValueError: If a size is not a positive int, or `image_size` is below 4.
    """

    sees = "frames"

    def __init__(
        self,
        *,
        dim: int,
        image_size: int | Sequence[int],
        channels: int = 3,
        max_dim: int = 512,
        attn_heads: int = 8,
        attn_dim_head: int = 32,
        linear_attn_dim_head: int = 8,
        linear_attn_heads: int = 16,
        ff_mult: int = 4,
        antialiased_downsample: bool = False,
    ) -> None:
        super().__init__(
            dim=dim,
            image_size=image_size,
            frame_num=1,
            channels=channels,
            max_dim=max_dim,
            linear_attn_dim_head=linear_attn_dim_head,
            linear_attn_heads=linear_attn_heads,
            ff_mult=ff_mult,
            antialiased_downsample=antialiased_downsample,
        )


class Discriminator3D(_ResidualDiscriminator):
    """Video discriminator of plain 3D convolutions that halve time and space together, then 2D blocks.

    Any batch, number of frames, height and width work, including others than those it was built for. Clips are
    independent, and the logits depend on every frame. If more than one frame remains, their mean is used.

    Args:
        dim, image_size, channels, max_dim, linear_attn_dim_head, linear_attn_heads, ff_mult: See `Discriminator`.
        frame_num: Number of frames that it is built for; time is halved at most `floor(log2(frame_num))` times.
        antialiased_downsample: Blur space before each stride.
        antialiased_time: False, which older configurations may contain.

    Raises:
        ValueError: If a size is not a positive int, `image_size` is below 4, or `antialiased_time` is True.
    """


class Discriminator3DWithfirstframe(_ResidualDiscriminator):
    """Video discriminator of causal convolutions whose temporal pooling keeps the first frame separate.

    Made for autoencoders that encode the first frame separately (1 + 4k, 1 + 8k frames). Any batch, number of frames,
    height and width work. Clips are independent, and the logits depend on every frame.

    As published, the first frame has far more weight than any other: 17 frames are pooled to two positions of the same
    weight, one of which is the first frame, and the causal convolutions are padded with copies of it.
    `time_weighting="frames"` corrects the former, `pad_mode="constant"` most of the latter; neither has parameters.

    Args:
        dim, image_size, channels, max_dim, linear_attn_dim_head, linear_attn_heads, ff_mult: See `Discriminator`.
        frame_num, antialiased_downsample, antialiased_time: See `Discriminator3D`.
        time_weighting: Weights of the mean over the remaining time: equal for all "positions", as published, or equal
            for all "frames" of the video, so that a position is weighted by the number of frames pooled into it.
        pad_mode: Padding of the causal convolutions before the first frame: copies of the "first" frame, as published,
            or "constant" zeros.

    Raises:
        ValueError: If a size is not a positive int, `image_size` is below 4, an option is unknown, or
            `antialiased_time` is True.
    """

    video_block = DiscriminatorBlock3DWithfirstframe

    def __init__(
        self,
        *,
        dim: int,
        image_size: int | Sequence[int],
        frame_num: int,
        channels: int = 3,
        max_dim: int = 512,
        linear_attn_dim_head: int = 8,
        linear_attn_heads: int = 16,
        ff_mult: int = 4,
        antialiased_downsample: bool = False,
        time_weighting: TimeWeighting = "positions",
        pad_mode: PadMode = "first",
        antialiased_time: bool = False,
    ) -> None:
        check_choice("time_weighting", time_weighting, get_args(TimeWeighting))
        check_choice("pad_mode", pad_mode, get_args(PadMode))
        super().__init__(
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
        for module in self.modules():
            if isinstance(module, CausalConv3d):
                module.pad_mode = pad_mode
