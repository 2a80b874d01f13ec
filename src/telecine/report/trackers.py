"""Video previews for the experiment trackers that can show them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from telecine.report.video import gif_bytes, mp4_bytes

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

# TensorBoard keeps every preview in its file, and shows it small: a GIF of this many pixels a side, frames and colours.
MAX_SIDE, MAX_FRAMES, NUM_COLOURS = 256, 9, 64
PREVIEW = "val/side_by_side"


def log_preview(trackers: Iterable[GeneralTracker], step: int, frames: Tensor, fps: float) -> None:
    """Log a video preview to TensorBoard (reduced) and Weights & Biases; other trackers are skipped.

    Args:
        trackers: The trackers of Accelerate, e.g. `accelerator.trackers`.
        step: The training step.
        frames: uint8 `(T, H, W, 3)`, e.g. from `side_by_side`.
        fps: Frames per second.
    """
    for tracker in trackers:
        if tracker.name == "tensorboard":
            _log_to_tensorboard(tracker, frames, fps, step)
        elif tracker.name == "wandb":
            _log_to_wandb(tracker, frames, fps, step)


def _log_to_tensorboard(tracker: GeneralTracker, frames: Tensor, fps: float, step: int) -> None:
    # `SummaryWriter.add_video` needs moviepy. An image summary may contain any GIF.
    from tensorboard.compat.proto.summary_pb2 import Summary

    skip = -(-len(frames) // MAX_FRAMES)
    small = shrink(frames[::skip], MAX_SIDE)
    _, height, width, channels = small.shape
    gif = gif_bytes(small, fps / skip, num_colours=NUM_COLOURS)
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=gif)
    tracker.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=PREVIEW, image=image)]), step)
    tracker.writer.flush()


def shrink(frames: Tensor, max_side: int) -> Tensor:
    """Return uint8 frames `(T, H, W, 3)`, resized if a side has more than `max_side` pixels."""
    scale = max_side / max(frames.shape[1:3])
    if scale >= 1:
        return frames
    size = [max(1, round(side * scale)) for side in frames.shape[1:3]]
    small = interpolate(frames.movedim(-1, 1).float(), size, mode="area")
    return small.round().to(torch.uint8).movedim(1, -1)


def _log_to_wandb(tracker: GeneralTracker, frames: Tensor, fps: float, step: int) -> None:
    import wandb  # installed if its tracker is in use

    # `wandb.Video` needs moviepy for arrays of frames, but not for an encoded file.
    tracker.log({PREVIEW: wandb.Video(io.BytesIO(mp4_bytes(frames, fps)), format="mp4")}, step=step)
