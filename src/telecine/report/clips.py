"""Held-out clips beside their reconstructions: the clips of a validation, and previews for trackers."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from telecine.base.shapes import check_same_shape
from telecine.data import pixels_sha256
from telecine.losses.reconstruction import psnr_of_mse
from telecine.runs import Run
from telecine.runs.saved_clips import SavedClip
from telecine.video.frames import as_shown, depth_range, shrink
from telecine.video.panes import AMPLIFICATION, lay_out_panes
from telecine.video.write import write_video

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PREVIEW = "val/side_by_side"
"""The name of previews in trackers."""
MIN_SECONDS = 4.0
"""Least duration of a preview: a clip lasts a third of a second or so, too short to look at."""
_MAX_PREVIEW_FPS = 60.0  # what displays show
_PREVIEW_PRESET = "veryfast"  # training waits for it: a third of the time of "medium"
_NUM_PREVIEW_PARTS = 4
_MAX_REPEATS = 8.0
_CRF = 12  # high quality, so that visible artifacts come from the autoencoder and not from this encoder
_KEYFRAME_EVERY = 8  # to show a frame, a browser decodes all frames from the last keyframe on
# TensorBoard keeps every preview in its file, and shows it small: a GIF of this many pixels a side, frames and colours.
_MAX_GIF_SIDE = 256
_MAX_GIF_FRAMES = 9
_NUM_GIF_COLOURS = 64


@dataclass(frozen=True)
class ReconstructedClip:
    """One clip of a validation."""

    target: Tensor
    """The input, uint8 or uint16 `(T, H, W, C)`, e.g. from `telecine.data.bytes_from_video`."""
    reconstruction: Tensor
    """The reconstruction, of the same shape."""
    metrics: Mapping[str, float]
    """Its metrics by name, e.g. an item of `ReconstructionMetrics.per_clip()`."""
    source: str
    """Its file in the data."""
    start: int
    """Position of its first frame in the file."""
    fps: float


def write_clips(run: Run, step: int, clips: Iterable[ReconstructedClip], *, fps: float) -> Path:
    """Write the clips of a validation, see `Run.write_validation`.

    Args:
        run: The folder of the run.
        step: The step of the validation.
        clips: The clips. Of a generator, one is in memory.
        fps: The frame rate of the fastest clip.

    Returns:
        The folder of the clips.
    """

    def write(folder: Path) -> Iterator[SavedClip]:
        for index, clip in enumerate(clips):
            yield _write_clip(folder, index, clip)

    return run.write_validation(step, write, fps=fps, amplification=AMPLIFICATION)


def _write_clip(folder: Path, index: int, clip: ReconstructedClip) -> SavedClip:
    check_same_shape("reconstruction", clip.reconstruction, "target", clip.target)
    name = f"clip-{index:02d}.mp4"
    panes = lay_out_panes(target=clip.target, reconstruction=clip.reconstruction)
    write_video(folder / name, panes, clip.fps, crf=_CRF, keyframe_every=_KEYFRAME_EVERY)

    white = 255.0 if clip.target.dtype == torch.uint8 else 65535.0
    errors = (clip.target.float() - clip.reconstruction.float()).square().flatten(1).mean(1)
    frame_psnr = psnr_of_mse(errors.double(), value_range=white).tolist()
    limits = depth_range(clip.target)
    colours = ""
    if limits is not None:
        low, high = limits
        colours = f"{low} to {high} of {white:g}"
    num_frames, height, width, _ = as_shown(clip.target).shape
    return SavedClip(
        video=name,
        source=clip.source,
        start=clip.start,
        num_frames=num_frames,
        height=height,
        width=width,
        metrics={name: round(value, 5) for name, value in clip.metrics.items()},
        frame_psnr=[round(value, 3) for value in frame_psnr],
        sha256=pixels_sha256(clip.target),
        fps=clip.fps,
        colours=colours,
    )


def at_one_rate(clips: Sequence[Tensor], fps: Sequence[float]) -> list[Tensor]:
    """Repeat frames of clips `(T, H, W, 3)` so that all play at their own speed at the rate of the fastest.

    A clip slower than an eighth of that rate is played at an eighth. A clip that ends before the longest one starts
    again from its first frame.
    """
    fastest = max(fps)
    repeats = [min(fastest / clip_fps, _MAX_REPEATS) for clip_fps in fps]
    length = 0
    for clip, num_repeats in zip(clips, repeats, strict=True):
        length = max(length, math.ceil(len(clip) * num_repeats))
    # Rounded, so that no frame comes one too late.
    times = torch.arange(length, dtype=torch.float64) + 1e-6
    played = []
    for clip, num_repeats in zip(clips, repeats, strict=True):
        frames = (times / num_repeats).long() % len(clip)
        played.append(clip[frames])
    return played


def write_preview(path: str | os.PathLike[str], frames: Tensor, fps: float) -> None:
    """Write a short clip as an MP4, repeated until it lasts `MIN_SECONDS` or somewhat longer.

    Args:
        path: The file.
        frames: uint8 `(T, H, W, 3)`.
        fps: Frames per second; 60 for more.
    """
    fps = min(fps, _MAX_PREVIEW_FPS)
    num_times = max(1, math.ceil(MIN_SECONDS * fps / len(frames)))
    # A quarter of them is encoded: each time that the encoded frames are repeated has a keyframe, which is large.
    num_encoded = math.ceil(num_times / _NUM_PREVIEW_PARTS)
    write_video(
        path,
        chain.from_iterable(repeat(frames, num_encoded)),
        fps,
        preset=_PREVIEW_PRESET,
        num_times=math.ceil(num_times / num_encoded),
    )


def log_preview(trackers: Iterable[GeneralTracker], step: int, frames: Tensor, fps: float) -> None:
    """Log a short clip to TensorBoard (reduced), Weights & Biases and trackio; skip other trackers.

    Args:
        trackers: The trackers of an `Accelerator`.
        step: The step at which it is logged.
        frames: uint8 `(T, H, W, 3)`.
        fps: Frames per second.
    """
    for tracker in trackers:
        if tracker.name == "tensorboard":
            _log_to_tensorboard(tracker, frames, fps, step)
        elif tracker.name in ("wandb", "trackio"):
            # Needs moviepy or FFmpeg for arrays, but not for a file.
            video = import_module(tracker.name).Video
            with TemporaryDirectory() as folder:
                file = Path(folder) / "preview.mp4"
                write_preview(file, frames, fps)
                tracker.log({PREVIEW: video(str(file), format="mp4")}, step=step)


def _log_to_tensorboard(tracker: GeneralTracker, frames: Tensor, fps: float, step: int) -> None:
    # `SummaryWriter.add_video` needs moviepy. An image summary may contain any GIF, which is timed in 1/100 s.
    from tensorboard.compat.proto.summary_pb2 import Summary

    skip = -(-len(frames) // _MAX_GIF_FRAMES)
    small = shrink(frames[::skip], _MAX_GIF_SIDE).cpu()
    images = [Image.fromarray(frame.numpy()).quantize(_NUM_GIF_COLOURS) for frame in small]
    milliseconds = max(20, round(1000 / (fps / skip)))
    gif = io.BytesIO()
    images[0].save(
        gif, "GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0
    )
    image = Summary.Image(
        height=small.shape[1],
        width=small.shape[2],
        colorspace=3,
        encoded_image_string=gif.getvalue(),
    )
    summary = Summary(value=[Summary.Value(tag=PREVIEW, image=image)])
    tracker.writer.file_writer.add_summary(summary, step)
    tracker.writer.flush()
