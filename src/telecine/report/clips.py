"""The clips of a validation as videos with their metrics, written for the report.

A run keeps the clips of all its validations.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.files import partial_path, read_json, write_json
from telecine.data import pixels_sha256
from telecine.losses.reconstruction import psnr_of_mse
from telecine.report.video import Mp4Writer, panes
from telecine.runs.layout import CLIPS_FILE, validation_folder, validation_folders

AMPLIFICATION = 4.0
# High quality, so that visible artifacts come from the autoencoder and not from this encoder.
CRF = 12
# To show a frame, a browser decodes all frames from the last keyframe on.
KEYFRAME_EVERY = 8


@dataclass(frozen=True)
class ValidationClip:
    """One clip of a validation, to be written."""

    target: Tensor
    """The input, uint8 `(T, H, W, 3)`, e.g. from `telecine.data.bytes_from_video`."""
    reconstruction: Tensor
    """The reconstruction, of the same shape."""
    metrics: Mapping[str, float]
    """Its metrics by name, e.g. an item of `ReconstructionMetrics.per_clip()`."""
    source: str
    """The file that it is from."""
    start: int
    """Position of its first frame in the file."""


@dataclass(frozen=True)
class SavedClip:
    """One clip of a validation, as read from a run's folder."""

    video: str
    """File name of the video: input, reconstruction and amplified difference from left to right, of equal widths."""
    source: str
    """The file that it is from."""
    start: int
    """Position of its first frame in the file."""
    num_frames: int
    height: int
    """Height of the clip in pixels. In the video, small clips are enlarged by 2."""
    width: int
    metrics: dict[str, float]
    """Its metrics by name."""
    frame_psnr: list[float]
    """PSNR of each frame in dB."""
    sha256: str = ""
    """Hash of the input's pixels, by which the same clip is found in other validations; empty before telecine 0.2."""


@dataclass(frozen=True)
class SavedValidation:
    """The clips of one validation."""

    step: int
    """The step of the validation."""
    fps: float
    """Frames per second of the videos."""
    amplification: float
    """The factor of the difference in the videos."""
    clips: list[SavedClip]
    folder: Path
    """The folder of the videos."""


def write_clips(run: Path, step: int, clips: Iterable[ValidationClip], *, fps: float) -> Path:
    """Write the clips of the validation at `step`.

    Args:
        run: The run's folder.
        step: The step of the validation.
        clips: One or more clips. A generator keeps only one clip in memory.
        fps: Frames per second.

    Returns:
        `run/validation/step-XXXXXXXX`, with `clip-YY.mp4` and `clips.json`. The folder is written atomically.

    Raises:
        ValueError: There is no clip, or the shapes of a clip differ.
    """
    folder = validation_folder(run, step)
    partial = partial_path(folder)
    partial.mkdir(parents=True)
    try:
        saved = [_write_clip(partial, index, clip, fps) for index, clip in enumerate(clips)]
        if not saved:
            raise argument_error("clips", "at least one clip", "none", "Validate on at least one clip.")
        header = {"step": step, "fps": fps, "amplification": AMPLIFICATION}
        write_json(partial / CLIPS_FILE, {**header, "clips": [asdict(clip) for clip in saved]})
        shutil.rmtree(folder, ignore_errors=True)  # the folder of this step from before the run was resumed
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def read_validations(run: Path) -> list[SavedValidation]:
    """Return the validations whose clips are in a run's folder, oldest first.

    Raises:
        ValueError: A `clips.json` is damaged.
    """
    return [_read_validation(folder) for _, folder in validation_folders(run)]


def frame_psnr(*, target: Tensor, reconstruction: Tensor) -> list[float]:
    """Return the PSNR of each frame of two uint8 clips `(T, H, W, 3)`, see `psnr_of_mse`."""
    errors = (target.float() - reconstruction.float()).square().flatten(1).mean(1)
    return psnr_of_mse(errors.double(), value_range=255.0).tolist()


def _write_clip(folder: Path, index: int, clip: ValidationClip, fps: float) -> SavedClip:
    name = f"clip-{index:02d}.mp4"
    frames = panes(target=clip.target, reconstruction=clip.reconstruction, amplification=AMPLIFICATION)
    with Mp4Writer(folder / name, fps, crf=CRF, keyframe_every=KEYFRAME_EVERY) as writer:
        writer.add(frames)
    num_frames, height, width, _ = clip.target.shape
    return SavedClip(
        video=name,
        source=clip.source,
        start=clip.start,
        num_frames=num_frames,
        height=height,
        width=width,
        metrics={name: round(value, 5) for name, value in clip.metrics.items()},
        frame_psnr=[round(value, 3) for value in frame_psnr(target=clip.target, reconstruction=clip.reconstruction)],
        sha256=pixels_sha256(clip.target),
    )


def _read_validation(folder: Path) -> SavedValidation:
    path = folder / CLIPS_FILE
    values = read_json(path)
    try:
        clips = [SavedClip(**clip) for clip in values["clips"]]
        if outside := [clip.video for clip in clips if not _is_inside(folder, clip.video)]:
            raise TypeError(f"{outside[0]!r} is not a file of its folder")
        return SavedValidation(values["step"], values["fps"], values["amplification"], clips, folder)
    except (KeyError, TypeError) as error:
        got = f"other content ({error})"
        raise argument_error(str(path), "the description of a validation", got, f"Remove {folder}.") from error


def _is_inside(folder: Path, name: str) -> bool:
    """Return whether `name` is that of a file in the folder itself: the report copies it."""
    return Path(name).name == name and (folder / name).resolve().parent == folder.resolve()
