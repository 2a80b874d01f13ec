"""The folder of a run."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from telecine.base.checks import argument_error
from telecine.base.files import partial_path, read_json, remove_partial, write_json
from telecine.runs.checkpoints import Checkpoints, is_checkpoint, step_folders, step_name
from telecine.runs.history import History, Warnings, best_validation
from telecine.runs.settings import SETTINGS_FILE

_CLIPS_FILE = "clips.json"


@dataclass(frozen=True)
class ValidationClips:
    """The clips that a run validates on. Metrics of other clips do not compare."""

    num_clips: int
    num_frames: int
    height: int
    width: int
    sha256: str
    """Hash of the pixels of all clips, in order."""


@dataclass(frozen=True)
class RunSummary:
    """The size, data, time and memory of a run: `summary.json`."""

    num_parameters: int
    """Of the autoencoder."""
    num_trained: int
    """Those of them that are trained."""
    num_disc_parameters: int
    """Of the discriminators."""
    num_videos: int
    """Videos that are used."""
    num_skipped: int
    """Files that are not."""
    num_frames: int
    """Frames to train on."""
    clips_per_update: int
    validation: ValidationClips
    seconds: float
    """Duration of the run with its validations; the times of a run that was resumed are added."""
    peak_memory: int | None
    """Bytes at the peak of the first process: of the GPU as PyTorch allocated them, on a CPU of the process. None on
    other devices."""
    num_images: int = 0
    """Still images that are used."""
    data_sha256: str = ""
    """Hash of the names, the sizes and the trained frames of the files; empty before telecine 0.3."""


@dataclass(frozen=True)
class SavedClip:
    """One clip of a validation in a run's folder."""

    video: str
    """File name of the video: input, reconstruction and amplified difference from left to right, of equal widths."""
    source: str
    """Its file in the data."""
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
    fps: float | None = None
    """Frames per second of its video; None where older versions wrote one rate for all."""


@dataclass(frozen=True)
class SavedValidation:
    """The clips of one validation."""

    step: int
    fps: float
    """Frames per second of the fastest clip."""
    amplification: float
    """The factor of the difference in the videos."""
    clips: list[SavedClip]
    folder: Path
    """The folder of the videos."""


class Run:
    """The folder of a run, which need not exist. Making the object neither reads nor writes anything."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.history = History(self.folder / "metrics.jsonl")
        self.warnings = Warnings(self.folder / "health.jsonl")
        self.checkpoints = Checkpoints(self.folder)
        self.settings_file = self.folder / SETTINGS_FILE
        self.report_file = self.folder / "report.html"
        self.video_file = self.folder / "side_by_side.mp4"
        self._environment_file = self.folder / "environment.json"
        self._summary_file = self.folder / "summary.json"
        self._tracker_file = self.folder / "tracker.json"
        self._validations = self.folder / "validation"

    def cut(self, step: int, expected: int = 0) -> tuple[int, list[str]]:
        """Remove the records, warnings and clips after a checkpoint; the run writes the later ones again.

        Args:
            step: The step of the checkpoint; -1 without one.
            expected: Number of records up to the checkpoint, as it states.

        Returns:
            The number of records left, and notes about missing records and dropped lines.
        """
        for later, folder in self.validation_folders():
            if later > step:
                shutil.rmtree(folder)
        cuts = [(file.path, *file.cut(step)) for file in (self.history, self.warnings)]
        notes = [f"{path}: {dropped} lines could not be read and are dropped" for path, _, dropped in cuts if dropped]
        path, num_kept, _ = cuts[0]
        if num_kept != expected:
            gap = f"{num_kept} records up to the checkpoint instead of {expected}; the curves have a gap"
            notes.append(f"{path}: {gap}")
        return num_kept, notes

    def best_step(self, metric: str | None, step: int) -> int | None:
        """Return the step of the best validation by `metric`, or None without a metric or before training."""
        if metric is None:
            return None
        candidates = {saved for saved, _ in self.checkpoints.all()} | {step}  # others cannot be kept any more
        best = best_validation((each for each in self.history.read() if each["step"] in candidates), metric)
        return None if best is None else int(best["step"])

    def environment(self) -> dict[str, str]:
        """Return the environment in which the run started, or nothing if it was not recorded."""
        path = self._environment_file
        return {name: str(value) for name, value in read_json(path).items()} if path.exists() else {}

    def write_environment(self, values: dict[str, str]) -> None:
        """Record the environment."""
        write_json(self._environment_file, values)

    def tracker_id(self, *, is_new: bool) -> str:
        """Return the id of this run in trackers, which is recorded; that of a run before, or a new one."""
        path = self._tracker_file
        if is_new or not path.exists():
            write_json(path, {"id": secrets.token_hex(4)})
        found = read_json(path).get("id")
        if not isinstance(found, str):
            raise argument_error(str(path), "the id of a run in trackers", found, f"Remove {path}.")
        return found

    def summary(self) -> RunSummary | None:
        """Return the summary, or None if it was not recorded; raise a `ValueError` if the file is damaged."""
        path = self._summary_file
        if not path.exists():
            return None
        values = read_json(path)
        try:
            return RunSummary(**values | {"validation": ValidationClips(**values["validation"])})
        except (KeyError, TypeError) as error:
            got = f"other content ({error})"
            raise argument_error(str(path), "the summary of a run", got, f"Remove {path}.") from error

    def write_summary(self, summary: RunSummary) -> None:
        """Record the summary."""
        write_json(self._summary_file, asdict(summary))

    def validation_folders(self) -> list[tuple[int, Path]]:
        """Return (step, folder) of every validation with complete clips, oldest first."""
        return [each for each in step_folders(self._validations) if (each[1] / _CLIPS_FILE).is_file()]

    def validations(self) -> list[SavedValidation]:
        """Return the validations whose clips were kept, oldest first; raise a `ValueError` if one is damaged."""
        return [_read_validation(folder) for _, folder in self.validation_folders()]

    def write_validation(
        self, step: int, write: Callable[[Path], Iterable[SavedClip]], *, fps: float, amplification: float
    ) -> Path:
        """Write the clips of the validation at `step` into a folder that appears whole, and return the folder.

        Args:
            step: The step of the validation.
            write: Writes the videos into a folder and yields their descriptions, at least one.
            fps: Frames per second of the fastest clip.
            amplification: The factor of the difference in the videos.
        """
        folder = self._validations / step_name(step)
        partial = partial_path(folder)
        partial.mkdir(parents=True)
        try:
            clips = [asdict(clip) for clip in write(partial)]
            if not clips:
                raise argument_error("clips", "at least one clip", "none", "Validate on at least one clip.")
            values = {"step": step, "fps": fps, "amplification": amplification, "clips": clips}
            write_json(partial / _CLIPS_FILE, values)
            shutil.rmtree(folder, ignore_errors=True)  # the folder of this step from before the run was resumed
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def remove_residue(self, before: float) -> None:
        """Remove what interrupted writes and deletions have left, for the process that holds the lock.

        Args:
            before: When it took the lock, in seconds since the epoch. A report may be writing later partial files.
        """
        self.checkpoints.remove_unfinished()
        for folder in self._validations.glob("*"):
            is_complete = (folder / _CLIPS_FILE).is_file() and not folder.name.startswith(".")
            if folder.is_dir() and not is_complete:
                shutil.rmtree(folder)
        for folder in (self.folder, self.folder / f"{self.report_file.stem}_videos"):
            remove_partial(folder, before)


def is_run_or_checkpoint(folder: Path) -> bool:
    """Return whether a folder is that of a run or of a checkpoint."""
    return (folder / SETTINGS_FILE).is_file() or is_checkpoint(folder)


def _read_validation(folder: Path) -> SavedValidation:
    path = folder / _CLIPS_FILE
    values: dict[str, Any] = read_json(path)
    try:
        clips = [SavedClip(**clip) for clip in values["clips"]]
        for name in (clip.video for clip in clips):  # the report copies these files
            if Path(name).name != name or (folder / name).resolve().parent != folder.resolve():
                raise TypeError(f"{name!r} is not a file of its folder")
        return SavedValidation(values["step"], values["fps"], values["amplification"], clips, folder)
    except (KeyError, TypeError) as error:
        got = f"other content ({error})"
        raise argument_error(str(path), "the description of a validation", got, f"Remove {folder}.") from error
