"""The folder of a run."""

import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, InstanceOf

from telecine.base.checks import argument_error
from telecine.base.files import OUTPUT_MARKER, partial_path, read_json, remove_partial, write_json
from telecine.base.plain_values import as_dataclass
from telecine.runs.checkpoints import Checkpoints, step_folders, step_name
from telecine.runs.history import History, NonNegativeInt, Warnings
from telecine.runs.lock import LOCK_FILE, OWNER_FILE
from telecine.runs.saved_settings import SETTINGS_FILE

_CLIPS_FILE = "clips.json"
_MAX_VIDEO = 2**32  # bytes; a sparse file can seem to have more, and the report copies videos
# Numbers as the files of a run have them. These may be anyone's, or damaged.
_Size = Annotated[int, Field(gt=0, lt=2**63, strict=True)]
_Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
_Positive = Annotated[_Finite, Field(gt=0)]


@dataclass(frozen=True)
class ValidationSet:
    """The clips that a run validates on. Metrics of other clips do not compare."""

    num_clips: _Size
    num_frames: _Size
    height: _Size
    width: _Size
    sha256: str
    """Hash of the pixels of all clips, in order."""


@dataclass(frozen=True)
class RunSummary:
    """The size, data, time and memory of a run: `summary.json`."""

    num_parameters: NonNegativeInt
    """Parameters of the autoencoder."""
    num_trained: NonNegativeInt
    """Those of them that are trained."""
    num_disc_parameters: NonNegativeInt
    num_videos: NonNegativeInt
    """Videos that are used."""
    num_skipped: NonNegativeInt
    """Files that are not used."""
    num_frames: NonNegativeInt
    """Frames to train on."""
    clips_per_update: _Size
    validation: ValidationSet
    seconds: Annotated[_Finite, Field(ge=0)]
    """Time of the run with its validations, and before it was resumed."""
    peak_memory: NonNegativeInt | None
    """Bytes of the first process, see `base.devices.peak_memory`."""
    num_images: NonNegativeInt = 0
    """Images that are used."""
    validated_from: NonNegativeInt = 0
    """The first step that counts for `validation`: before, the run may have had other clips."""
    data_sha256: str = ""
    """Hash of the names, sizes and trained frames of the files; empty in older runs."""
    content_sha256: str = ""
    """Hash of their content, see `telecine.data.VideoInfo.digest`; empty in older runs."""
    held_out: InstanceOf[str] = ""
    """Which files are held out; empty with `val_data`, and in older runs."""
    copied: dict[str, tuple[NonNegativeInt, NonNegativeInt]] = field(default_factory=dict)
    """How many parameters of each module `init` gave, and how many it has."""
    networks: dict[str, str] = field(default_factory=dict)
    """A digest of the weights of each network that the run reads and does not train: a teacher, the features of a
    discriminator, LPIPS, and `init`; empty in older runs."""

    @staticmethod
    def describe_copied(copied: Mapping[str, tuple[int, int]]) -> str:
        """Return `copied` in one line."""
        parts = []
        for name, (num_copied, total) in copied.items():
            number = f"{num_copied:,}" if num_copied else "none"
            parts.append(f"{name} {number} of {total:,}")
        return ", ".join(parts)

    def after(self, before: "RunSummary | None", step: int) -> "RunSummary":
        """Return the summary of a run that was resumed at a step, with the time and the memory `before`."""
        if before is None:
            return self
        validated_from = step + 1
        if before.validation == self.validation:
            validated_from = before.validated_from
        return replace(
            self,
            seconds=before.seconds,
            peak_memory=before.peak_memory,
            copied=self.copied or before.copied,
            networks={**before.networks, **self.networks},
            validated_from=validated_from,
        )

    def until_now(self, start: float, peak_memory: int | None) -> "RunSummary":
        """Return it with the time since `start`, in `time.monotonic()`, and the peak memory of this process."""
        peak = None if peak_memory is None else max(peak_memory, self.peak_memory or 0)
        return replace(
            self, seconds=round(self.seconds + time.monotonic() - start, 3), peak_memory=peak
        )


@dataclass(frozen=True)
class SavedClip:
    """One clip of a validation in a run's folder."""

    video: str
    """File name of the video: input, reconstruction and amplified difference from left to right, of equal widths."""
    source: InstanceOf[str]
    """Its file in the data. A name may have bytes that are not UTF-8."""
    start: NonNegativeInt
    """The position of its first frame in the file."""
    num_frames: _Size
    height: _Size
    """Pixels of the clip. In the video, small clips are enlarged by 2."""
    width: _Size
    metrics: dict[str, Annotated[float, Field(strict=True)]]
    frame_psnr: list[_Finite]
    """PSNR of each frame in dB."""
    sha256: str = ""
    """Hash of the input's pixels: the same clip in other validations has it; empty in older runs."""
    fps: _Positive | None = None
    """Frames per second; None in older runs, which have one rate for all clips."""
    colours: str = ""
    """The values of the least and the last colour of a colour map; empty without one."""


@dataclass(frozen=True)
class SavedValidation:
    """The clips of one validation."""

    step: NonNegativeInt
    fps: _Positive
    """Frames per second of the fastest clip."""
    amplification: _Positive
    """The factor of the difference in the videos."""
    clips: list[SavedClip]
    folder: Path
    """The folder of the videos."""

    @classmethod
    def read(cls, folder: Path) -> "SavedValidation":
        """Return the validation whose clips are in a folder.

        Raises:
            ValueError: Their description is damaged, or names a file elsewhere.
        """
        path = folder / _CLIPS_FILE
        contract = "the description of a validation"
        remedy = f"Remove {folder}."
        saved = as_dataclass(
            cls, {**read_json(path), "folder": folder}, str(path), contract, remedy
        )
        for clip in saved.clips:
            name = clip.video  # the report copies this file
            is_name = Path(name).name == name and name not in ("", "..") and name.isprintable()
            if not is_name or (folder / name).is_symlink():
                got = f"the video {name!r}, which is not a file of its folder"
                raise argument_error(str(path), contract, got, remedy)
        return saved


class Run:
    """The folder of a run, which need not exist. Making the object neither reads nor writes anything."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.history = History(self.folder / History.file)
        self.warnings = Warnings(self.folder / "health.jsonl")
        self.checkpoints = Checkpoints(self.folder)
        self.settings_file = self.folder / SETTINGS_FILE
        self.report_file = self.folder / "report.html"
        self.video_file = self.folder / "side_by_side.mp4"
        self._tensorboard = self.folder / "tensorboard"
        self._environment_file = self.folder / "environment.json"
        self._summary_file = self.folder / "summary.json"
        self._tracker_file = self.folder / "tracker.json"
        self._validations = self.folder / "validation"
        self._videos = self.folder / f"{self.report_file.stem}_videos"
        # All but `best`, a link, and the page, which is replaced without following a link.
        self._checked_paths = (
            self.checkpoints.folder,
            self._validations,
            self._videos,
            self._tensorboard,
            self.history.path,
            self.warnings.path,
            self.settings_file,
            self.video_file,
            self._environment_file,
            self._summary_file,
            self._tracker_file,
            self.folder / LOCK_FILE,
            self.folder / OWNER_FILE,
            self.folder / OUTPUT_MARKER,
        )

    def exists(self) -> bool:
        """Return whether the folder is that of a run, which may be damaged."""
        return os.path.lexists(self.history.path)

    def check_files(self) -> None:
        """Check that the files are in the folder itself: a link of somebody else's could lead anywhere.

        Raises:
            ValueError: A file or a folder is a symbolic link, or a video is too large. `best` may be one, and the page.
        """
        self._check_paths(*self._checked_paths)
        for folder in (self.checkpoints.folder, self._validations):
            self._check_paths(*folder.glob("*"))  # before what is in these
            self._check_paths(*folder.glob("*/*"))

    @staticmethod
    def _check_paths(*paths: Path) -> None:
        for path in paths:
            if path.is_symlink():
                got = f"a symbolic link to {os.readlink(path)}"
                raise argument_error(
                    str(path), "in the run's folder itself", got, "Replace it by what it points to."
                )
            size = path.stat().st_size if path.suffix == ".mp4" and path.exists() else 0
            if size > _MAX_VIDEO:
                raise argument_error(
                    str(path),
                    f"a file of at most {_MAX_VIDEO} bytes",
                    f"{size} bytes",
                    "Remove it.",
                )

    def cut(self, step: int, expected: int = 0) -> tuple[int, list[str]]:
        """Remove the records, warnings and clips after the step of a checkpoint; the run writes the later ones again.

        Args:
            step: The step of the checkpoint.
            expected: The number of records that the checkpoint has.

        Returns:
            The number of records left, and notes about missing ones.
        """
        for validated_step, folder in self.validation_folders():
            if validated_step > step:
                shutil.rmtree(folder)
        num_records, num_dropped = self.history.cut(step)
        _, num_dropped_warnings = self.warnings.cut(step)
        notes = []
        for path, number in (
            (self.history.path, num_dropped),
            (self.warnings.path, num_dropped_warnings),
        ):
            if number > 0:
                notes.append(f"{path}: {number} lines could not be read and are dropped")
        if num_records < expected:  # after a stop in a validation the run has recorded it later
            text = f"{num_records} records up to the checkpoint instead of {expected}; the curves have a gap"
            notes.append(f"{self.history.path}: {text}")
        return num_records, notes

    def _comparable(self) -> list[dict[str, float]]:
        """Return the records of validations on the present clips, see `RunSummary.validated_from`; else all."""
        records = self.history.validations()
        summary = self.summary()
        if summary is None:
            return records
        return [record for record in records if record["step"] >= summary.validated_from] or records

    def first_and_last(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the metrics of the first and the last validation.

        Raises:
            ValueError: The run has no validation.
        """
        records = self._comparable()
        if not records:
            remedy = "Use another --output_dir, or a larger --steps."
            raise argument_error(str(self.history.path), "a file with a validation", "none", remedy)
        return _metrics(records[0]), _metrics(records[-1])

    def best_step(self, metric: str, step: int, *, larger_is_better: bool) -> int | None:
        """Return the step of the best finite validation, the earliest of equals; None before training.

        Only validations with a checkpoint, and that of `step`, count.

        Args:
            metric: Name of the metric, such as "psnr".
            step: The present step.
            larger_is_better: Whether larger values of the metric are better.
        """
        saved_steps = {saved_step for saved_step, _ in self.checkpoints.all()}
        saved_steps.add(step)
        best_step: int | None = None
        best_value = -math.inf
        for record in self._comparable():
            value = record.get(f"val/{metric}", math.nan)
            if not larger_is_better:
                value = -value
            is_candidate = (
                record["step"] > 0 and record["step"] in saved_steps and math.isfinite(value)
            )
            if is_candidate and value > best_value:
                best_step = int(record["step"])
                best_value = value
        return best_step

    def environment(self) -> dict[str, str]:
        """Return the environment in which the run started, or nothing if it was not recorded."""
        if not self._environment_file.exists():
            return {}
        return {name: str(value) for name, value in read_json(self._environment_file).items()}

    def write_environment(self, values: dict[str, str]) -> None:
        """Record the environment."""
        write_json(self._environment_file, values)

    def tracker_id(self, *, is_new: bool) -> str:
        """Return the id of this run in trackers, which is recorded; that of a run before, or a new one.

        Raises:
            ValueError: The recorded id is damaged.
        """
        path = self._tracker_file
        if is_new or not path.exists():
            write_json(path, {"id": secrets.token_hex(4)})
        tracker_id = read_json(path).get("id")
        if not isinstance(tracker_id, str):
            raise argument_error(
                str(path), "the id of a run in trackers", tracker_id, f"Remove {path}."
            )
        return tracker_id

    def summary(self) -> RunSummary | None:
        """Return the summary, or None if it was not recorded; raise a `ValueError` if the file is damaged."""
        path = self._summary_file
        if not path.exists():
            return None
        return as_dataclass(
            RunSummary, read_json(path), str(path), "the summary of a run", f"Remove {path}."
        )

    def write_summary(self, summary: RunSummary) -> None:
        """Record the summary."""
        write_json(self._summary_file, asdict(summary))

    def validation_folders(self) -> list[tuple[int, Path]]:
        """Return (step, folder) of every validation with complete clips, oldest first."""
        folders = step_folders(self._validations)
        return [(step, folder) for step, folder in folders if os.path.lexists(folder / _CLIPS_FILE)]

    def write_validation(
        self,
        step: int,
        write: Callable[[Path], Iterable[SavedClip]],
        *,
        fps: float,
        amplification: float,
    ) -> Path:
        """Write the clips of a validation into a folder that appears whole, and return it.

        Args:
            step: The step of the validation.
            write: Writes the videos into the folder that it is called with, and yields their descriptions.
            fps: The frame rate of the fastest clip.
            amplification: The factor of the difference in the videos.

        Raises:
            ValueError: There is no clip.
        """
        folder = self._validations / step_name(step)
        partial = partial_path(folder)
        partial.mkdir(parents=True)
        try:
            clips = [asdict(clip) for clip in write(partial)]
            if not clips:
                raise argument_error(
                    "clips", "at least one clip", "none", "Validate on at least one clip."
                )
            described = {"step": step, "fps": fps, "amplification": amplification, "clips": clips}
            write_json(partial / _CLIPS_FILE, described)
            # The folder of this step from before the run was resumed.
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def remove_residue(self, before: float) -> None:
        """Remove what interrupted writes and deletions have left, and partial files from `before`, see `RunLock`."""
        self.checkpoints.remove_unfinished()
        for _, folder in step_folders(self._validations):
            if not (folder / _CLIPS_FILE).is_file():
                shutil.rmtree(folder)
        for folder in self._validations.glob(".step-*"):
            shutil.rmtree(folder)
        remove_partial(self.folder, before)
        remove_partial(self._videos, before)


def _metrics(record: dict[str, float]) -> dict[str, float]:
    return {
        name.removeprefix("val/"): value
        for name, value in record.items()
        if name.startswith("val/")
    }
