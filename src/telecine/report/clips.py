"""Held-out clips beside their reconstructions: layouts, the clips of a validation, and previews for trackers."""

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
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from telecine.base.shapes import check_same_shape
from telecine.data import pixels_sha256
from telecine.losses.reconstruction import psnr_of_mse
from telecine.report.video import MAX_PANE, MAX_VIDEO_SIDE, as_shown, depth_range, pad_to_even, shrink, write_video
from telecine.runs import Run
from telecine.runs.run import SavedClip

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

_AMPLIFICATION = 4.0
_CRF = 12  # high quality, so that visible artifacts come from the autoencoder and not from this encoder
_KEYFRAME_EVERY = 8  # to show a frame, a browser decodes all frames from the last keyframe on
# A clip lasts a third of a second or so, too short to look at. Displays show 60 frames a second.
MIN_SECONDS, _MAX_PREVIEW_FPS = 4.0, 60.0
_MAX_REPEATS = 8.0
_MIN_PANEL_HEIGHT, _LABEL_HEIGHT, _GAP = 192, 26, 4
_LABELS = ("input", "reconstruction", f"difference x {_AMPLIFICATION:g}")
# TensorBoard keeps every preview in its file, and shows it small: a GIF of this many pixels a side, frames and colours.
_MAX_SIDE, _MAX_FRAMES, _NUM_COLOURS = 256, 9, 64
_PREVIEW = "val/side_by_side"


@dataclass(frozen=True)
class ValidationClip:
    """One clip of a validation."""

    target: Tensor  # the input, uint8 or uint16 `(T, H, W, C)`, e.g. from `telecine.data.bytes_from_video`
    reconstruction: Tensor  # the reconstruction, of the same shape
    metrics: Mapping[str, float]  # its metrics by name, e.g. an item of `ReconstructionMetrics.per_clip()`
    source: str  # its file in the data
    start: int  # position of its first frame in the file
    fps: float


def write_clips(run: Run, step: int, clips: Iterable[ValidationClip], *, fps: float) -> Path:
    """Write the clips of the validation at `step`, see `Run.write_validation`; of a generator, one is in memory."""

    def write(folder: Path) -> Iterator[SavedClip]:
        return (_write_clip(folder, index, clip) for index, clip in enumerate(clips))

    return run.write_validation(step, write, fps=fps, amplification=_AMPLIFICATION)


def _write_clip(folder: Path, index: int, clip: ValidationClip) -> SavedClip:
    check_same_shape("reconstruction", clip.reconstruction, "target", clip.target)
    name = f"clip-{index:02d}.mp4"
    panes = _panes(target=clip.target, reconstruction=clip.reconstruction)
    write_video(folder / name, panes, clip.fps, crf=_CRF, keyframe_every=_KEYFRAME_EVERY)
    limits, white = depth_range(clip.target), 255.0 if clip.target.dtype == torch.uint8 else 65535.0
    num_frames, height, width, _ = as_shown(clip.target).shape
    errors = (clip.target.float() - clip.reconstruction.float()).square().flatten(1).mean(1)
    frame_psnr = psnr_of_mse(errors.double(), value_range=white).tolist()
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
        colours="" if limits is None else f"{limits[0]} to {limits[1]} of {white:g}",
    )


def at_one_rate(clips: Sequence[Tensor], fps: Sequence[float]) -> list[Tensor]:
    """Repeat frames of clips `(T, H, W, 3)` so that all play at their own speed at the rate of the fastest.

    Clips of less than an eighth of that rate are played at an eighth. Shorter ones start anew until the longest ends.
    """
    rate = max(fps)
    repeats = [min(rate / each, _MAX_REPEATS) for each in fps]
    length = max(math.ceil(len(clip) * repeat) for clip, repeat in zip(clips, repeats, strict=True))
    times = torch.arange(length, dtype=torch.float64) + 1e-6  # rounded, so that no frame comes one too late
    return [clip[(times / repeat).long() % len(clip)] for clip, repeat in zip(clips, repeats, strict=True)]


def side_by_side(
    *, inputs: Sequence[Tensor], reconstructions: Sequence[Tensor], limits: tuple[int, int] | None = None
) -> Tensor:
    """Lay out input, reconstruction and amplified absolute difference from left to right, one row per clip.

    All clips are frames `(T, H, W, C)` of one shape, which `as_shown` shows. The result, `(T, H', W', 3)` with even
    `H'` and `W'`, has labels. Small clips are enlarged by an integer factor (nearest neighbour) until a panel has 192
    rows or more; what no video can show is shrunk. Depth has the colours of `limits`, by default those of all inputs.
    """
    factor = -(-_MIN_PANEL_HEIGHT // inputs[0].shape[1])
    pairs = zip(inputs, reconstructions, strict=True)
    limits = limits or depth_range(torch.cat([*inputs]))
    rows = [[_enlarge(panel, factor) for panel in _panels(*pair, limits)] for pair in pairs]
    picture = _join([_join(row, dim=2) for row in rows], dim=1)
    text = "" if limits is None else f", {limits[0]} to {limits[1]}"
    bar = _label_bar(picture.shape[2], text).expand(len(picture), -1, -1, -1)
    return pad_to_even(shrink(torch.cat([bar, picture], dim=1), MAX_VIDEO_SIDE))


def _panes(*, target: Tensor, reconstruction: Tensor) -> Tensor:
    """Lay out the panels of a clip as even `(T, H', 3 * W', 3)`, without gaps and labels: a player can crop them."""
    # The format has half the resolution of colours: the full one of a clip that is enlarged.
    factor, limits = 2 if target.shape[1] < _MIN_PANEL_HEIGHT else 1, depth_range(target)
    return torch.cat([pad_to_even(_enlarge(panel, factor)) for panel in _panels(target, reconstruction, limits)], dim=2)


def _panels(clip: Tensor, recon: Tensor, limits: tuple[int, int] | None) -> tuple[Tensor, Tensor, Tensor]:
    clip, recon = clip.cpu(), recon.cpu()
    shown = as_shown(clip, limits), as_shown(recon, limits)
    first, second = (clip.float() / 257, recon.float() / 257) if limits else shown  # not of the colours of a map
    difference = (first.float() - second.float()).abs().mul(_AMPLIFICATION).clamp(max=255.0)
    return *shown, difference.round().to(torch.uint8).expand(shown[0].shape)


def _enlarge(frames: Tensor, factor: int) -> Tensor:
    """Enlarge frames by a factor, or by less or not at all, so that three of them fit beside each other."""
    frames = shrink(frames, MAX_PANE)
    factor = min(factor, MAX_PANE // max(frames.shape[1:3]))
    return frames.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def _join(panels: Sequence[Tensor], dim: int) -> Tensor:
    gap = torch.zeros_like(panels[0].narrow(dim, 0, 1)).repeat_interleave(_GAP, dim)
    return torch.cat([part for panel in panels for part in (gap, panel)][1:], dim=dim)


def _label_bar(width: int, of_input: str) -> Tensor:
    draw = ImageDraw.Draw(image := Image.new("RGB", (width, _LABEL_HEIGHT)))
    font = ImageFont.load_default(size=15)
    for i, label in enumerate((_LABELS[0] + of_input, *_LABELS[1:])):
        left = round(i * (width + _GAP) / len(_LABELS)) + 4
        draw.text((left, _LABEL_HEIGHT / 2), label, fill=(235, 235, 235), font=font, anchor="lm")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(1, _LABEL_HEIGHT, width, 3)


def write_preview(path: str | os.PathLike[str], frames: Tensor, fps: float) -> None:
    """Write a short clip as an MP4 of up to 60 frames a second, repeated until it lasts at least `MIN_SECONDS`."""
    fps = min(fps, _MAX_PREVIEW_FPS)
    num_times = max(1, math.ceil(MIN_SECONDS * fps / len(frames)))
    write_video(path, chain.from_iterable(repeat(frames, num_times)), fps)


def log_preview(trackers: Iterable[GeneralTracker], step: int, frames: Tensor, fps: float) -> None:
    """Log uint8 frames `(T, H, W, 3)` to TensorBoard (reduced), Weights & Biases and trackio; skip other trackers."""
    for tracker in trackers:
        if tracker.name == "tensorboard":
            _log_to_tensorboard(tracker, frames, fps, step)
        elif tracker.name in ("wandb", "trackio"):
            video = import_module(tracker.name).Video  # needs moviepy or FFmpeg for arrays, but not for a file
            with TemporaryDirectory() as folder:
                write_preview(file := Path(folder) / "preview.mp4", frames, fps)
                tracker.log({_PREVIEW: video(str(file), format="mp4")}, step=step)


def _log_to_tensorboard(tracker: GeneralTracker, frames: Tensor, fps: float, step: int) -> None:
    # `SummaryWriter.add_video` needs moviepy. An image summary may contain any GIF, which is timed in 1/100 s.
    from tensorboard.compat.proto.summary_pb2 import Summary

    skip = -(-len(frames) // _MAX_FRAMES)
    small = shrink(frames[::skip], _MAX_SIDE)
    first, *others = [Image.fromarray(frame.numpy()).quantize(_NUM_COLOURS) for frame in small.cpu()]
    gif, duration = io.BytesIO(), max(20, round(1000 / (fps / skip)))
    first.save(gif, "GIF", save_all=True, append_images=others, duration=duration, loop=0)
    size = {"height": small.shape[1], "width": small.shape[2]}
    image = Summary.Image(**size, colorspace=3, encoded_image_string=gif.getvalue())
    tracker.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=_PREVIEW, image=image)]), step)
    tracker.writer.flush()
