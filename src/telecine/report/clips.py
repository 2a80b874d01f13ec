"""The clips of a validation, kept for people to look at: a video each, and what was measured on it.

A run keeps those of its first validation and of its newest one.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from telecine.files import read_json, write_json
from telecine.report.video import Mp4Writer, panes
from telecine.runs import CLIPS_FILE, validation_folder, validation_folders
from telecine.shapes import argument_error

AMPLIFICATION = 4.0
# What the eye is to blame the autoencoder for must not come from this encoder.
CRF = 12
# A browser decodes from the last keyframe up to the frame that it shows.
KEYFRAME_EVERY = 8
# Identical frames would have an infinite PSNR.
MAX_PSNR = 100.0


@dataclass(frozen=True)
class ShownClip:
    """One validated clip, as it is to be shown."""

    target: Tensor
    """What went in, uint8 `(T, H, W, 3)`; `telecine.data.bytes_from_video` makes it."""
    reconstruction: Tensor
    """What came out, of the same shape."""
    metrics: Mapping[str, float]
    """Its figures by name, e.g. a row of `ReconstructionMetrics.per_clip()`."""
    source: str
    """The file that it is from."""
    start: int
    """Position of its first frame in that file."""


@dataclass(frozen=True)
class KeptClip:
    """One clip of a validation as it lies in a run's folder."""

    video: str
    """File name of its panes: input, reconstruction and amplified difference from left to right, a third each."""
    source: str
    """The file that it is from."""
    start: int
    """Position of its first frame in that file."""
    num_frames: int
    height: int
    """In pixels; the video of a small clip has twice as many."""
    width: int
    metrics: dict[str, float]
    """Its figures by name."""
    frame_psnr: list[float]
    """PSNR in dB of each frame."""


@dataclass(frozen=True)
class KeptValidation:
    """The clips of one validation."""

    step: int
    """Updates done before it."""
    fps: float
    """Frames a second of the videos."""
    amplification: float
    """What the difference of input and reconstruction is multiplied with in the videos."""
    clips: list[KeptClip]
    folder: Path
    """Where the videos are."""


def write_clips(run: Path, step: int, clips: Iterable[ShownClip], *, fps: float) -> Path:
    """Write the clips of the validation at `step`, and remove those of all others but the first.

    Args:
        run: The run's folder.
        step: Updates done before the validation.
        clips: At least one; taken one by one, so that a generator keeps memory small.
        fps: Frames a second.

    Returns:
        `run/validation/step-XXXXXXXX`, which appears whole or not at all: `clip-YY.mp4` and `clips.json`.

    Raises:
        ValueError: If there is no clip, or its frames do not fit.
    """
    folder = validation_folder(run, step)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    aside.mkdir(parents=True, exist_ok=True)
    try:
        kept = [_write_clip(aside, index, clip, fps) for index, clip in enumerate(clips)]
        if not kept:
            raise argument_error("clips", "at least one clip", "none", "Validate on a clip or more.")
        header = {"step": step, "fps": fps, "amplification": AMPLIFICATION}
        write_json(aside / CLIPS_FILE, {**header, "clips": [asdict(clip) for clip in kept]})
        shutil.rmtree(folder, ignore_errors=True)  # of this step, from a run that was cut off
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # there is none after success
    _forget_between(run, step)
    return folder


def read_validations(run: Path) -> list[KeptValidation]:
    """Return the validations whose clips a run has kept, oldest first.

    Raises:
        ValueError: If a file that describes them was damaged.
    """
    return [_read_validation(folder) for _, folder in validation_folders(run)]


def frame_psnr(*, target: Tensor, reconstruction: Tensor) -> list[float]:
    """Return the PSNR in dB of each of two uint8 clips' frames `(T, H, W, 3)`, at most `MAX_PSNR`; larger is better."""
    errors = (target.float() - reconstruction.float()).square().flatten(1).mean(1).tolist()
    least = 255**2 * 10 ** (-MAX_PSNR / 10)
    return [10 * math.log10(255**2 / max(error, least)) for error in errors]


def _write_clip(folder: Path, index: int, clip: ShownClip, fps: float) -> KeptClip:
    name = f"clip-{index:02d}.mp4"
    frames = panes(target=clip.target, reconstruction=clip.reconstruction, amplification=AMPLIFICATION)
    with Mp4Writer(folder / name, fps, crf=CRF, keyframe_every=KEYFRAME_EVERY) as writer:
        writer.add(frames)
    num_frames, height, width, _ = clip.target.shape
    return KeptClip(
        video=name,
        source=clip.source,
        start=clip.start,
        num_frames=num_frames,
        height=height,
        width=width,
        metrics={name: round(value, 5) for name, value in clip.metrics.items()},
        frame_psnr=[round(value, 3) for value in frame_psnr(target=clip.target, reconstruction=clip.reconstruction)],
    )


def _forget_between(run: Path, step: int) -> None:
    """Remove the clips of every validation but the first and the one of `step`."""
    others = [folder for other, folder in validation_folders(run)[1:] if other != step]
    for folder in others:
        shutil.rmtree(folder)


def _read_validation(folder: Path) -> KeptValidation:
    path = folder / CLIPS_FILE
    values = read_json(path)
    try:
        clips = [KeptClip(**clip) for clip in values["clips"]]
        return KeptValidation(values["step"], values["fps"], values["amplification"], clips, folder)
    except (KeyError, TypeError) as error:
        got = f"something else ({error})"
        raise argument_error(str(path), "what a validation wrote", got, f"Remove {folder}.") from error
