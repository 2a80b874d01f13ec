"""Checkpoints of a run: folders that appear whole, and which of them are kept."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telecine.base.checks import argument_error
from telecine.base.files import flush, named_errors, partial_path, read_json, remove
from telecine.runs.manifest import MANIFEST_FILE, DamagedError, check_manifest, write_manifest

_FOLDER = "checkpoints"
_STATE_FILE = "state.json"
# A symbolic link to the checkpoint with the best validation, with `best_metric`.
_BEST = "best"
# The suffix of a checkpoint while another one of the same step takes its place.
_REPLACED = ".replaced"
_STEP_NAME = re.compile(r"step-(\d+)")


class Checkpoints:
    """The checkpoints in the folder of a run."""

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder
        self.folder = run_folder / _FOLDER

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint at `step`."""
        return self.folder / step_name(step)

    def all(self) -> list[tuple[int, Path]]:
        """Return (step, folder) of every checkpoint, oldest first; some may be damaged."""
        checkpoints = []
        for step, folder in step_folders(self.folder):
            # One that has lost all other files has tensors.
            if self.is_checkpoint(folder) or any(folder.rglob("*.safetensors")):
                checkpoints.append((step, folder))
        return checkpoints

    def newest_intact(self) -> tuple[Path | None, list[str]]:
        """Find the newest checkpoint that is not damaged, and rename damaged newer ones.

        Returns:
            Its folder, None if there is no checkpoint, and notes: about damaged ones, and about what has the name of a
            checkpoint but no file of one, which stays as it is.

        Raises:
            DamagedError: All checkpoints are damaged. They are not renamed.
        """
        self._finish_replacing()
        checkpoints = [folder for _, folder in self.all()]
        notes = []
        for _, path in step_folders(self.folder):
            if path not in checkpoints:
                notes.append(
                    f"{path} is no checkpoint, as it has no file of one. It stays as it is."
                )
        damaged: dict[Path, DamagedError] = {}
        for folder in reversed(checkpoints):
            error = self.damage_of(folder)
            if error is None:
                for damaged_folder, damage in damaged.items():
                    new_path = _set_aside(damaged_folder)
                    notes.append(f"{damage} It is now {new_path}.")
                return folder, notes
            damaged[folder] = error
        if damaged:
            errors = " ".join(str(error) for error in damaged.values())
            remedy = f"To start again, move {self.run_folder} away."
            raise DamagedError(f"No checkpoint of {self.run_folder} is intact. {errors} {remedy}")
        return None, notes

    @staticmethod
    def damage_of(folder: Path) -> DamagedError | None:
        """Return how a checkpoint differs from what was written, or None."""
        try:
            name = step_name(check_manifest(folder))
            if folder.resolve().name != name:
                contract = f"named {name}, as written"
                raise argument_error(
                    str(folder), contract, "another name", "Rename it.", DamagedError
                )
        except DamagedError as error:
            return error
        return None

    @staticmethod
    def check_model(folder: Path) -> None:
        """Check the files in a model's folder if it is part of a checkpoint.

        Raises:
            DamagedError: A file differs from what was written.
        """
        if (folder.parent / MANIFEST_FILE).is_file():
            check_manifest(folder.parent, part=folder.name)

    def begin(self, step: int) -> Path:
        """Create a temporary folder for the files of the checkpoint at `step`, and return it."""
        self.remove_unfinished()
        temporary = partial_path(self.path(step))
        temporary.mkdir(parents=True)
        return temporary

    def finish(
        self,
        step: int,
        temporary: Path,
        *,
        keep: int,
        best: int | None = None,
        digests: Mapping[Path, str] | None = None,
    ) -> None:
        """Complete a checkpoint, which appears whole, then remove old ones.

        Args:
            step: The step of the checkpoint.
            temporary: The folder of `begin` with its files.
            keep: How many of the newest checkpoints to keep.
            best: The step of the best checkpoint, see `remove_old`.
            digests: The SHA-256 of some of the files, which are not read again.
        """
        final = self.path(step)
        write_manifest(temporary, step, digests)
        flush([*temporary.rglob("*"), temporary])
        if self.is_checkpoint(final):
            os.replace(final, final.with_name(f".{final.name}{_REPLACED}"))
        elif final.exists():
            _set_aside(final)
        os.replace(temporary, final)
        flush([self.folder, self.run_folder])
        self.remove_unfinished()
        self.remove_old(keep=keep, best=best)

    def remove_old(self, *, keep: int, best: int | None) -> None:
        """Delete all but the newest `keep` checkpoints and that of the link, which points to step `best` or stays."""
        link = self.run_folder / _BEST
        if best is not None:
            _point_to(link, self.path(best))
        elif not link.exists():
            link.unlink(missing_ok=True)
        for _, folder in self.all()[:-keep]:
            if folder.resolve() != link.resolve():
                _delete(folder)

    @staticmethod
    def is_checkpoint(folder: Path) -> bool:
        """Return whether a folder is a checkpoint; it may be damaged."""
        return (folder / MANIFEST_FILE).is_file() or (folder / _STATE_FILE).is_file()

    @staticmethod
    def write_state(folder: Path, state: Mapping[str, Any]) -> None:
        """Write the plain values of a checkpoint into its folder."""
        path = folder / _STATE_FILE
        with named_errors(path):
            path.write_text(json.dumps(state, indent=2), encoding="utf-8")

    @staticmethod
    def read_state(folder: Path, names: set[str]) -> dict[str, Any]:
        """Return the plain values of a checkpoint, which must have these names.

        Raises:
            ValueError: A name is missing: another version wrote the checkpoint.
        """
        state = read_json(folder / _STATE_FILE)
        missing = sorted(names - set(state))
        if missing:
            contract = "that of a checkpoint of this version"
            got = f"one without {', '.join(missing)}"
            remedy = "Resume with the version that wrote it, or pass the run as --model with another --output_dir."
            raise argument_error(str(folder / _STATE_FILE), contract, got, remedy)
        return state

    def _finish_replacing(self) -> None:
        """Give checkpoints their names back that a kill in `finish` has left without a successor."""
        for replaced in self.folder.glob(f".*{_REPLACED}"):
            final = replaced.with_name(replaced.name[1:].removesuffix(_REPLACED))
            if not final.exists():
                os.replace(replaced, final)

    def remove_unfinished(self) -> None:
        """Remove what interrupted writes and deletions of checkpoints have left."""
        for folder in self.folder.glob(".step-*"):
            remove(folder)


def step_name(step: int) -> str:
    """Return the name of a folder with what belongs to a step."""
    return f"step-{step:08d}"


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of the folders below one that are named after a step, in the order of steps."""
    folders = []
    for path in folder.glob("step-*"):
        match = _STEP_NAME.fullmatch(path.name)
        if match is not None:
            folders.append((int(match[1]), path))
    return sorted(folders)


def find_checkpoint(path: Path) -> Path | None:
    """Return `path` if it is a checkpoint, its last checkpoint if it is a run, otherwise None."""
    if Checkpoints.is_checkpoint(path):
        return path
    checkpoints = Checkpoints(path).all()
    if not checkpoints:
        return None
    _, last = checkpoints[-1]
    return last


def _set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that it no longer counts as one, and return its new path."""
    aside = folder.with_name(f"damaged-{folder.name}")
    number = 0
    while os.path.lexists(aside):
        number += 1
        aside = folder.with_name(f"damaged-{folder.name}-{number}")
    os.replace(folder, aside)
    return aside


def _point_to(link: Path, folder: Path) -> None:
    temporary = partial_path(link)
    temporary.symlink_to(folder.relative_to(link.parent), target_is_directory=True)
    if link.is_dir() and not link.is_symlink():  # the run was copied without symbolic links
        _delete(link)
    os.replace(temporary, link)


def _delete(folder: Path) -> None:
    """Rename a folder, then delete it, so that a partly deleted checkpoint is not mistaken for a complete one."""
    hidden = folder.with_name(f".{folder.name}.deleted")
    remove(hidden)  # an earlier deletion was interrupted
    os.replace(folder, hidden)
    remove(hidden)
