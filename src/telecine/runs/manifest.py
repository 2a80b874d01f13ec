"""The manifest of a checkpoint: the size and the SHA-256 of each of its files, which show damage."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from telecine.base.checks import argument_error
from telecine.base.files import digest_of, named_errors, open_regular, read_json

MANIFEST_FILE = "manifest.json"
_FORMAT = 1
# A manifest has a digest of its other values; those of older versions have none.
_DIGEST = "digest"
_REMEDY = "Restore it from a copy, or use another checkpoint."
# Several files are read at a time: hashing runs without Python's lock.
_NUM_THREADS = 4


class DamagedError(ValueError):
    """The files of a checkpoint are not those that were written."""


def write_manifest(folder: Path, step: int, digests: Mapping[Path, str] | None = None) -> None:
    """Write the manifest of all files in the folder of a checkpoint.

    Args:
        folder: The folder, which has all other files.
        step: The step of the checkpoint.
        digests: The SHA-256 of some of the files, which are not read again.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = dict(digests or {})
    unread = [path for path in paths if path not in digests]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        digests.update(zip(unread, pool.map(digest_of, unread), strict=True))
    files = {}
    for path in paths:
        files[path.relative_to(folder).as_posix()] = {
            "size": path.stat().st_size,
            "sha256": digests[path],
        }
    manifest: dict[str, Any] = {"format": _FORMAT, "step": step, "files": files}
    manifest[_DIGEST] = _digest_of_values(manifest)
    path = folder / MANIFEST_FILE
    with named_errors(path):
        path.write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _digest_of_values(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def check_manifest(folder: Path, *, part: str = "") -> int:
    """Compare the files of a checkpoint with its manifest.

    Args:
        folder: The folder of the checkpoint.
        part: A folder in it. Only its files are compared, and they may be reached through symbolic links.

    Returns:
        The step of the checkpoint.

    Raises:
        DamagedError: The manifest or a file differs from what was written.
    """
    manifest = _read_manifest(folder, allow_links=bool(part))
    names = list(manifest["files"])
    if part:
        names = [name for name in names if Path(part) in Path(name).parents]

    def check_file(name: str) -> None:
        _check_file(folder, name, manifest["files"][name], allow_links=bool(part))

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        list(pool.map(check_file, names))  # raises the error of the first file that differs
    return int(manifest["step"])


def _check_file(folder: Path, name: str, entry: Mapping[str, Any], *, allow_links: bool) -> None:
    """Raise a `DamagedError` if a file differs from its entry in the manifest."""
    path = folder / name
    parts = [path, *path.parents[: len(Path(name).parts) - 1]]  # below the folder
    contract = f"a file of {entry['size']} bytes"
    got = ""
    try:
        if not allow_links and any(part.is_symlink() for part in parts):
            got = "a symbolic link"
        else:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
            if size != entry["size"]:
                got = f"one of {size} bytes"
            elif digest_of(path) != entry["sha256"]:
                contract = "as it was written"
                got = "other bytes"
    except FileNotFoundError:
        got = "a missing one"
    except (OSError, ValueError) as error:
        got = f"one that cannot be read ({error})"
    if got:
        raise argument_error(str(path), contract, got, _REMEDY, DamagedError)


def _read_manifest(folder: Path, *, allow_links: bool) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not path.is_file() or (path.is_symlink() and not allow_links):
        contract = f"a checkpoint with {MANIFEST_FILE}"
        got = "one without, damaged or of an older version"
        raise argument_error(str(folder), contract, got, "Use another checkpoint.", DamagedError)
    try:
        manifest = read_json(path)
    except (OSError, ValueError) as error:
        got = f"one that cannot be read ({error})"
        raise argument_error(
            str(path), "a file as it was written", got, _REMEDY, DamagedError
        ) from error
    if manifest.get("format") != _FORMAT:
        contract = f"a manifest of format {_FORMAT}"
        got = f"format {manifest.get('format')}"
        raise argument_error(
            str(path), contract, got, "Use the version that wrote it.", DamagedError
        )
    if not _is_intact(manifest):
        raise argument_error(str(path), "as it was written", "other values", _REMEDY, DamagedError)
    return manifest


def _is_intact(manifest: dict[str, Any]) -> bool:
    """Return whether a manifest has the right digest and values of the right types: it may be anyone's."""
    values = {name: value for name, value in manifest.items() if name != _DIGEST}
    digest = _digest_of_values(values)
    if manifest.get(_DIGEST, digest) != digest:
        return False
    if values.keys() != {"format", "step", "files"}:
        return False
    if not isinstance(values["step"], int) or not isinstance(values["files"], dict):
        return False
    for name, entry in values["files"].items():
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            return False
        if not isinstance(entry, dict) or entry.keys() != {"size", "sha256"}:
            return False
        if type(entry["size"]) is not int or not isinstance(entry["sha256"], str):
            return False
    return True
