"""Which frames of a clip the perceptual loss looks at, and taking them out, without leaving the video's device."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from telecine.randomness import Generators, check_generators, rand, randint
from telecine.shapes import Frames, Video, argument_error, check_video, describe


def sample_frame_indices(
    video: Video, num_frames: int | str, generator: Generators = None, stride: int = 1
) -> Int[Tensor, "batch k"]:
    """Draw `num_frames` different frames of each clip, uniformly and independently per clip.

    Args:
        video: (B, C, T, H, W); only its shape and device are read.
        num_frames: at least 1, or "all"; more than there are to choose from means all of them.
        generator: makes the draw reproducible; one, or one for each clip, on the video's device. Where all T frames
            are taken, nothing is drawn.
        stride: n > 1 leaves only every n-th frame to choose from, ceil(T / n) of them, from a frame that is drawn per
            clip on and round the end of the clip: every frame of it is equally likely all the same.

    Returns:
        Indices (B, k) on the video's device, ascending in each row, k = min(num_frames, ceil(T / stride)). Nothing
        waits for the device.

    Raises:
        ValueError: `video` is no video, `num_frames` is below 1 or another word, `stride` is below 1, `generator` is
            on another device or of another number than the clips.
        TypeError: `num_frames` is neither an integer nor a string, or `stride` is no integer.
    """
    check_video("video", video)
    _check_num_frames(num_frames)
    _check_stride(stride)
    check_generators(generator, len(video), video.device)
    candidates = _every_nth_frame(video, stride, generator)
    batch, num_candidates = candidates.shape
    if isinstance(num_frames, str) or num_frames >= num_candidates:
        return candidates
    noise = rand((batch, num_candidates), device=video.device, generator=generator)
    return candidates.gather(1, noise.topk(num_frames, dim=1).indices.sort(dim=1).values)


def pick_frames(video: Video, indices: Int[Tensor, "batch k"]) -> Frames:
    """Return the frames `indices` (B, k) of each clip of `video` (B, C, T, H, W) as one batch (B * k, C, H, W).

    Frame j of clip b is at position b * k + j. The result is contiguous, in the video's dtype, and differentiable with
    respect to the video; nothing waits for the device, so an index outside 0 ... T - 1 is PyTorch's error to report.

    Raises:
        ValueError: `video` is no video, or `indices` are no integers (B, k) on its device.
    """
    check_video("video", video)
    _check_indices(indices, video)
    clips = torch.arange(video.shape[0], device=video.device)[:, None]
    return video.transpose(1, 2)[clips, indices].flatten(0, 1).contiguous()


def _every_nth_frame(video: Video, stride: int, generator: Generators) -> Int[Tensor, "batch candidate"]:
    """Return every n-th frame of each clip, ascending, from a random frame on and round the clip's end."""
    batch, time = video.shape[0], video.shape[2]
    # 0, n, 2n, ... below T: any two are less than T apart, so they remain different frames when counted round the end.
    steps = torch.arange(0, time, min(stride, time), device=video.device).repeat(batch, 1)
    if stride == 1:
        return steps
    first = randint(time, (batch, 1), device=video.device, generator=generator)
    return ((first + steps) % time).sort(dim=1).values


def _check_num_frames(value: Any) -> None:
    contract, remedy = 'an integer of at least 1 or "all"', 'Pass 1 for one frame a clip, "all" for every frame.'
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise argument_error("num_frames", contract, value, remedy, TypeError)
    if (isinstance(value, str) and value != "all") or (isinstance(value, int) and value < 1):
        raise argument_error("num_frames", contract, value, remedy)


def _check_stride(value: Any) -> None:
    contract, remedy = "a positive int", "Pass 1 for every frame, n for every n-th."
    if isinstance(value, bool) or not isinstance(value, int):
        raise argument_error("stride", contract, describe(value), remedy, TypeError)
    if value < 1:
        raise argument_error("stride", contract, value, remedy)


def _check_indices(indices: Any, video: Tensor) -> None:
    contract = f"an int64 tensor of shape ({len(video)}, k) on {video.device}"
    fits = isinstance(indices, Tensor) and indices.ndim == 2 and len(indices) == len(video)
    if not fits or indices.dtype != torch.int64 or indices.device != video.device:
        raise argument_error("indices", contract, indices, "Draw them with `sample_frame_indices(video, ...)`.")
