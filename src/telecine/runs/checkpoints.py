"""Checkpoints of a run: folders that appear whole, with a digest of each file, and which of them are kept."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from telecine.base.checks import argument_error
from telecine.base.files import digest_of, flush, open_regular, partial_path, read_json, remove

T = TypeVar("T")
_FOLDER, _STATE, _MANIFEST = "checkpoints", "state.json", "manifest.json"
# A symbolic link to the checkpoint with the best validation, with `best_metric`.
_BEST = "best"
_FORMAT = 1
# A manifest has a digest of its other values, and for each file these.
_DIGEST = "digest"
_ENTRY = {"size": int, "sha256": str}
_OTHER = "other bytes"
# The suffix of a checkpoint while another one of the same step takes its place.
_REPLACED = ".replaced"
_REMEDY = "Restore it from a copy, or use another checkpoint."
_STEP_NAME = re.compile(r"step-(\d+)")


class DamagedError(ValueError):
    """The files of a checkpoint are not those that were written."""


class Checkpoints:
    """The checkpoints in the folder of a run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.folder = run / _FOLDER

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint at `step`."""
        return self.folder / step_name(step)

    def all(self) -> list[tuple[int, Path]]:
        """Return (step, folder) of every checkpoint, oldest first; some may be damaged."""
        found = step_folders(self.folder)  # one that has lost all other files has tensors
        return [each for each in found if self.is_checkpoint(each[1]) or any(each[1].rglob("*.safetensors"))]

    def newest_intact(self) -> tuple[Path | None, list[str]]:
        """Return the newest checkpoint that is not damaged, and notes about damaged newer ones, which are renamed.

        If all are damaged, they stay, and a `DamagedError` is raised. What is no checkpoint stays, with a note.
        """
        damaged: dict[Path, DamagedError] = {}
        self._finish_replacing()
        found = self.all()
        others = [path for step, path in step_folders(self.folder) if (step, path) not in found]
        notes = [f"{path} is no checkpoint, as it has no file of one. It stays as it is." for path in others]
        for _, folder in reversed(found):
            if (error := self.damage_of(folder)) is None:
                return folder, notes + [f"{each} It is now {_set_aside(bad)}." for bad, each in damaged.items()]
            damaged[folder] = error
        if damaged:
            errors, remedy = " ".join(map(str, damaged.values())), f"To start again, move {self.run} away."
            raise DamagedError(f"No checkpoint of {self.run} is intact. {errors} {remedy}")
        return None, notes

    @staticmethod
    def damage_of(folder: Path) -> DamagedError | None:
        """Return how a checkpoint differs from what was written, or None."""
        try:
            _check_manifest(folder)
        except DamagedError as error:
            return error
        return None

    @staticmethod
    def check_model(folder: Path) -> None:
        """Raise a `DamagedError` if a model's folder is part of a checkpoint, and its files differ."""
        if (folder.parent / _MANIFEST).is_file():
            _check_manifest(folder.parent, part=folder.name)

    def begin(self, step: int) -> Path:
        """Create a temporary folder for the files of the checkpoint at `step`, and return it."""
        self.remove_unfinished()
        temporary = partial_path(self.path(step))
        temporary.mkdir(parents=True)
        return temporary

    def finish(
        self, step: int, temporary: Path, *, keep: int, best: int | None = None, known: Mapping[Path, str] | None = None
    ) -> None:
        """Complete the checkpoint in the folder of `begin`, and call `remove_old`."""
        final = self.path(step)
        _write_manifest(temporary, step, known)
        flush([*temporary.rglob("*"), temporary])
        if self.is_checkpoint(final):
            os.replace(final, final.with_name(f".{final.name}{_REPLACED}"))
        elif final.exists():
            _set_aside(final)
        os.replace(temporary, final)
        flush([self.folder, self.run])
        self.remove_unfinished()
        self.remove_old(keep=keep, best=best)

    def remove_old(self, *, keep: int, best: int | None) -> None:
        """Delete all but the newest `keep` checkpoints and that of the link, which points to step `best` or stays."""
        link = self.run / _BEST
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
        return (folder / _MANIFEST).is_file() or (folder / _STATE).is_file()

    @staticmethod
    def write_state(folder: Path, state: Mapping[str, Any]) -> None:
        """Write the plain values of a checkpoint into its folder."""
        (folder / _STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")

    @staticmethod
    def read_state(folder: Path, names: set[str]) -> dict[str, Any]:
        """Return the plain values of a checkpoint; raise a `ValueError` if they are not under all these names."""
        state = read_json(folder / _STATE)
        if missing := sorted(names - set(state)):
            contract, got = "that of a checkpoint of this version", f"one without {', '.join(missing)}"
            remedy = "Resume with the version that wrote it, or pass the run as --model with another --output_dir."
            raise argument_error(str(folder / _STATE), contract, got, remedy)
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
    found = ((_STEP_NAME.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def find_checkpoint(path: Path) -> Path | None:
    """Return `path` if it is a checkpoint, its last checkpoint if it is a run, otherwise None."""
    if Checkpoints.is_checkpoint(path):
        return path
    found = Checkpoints(path).all()
    return found[-1][1] if found else None


def _write_manifest(folder: Path, step: int, known: Mapping[Path, str] | None = None) -> None:
    """Write the step of a checkpoint, and the size and SHA-256 of its files; others have computed the `known` ones."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = dict(known or {})
    own = [path for path in paths if path not in digests]
    digests |= zip(own, _in_threads(digest_of, own), strict=True)
    entries = {path: {"size": path.stat().st_size, "sha256": digests[path]} for path in paths}
    files = {path.relative_to(folder).as_posix(): entry for path, entry in entries.items()}
    manifest = {"format": _FORMAT, "step": step, "files": files}
    manifest[_DIGEST] = _digest_of_values(manifest)
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _digest_of_values(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _check_manifest(folder: Path, *, part: str = "") -> None:
    """Raise a `DamagedError` if the files of a checkpoint, or of a `part`, differ, or the whole has another name."""
    manifest = _read_manifest(folder, follow=bool(part))
    name = step_name(manifest["step"])
    if not part and folder.resolve().name != name:
        raise argument_error(str(folder), f"named {name}, as written", "another name", "Rename it.", DamagedError)
    files = {folder / name: entry for name, entry in manifest["files"].items() if Path(part) in Path(name).parents}
    find = partial(_difference, below=None if part else folder)
    for path, got in zip(files, _in_threads(find, files, files.values()), strict=True):
        if got is not None:
            contract = "as it was written" if got == _OTHER else f"a file of {files[path]['size']} bytes"
            raise argument_error(str(path), contract, got, _REMEDY, DamagedError)


def _difference(path: Path, entry: Mapping[str, Any], below: Path | None) -> str | None:
    """Return what is in the place of a file, or None; `below` a folder, it must not be a symbolic link."""
    if below is not None and any(each.is_symlink() for each in (path, *path.parents) if below in each.parents):
        return "a symbolic link"
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size != entry["size"]:
            return f"one of {size} bytes"
        return None if digest_of(path) == entry["sha256"] else _OTHER
    except FileNotFoundError:
        return "a missing one"
    except (OSError, ValueError) as error:
        return f"one that cannot be read ({error})"


def _read_manifest(folder: Path, *, follow: bool) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not path.is_file() or (path.is_symlink() and not follow):
        contract, got = f"a checkpoint with {_MANIFEST}", "one without, damaged or of an older version"
        raise argument_error(str(folder), contract, got, "Use another checkpoint.", DamagedError)
    try:
        manifest = read_json(path)
    except (OSError, ValueError) as error:
        got = f"one that cannot be read ({error})"
        raise argument_error(str(path), "a file as it was written", got, _REMEDY, DamagedError) from error
    if manifest.get("format") != _FORMAT:
        contract, got = f"a manifest of format {_FORMAT}", f"format {manifest.get('format')}"
        raise argument_error(str(path), contract, got, "Use the version that wrote it.", DamagedError)
    if not _is_whole(manifest):
        raise argument_error(str(path), "as it was written", "other values", _REMEDY, DamagedError)
    return manifest


def _is_whole(manifest: dict[str, Any]) -> bool:
    """Return whether the values in a manifest are those that were written; older ones have no digest of them."""
    values = {name: value for name, value in manifest.items() if name != _DIGEST}
    digest = _digest_of_values(values)
    if values.keys() != {"format", "step", "files"} or manifest.get(_DIGEST, digest) != digest:
        return False
    step, files = values["step"], values["files"]
    return isinstance(step, int) and isinstance(files, dict) and all(map(_is_entry, files.items()))


def _is_entry(item: tuple[str, Any]) -> bool:
    """Return whether an item of a manifest is the name of a file below its folder, its size and its SHA-256."""
    name, entry = item
    is_below = not Path(name).is_absolute() and ".." not in Path(name).parts and "\0" not in name
    return is_below and isinstance(entry, dict) and {key: type(entry[key]) for key in entry} == _ENTRY


def _in_threads(read: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    """Return what a function that reads a file returns for each. Several are read at a time."""
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing runs without Python's lock
        return list(pool.map(read, *arguments))


def _set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that it no longer counts as one, and return its new path."""
    taken = {path.name for path in folder.parent.iterdir()}
    names = (f"damaged-{folder.name}" + (f"-{number}" if number else "") for number in range(len(taken) + 1))
    aside = folder.with_name(next(name for name in names if name not in taken))
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
