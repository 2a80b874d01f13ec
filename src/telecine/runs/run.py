"""The folder of a run."""

import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated

from pydantic import Field, InstanceOf

from telecine.base.checks import argument_error
from telecine.base.files import OUTPUT_MARKER, partial_path, read_json, remove_partial, write_json
from telecine.runs.checkpoints import Checkpoints, step_folders, step_name
from telecine.runs.history import Count, History, Warnings, as_dataclass
from telecine.runs.lock import LOCK_FILE, OWNER_FILE
from telecine.runs.settings import SETTINGS_FILE

_CLIPS_FILE = "clips.json"
_MAX_VIDEO = 2**32  # bytes; a sparse file can seem to have more, and the report copies videos
# Numbers as the files of a run have them. These may be anyone's, or damaged.
_Size = Annotated[int, Field(gt=0, lt=2**63, strict=True)]
_Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
_Positive = Annotated[_Finite, Field(gt=0)]


@dataclass(frozen=True)
class ValidationClips:
    """The clips that a run validates on. Metrics of other clips do not compare."""

    num_clips: _Size
    num_frames: _Size
    height: _Size
    width: _Size
    sha256: str  # of the pixels of all clips, in order


@dataclass(frozen=True)
class RunSummary:
    """The size, data, time and memory of a run: `summary.json`."""

    num_parameters: Count  # of the autoencoder
    num_trained: Count  # those of them that are trained
    num_disc_parameters: Count
    num_videos: Count  # that are used
    num_skipped: Count  # files that are not used
    num_frames: Count  # to train on
    clips_per_update: _Size
    validation: ValidationClips
    seconds: Annotated[_Finite, Field(ge=0)]  # with its validations, and before the run was resumed
    peak_memory: Count | None  # bytes of the first process, see `base.devices.peak_memory`
    num_images: Count = 0  # that are used
    validated_from: Count = 0  # the first step that counts for `validation`: before, the run may have had other clips
    data_sha256: str = ""  # of the names, sizes and trained frames of the files; empty before telecine 0.3
    # How many parameters of each module `init` gave, and how many it has.
    copied: dict[str, tuple[Count, Count]] = field(default_factory=dict)

    @staticmethod
    def describe_copied(copied: Mapping[str, tuple[int, int]]) -> str:
        """Return `copied` in one line."""
        known = {name: f"{some:,}" if some else "none" for name, (some, _) in copied.items()}
        return ", ".join(f"{name} {known[name]} of {total:,}" for name, (_, total) in copied.items())

    def after(self, before: "RunSummary | None", step: int) -> "RunSummary":
        """Return the summary of a run that was resumed at a step, with the time and the memory `before`."""
        known = before or self
        peak, copied = known.peak_memory, self.copied or known.copied
        start = known.validated_from if known.validation == self.validation else step + 1
        return replace(self, seconds=known.seconds, peak_memory=peak, copied=copied, validated_from=start)

    def until_now(self, start: float, peak_memory: int | None) -> "RunSummary":
        """Return it with the time since `start`, in `time.monotonic()`, and the peak memory of this process."""
        peak = None if peak_memory is None else max(peak_memory, self.peak_memory or 0)
        return replace(self, seconds=round(self.seconds + time.monotonic() - start, 3), peak_memory=peak)


@dataclass(frozen=True)
class SavedClip:
    """One clip of a validation in a run's folder."""

    video: str
    """File name of the video: input, reconstruction and amplified difference from left to right, of equal widths."""
    source: InstanceOf[str]  # its file in the data; a name may have bytes that are not UTF-8
    start: Count  # position of its first frame in the file
    num_frames: _Size
    height: _Size  # pixels of the clip; in the video, small clips are enlarged by 2
    width: _Size
    metrics: dict[str, Annotated[float, Field(strict=True)]]
    frame_psnr: list[_Finite]  # dB
    sha256: str = ""  # of the input's pixels: the same clip in other validations has it; empty before telecine 0.2
    fps: _Positive | None = None  # None where older versions wrote one rate for all
    colours: str = ""  # the values of the least and the last colour of a colour map; empty without one


@dataclass(frozen=True)
class SavedValidation:
    """The clips of one validation."""

    step: Count
    fps: _Positive  # of the fastest clip
    amplification: _Positive  # of the difference in the videos
    clips: list[SavedClip]
    folder: Path  # of the videos

    @classmethod
    def read(cls, folder: Path) -> "SavedValidation":
        """Return the validation whose clips are in a folder; raise a `ValueError` if their description is damaged."""
        path = folder / _CLIPS_FILE
        contract, remedy = "the description of a validation", f"Remove {folder}."
        saved = as_dataclass(cls, {**read_json(path), "folder": folder}, str(path), contract, remedy)
        for name in (clip.video for clip in saved.clips):  # the report copies these files
            if Path(name).name != name or name in ("", "..") or not name.isprintable() or (folder / name).is_symlink():
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
        self._environment_file = self.folder / "environment.json"
        self._summary_file = self.folder / "summary.json"
        self._validations = self.folder / "validation"
        self._videos = self.folder / f"{self.report_file.stem}_videos"

    def exists(self) -> bool:
        """Return whether the folder is that of a run, which may be damaged."""
        return os.path.lexists(self.history.path)

    def check_files(self) -> None:
        """Raise a `ValueError` if something inside, except `best`, is a symbolic link, or a video is too large."""
        folders = (self.checkpoints.folder, self._validations, self._videos, self.folder / "tensorboard")
        files = [self.history.path, self.warnings.path, self.settings_file, self.video_file, self._environment_file]
        files += [self._summary_file, self.folder / LOCK_FILE, self.folder / OWNER_FILE]
        files += [self.folder / OUTPUT_MARKER]
        below = (folder.glob(pattern) for pattern in ("*", "*/*") for folder in folders[:2])
        for path in chain(folders, files, *below):  # a folder before what is in it
            if path.is_symlink():
                got = f"a symbolic link to {os.readlink(path)}"
                raise argument_error(str(path), "in the run's folder itself", got, "Replace it by what it points to.")
            if path.suffix == ".mp4" and path.exists() and (size := path.stat().st_size) > _MAX_VIDEO:
                raise argument_error(str(path), f"a file of at most {_MAX_VIDEO} bytes", f"{size} bytes", "Remove it.")

    def cut(self, step: int, expected: int = 0) -> tuple[int, list[str]]:
        """Remove the records, warnings and clips after the step of a checkpoint; the run writes the later ones again.

        Return the number of records left, of which the checkpoint has `expected`, and notes about missing ones.
        """
        for later, folder in self.validation_folders():
            if later > step:
                shutil.rmtree(folder)
        cuts = [(file.path, *file.cut(step)) for file in (self.history, self.warnings)]
        notes = [f"{path}: {dropped} lines could not be read and are dropped" for path, _, dropped in cuts if dropped]
        path, num_kept, _ = cuts[0]
        if num_kept < expected:  # after a stop in a validation the run has recorded it later
            text = f"{num_kept} records up to the checkpoint instead of {expected}; the curves have a gap"
            notes.append(f"{path}: {text}")
        return num_kept, notes

    def _comparable(self) -> list[dict[str, float]]:
        """Return the records of validations on the present clips, see `RunSummary.validated_from`; else all."""
        found, summary = self.history.validations(), self.summary()
        return [each for each in found if summary and each["step"] >= summary.validated_from] or found

    def first_and_last(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the metrics of the first and the last validation; raise a `ValueError` without a validation."""
        found = self._comparable()
        if not found:
            remedy = "Use another --output_dir, or a larger --steps."
            raise argument_error(str(self.history.path), "a file with a validation", "none", remedy)
        first, last = (
            {name.removeprefix("val/"): value for name, value in record.items() if name.startswith("val/")}
            for record in (found[0], found[-1])
        )
        return first, last

    def best_step(self, metric: str | None, step: int) -> int | None:
        """Return the step of the best finite validation by `metric`, the earliest of equals.

        Return None without a metric or before training. Only validations with a checkpoint, and that of `step`, count.
        """
        if metric is None:
            return None
        name, sign = f"val/{metric}", -1 if "lpips" in metric else 1  # of LPIPS, less is better
        kept = {step, *(saved for saved, _ in self.checkpoints.all())} - {0}
        candidates = [each for each in self._comparable() if each["step"] in kept]
        finite = [each for each in candidates if math.isfinite(each.get(name, math.nan))]
        best = max(finite, key=lambda record: sign * record[name], default=None)
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
        path = self.folder / "tracker.json"
        if is_new or not path.exists():
            write_json(path, {"id": secrets.token_hex(4)})
        found = read_json(path).get("id")
        if not isinstance(found, str):
            raise argument_error(str(path), "the id of a run in trackers", found, f"Remove {path}.")
        return found

    def summary(self) -> RunSummary | None:
        """Return the summary, or None if it was not recorded; raise a `ValueError` if the file is damaged."""
        path = self._summary_file
        texts = str(path), "the summary of a run", f"Remove {path}."
        return as_dataclass(RunSummary, read_json(path), *texts) if path.exists() else None

    def write_summary(self, summary: RunSummary) -> None:
        """Record the summary."""
        write_json(self._summary_file, asdict(summary))

    def validation_folders(self) -> list[tuple[int, Path]]:
        """Return (step, folder) of every validation with complete clips, oldest first."""
        return [each for each in step_folders(self._validations) if os.path.lexists(each[1] / _CLIPS_FILE)]

    def write_validation(
        self, step: int, write: Callable[[Path], Iterable[SavedClip]], *, fps: float, amplification: float
    ) -> Path:
        """Return a folder that appears whole, into which `write` writes the videos; it yields their descriptions."""
        folder = self._validations / step_name(step)
        partial = partial_path(folder)
        partial.mkdir(parents=True)
        try:
            clips = [asdict(clip) for clip in write(partial)]
            if not clips:
                raise argument_error("clips", "at least one clip", "none", "Validate on at least one clip.")
            described = {"step": step, "fps": fps, "amplification": amplification, "clips": clips}
            write_json(partial / _CLIPS_FILE, described)
            shutil.rmtree(folder, ignore_errors=True)  # the folder of this step from before the run was resumed
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def remove_residue(self, before: float) -> None:
        """Remove what interrupted writes and deletions have left, and partial files from `before`, see `RunLock`."""
        self.checkpoints.remove_unfinished()
        unfinished = [path for _, path in step_folders(self._validations) if not (path / _CLIPS_FILE).is_file()]
        for folder in (*unfinished, *self._validations.glob(".step-*")):
            shutil.rmtree(folder)
        for folder in (self.folder, self._videos):
            remove_partial(folder, before)
