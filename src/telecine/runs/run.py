"""The folder of a run."""

import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from telecine.base.checks import argument_error
from telecine.base.files import OUTPUT_MARKER, partial_path, read_json, remove_partial, write_json
from telecine.base.plain_values import as_dataclass
from telecine.runs.checkpoints import Checkpoints, step_folders, step_name
from telecine.runs.history import History, Warnings
from telecine.runs.lock import LOCK_FILE, OWNER_FILE
from telecine.runs.saved_clips import VALIDATION_FILE, SavedClip
from telecine.runs.saved_settings import SETTINGS_FILE
from telecine.runs.summary import RunSummary

_MAX_VIDEO = 2**32  # bytes; a sparse file can seem to have more, and the report copies videos


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
        """Return the records of validations on the present clips, see `RunSummary.comparable`."""
        records = self.history.validations()
        summary = self.summary()
        return records if summary is None else summary.comparable(records)

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
        return [
            (step, folder) for step, folder in folders if os.path.lexists(folder / VALIDATION_FILE)
        ]

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
            write_json(partial / VALIDATION_FILE, described)
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
            if not (folder / VALIDATION_FILE).is_file():
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
