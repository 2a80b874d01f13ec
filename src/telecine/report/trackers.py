"""Video previews for the experiment trackers that can show them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from telecine.report.video import gif_bytes, mp4_bytes, shrink

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


def _log_to_wandb(tracker: GeneralTracker, frames: Tensor, fps: float, step: int) -> None:
    import wandb  # installed if its tracker is in use

    # `wandb.Video` needs moviepy for arrays of frames, but not for an encoded file.
    tracker.log({PREVIEW: wandb.Video(io.BytesIO(mp4_bytes(frames, fps)), format="mp4")}, step=step)
