"""Moving pictures for the trackers that can show one."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from telecine.report.video import gif_bytes, mp4_bytes

PREVIEW = "val/side_by_side"


def log_preview(trackers: Iterable[Any], step: int, frames: Tensor, fps: float, *, tag: str = PREVIEW) -> None:
    """Show a moving picture in TensorBoard and in Weights & Biases, where these are among the trackers.

    Args:
        trackers: Accelerate's, as `accelerator.trackers` has them; others than these two get nothing.
        step: Updates done before.
        frames: uint8 `(T, H, W, 3)`, e.g. of `side_by_side`.
        fps: Frames a second.
        tag: The name that it is shown under.
    """
    for tracker in trackers:
        if show := SHOWN_BY.get(tracker.name):
            show(tracker, tag, frames, fps, step)


def _to_tensorboard(tracker: Any, tag: str, frames: Tensor, fps: float, step: int) -> None:
    # `SummaryWriter.add_video` does nothing without moviepy; an image summary may hold any GIF.
    from tensorboard.compat.proto.summary_pb2 import Summary

    _, height, width, channels = frames.shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=gif_bytes(frames, fps))
    tracker.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
    tracker.writer.flush()


def _to_wandb(tracker: Any, tag: str, frames: Tensor, fps: float, step: int) -> None:
    import wandb  # where its tracker is, it is installed

    # Arrays of frames would need moviepy; a finished file does not.
    tracker.log({tag: wandb.Video(io.BytesIO(mp4_bytes(frames, fps)), format="mp4")}, step=step)


SHOWN_BY: dict[str, Callable[[Any, str, Tensor, float, int], None]] = {
    "tensorboard": _to_tensorboard,
    "wandb": _to_wandb,
}
