"""Which frames of each clip the perceptual loss compares, and in which colours."""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from telecine.base.checks import argument_error, describe
from telecine.base.randomness import Generators, rand
from telecine.base.shapes import RGBA, Frames, Video, check_video


def sample_frame_indices(
    video: Video, num_frames: int | Literal["all"], generator: Generators = None
) -> Int[Tensor, "batch k"]:
    """Draw `num_frames` different frames of each clip, uniformly and independently per clip.

    The indices `(B, k)` are on the video's device and ascend in each row, with `k = min(num_frames, T)`.

    Args:
        video: `(B, C, T, H, W)`; only its shape and device are read.
        num_frames: At least 1, or "all". A number above T selects all of them.
        generator: One generator, or one for each clip, on the video's device. All T frames are selected without a draw.

    Raises:
        ValueError: An argument is something else, or `generator` has another length than the batch.
    """
    check_video("video", video)
    if num_frames != "all" and (
        isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 1
    ):
        remedy = 'Use 1 for one frame of each clip, "all" for every frame.'
        raise argument_error("num_frames", 'a positive int or "all"', describe(num_frames), remedy)
    batch = video.shape[0]
    time = video.shape[2]
    if isinstance(num_frames, str) or num_frames >= time:
        return torch.arange(time, device=video.device).repeat(batch, 1)
    noise = rand((batch, time), device=video.device, generator=generator)
    return noise.topk(num_frames, dim=1).indices.sort(dim=1).values


def pick_frames(video: Video, indices: Int[Tensor, "batch k"]) -> Frames:
    """Return the frames `indices` `(B, k)` of each clip of `video` `(B, C, T, H, W)` as one batch `(B * k, C, H, W)`.

    Frame j of clip b is at position `b * k + j`. The result is contiguous, in the video's dtype; the graph is kept.
    Nothing is read from the device, so PyTorch reports an index outside 0 ... T - 1.

    Raises:
        ValueError: `video` is not a video, or `indices` are not integers `(B, k)` on its device.
    """
    check_video("video", video)
    is_index = (
        isinstance(indices, Tensor)
        and indices.dtype == torch.int64
        and indices.device == video.device
    )
    if not is_index or indices.ndim != 2 or len(indices) != len(video):
        contract = f"an int64 tensor of shape ({len(video)}, k) on {video.device}"
        raise argument_error(
            "indices", contract, describe(indices), "Use `sample_frame_indices(video, ...)`."
        )
    clips = torch.arange(video.shape[0], device=video.device)[:, None]
    return video.transpose(1, 2)[clips, indices].flatten(0, 1).contiguous()


def as_rgb(video: Tensor, background: Tensor | float = 0.0) -> Tensor:
    """Return `(N, C, ...)` in [-1, 1] as RGB, with its graph: grey repeated, RGBA composited on a colour `(N / k, 3)`.

    Other numbers of channels are returned as they are. The default colour, mid-grey, shows light and dark pixels alike.
    """
    if video.shape[1] == 1:
        return video.expand(-1, 3, *video.shape[2:])
    if video.shape[1] != RGBA:
        return video
    colours, alpha = video.split([3, 1], dim=1)
    if isinstance(background, Tensor):
        background = background.to(video.dtype).repeat_interleave(
            len(video) // len(background), dim=0
        )
        background = background.reshape(-1, 3, *[1] * (video.ndim - 2))
    return background + (alpha + 1) / 2 * (colours - background)
