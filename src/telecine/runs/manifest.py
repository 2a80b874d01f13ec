"""The manifest of a checkpoint: a digest of each of its files, written last and compared before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from telecine.base.checks import argument_error
from telecine.base.files import digest_of, read_json
from telecine.runs.layout import MANIFEST_FILE, checkpoint_name

FORMAT = 1
_REMEDY = "Restore it from a copy, or use another checkpoint."


class DamagedError(ValueError):
    """A checkpoint is not what was written."""


def write_manifest(folder: Path, step: int, known: Mapping[Path, str] | None = None) -> None:
    """Write the size and the SHA-256 of each file in the folder of a checkpoint, and its step.

    Args:
        folder: The folder of the checkpoint.
        step: Number of updates done.
        known: The digests of files that other processes have written.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    of_others = known or {}
    own = [path for path in paths if path not in of_others]
    found = {**dict(zip(own, digests(own), strict=True)), **of_others}
    entries = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": found[path]} for path in paths
    }
    manifest = {"format": FORMAT, "step": step, "files": entries}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def check_manifest(folder: Path, *, part: str = "") -> None:
    """Check that the files of a checkpoint are those that were written.

    Args:
        folder: The folder of the checkpoint.
        part: Check the files in this folder below it only, for example "ema". The name of the checkpoint does not
            matter then: a copy may have another one.

    Raises:
        DamagedError: A file is missing or has other contents, or the folder has the name of another step.
    """
    manifest = _read_manifest(folder)
    name = checkpoint_name(manifest["step"])
    if not part and folder.resolve().name != name:
        raise argument_error(str(folder), f"named {name}, as written", "another name", "Rename it.", DamagedError)
    files = {folder / name: entry for name, entry in manifest["files"].items() if Path(part) in Path(name).parents}
    for path, entry in files.items():
        size = path.stat().st_size if path.is_file() else None
        if size != entry["size"]:
            got = "a missing one" if size is None else f"one of {size} bytes"
            raise argument_error(str(path), f"a file of {entry['size']} bytes", got, _REMEDY, DamagedError)
    for path, digest in zip(files, digests(list(files)), strict=True):
        if digest != files[path]["sha256"]:
            raise argument_error(str(path), "as it was written", "other bytes", _REMEDY, DamagedError)


def damage_of(folder: Path) -> DamagedError | None:
    """Return how a checkpoint differs from what was written, or None."""
    try:
        check_manifest(folder)
    except DamagedError as error:
        return error
    return None


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        contract, got = f"a checkpoint with {MANIFEST_FILE}", "one without, damaged or of an older version"
        raise argument_error(str(folder), contract, got, "Use another checkpoint.", DamagedError)
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise DamagedError(str(error)) from error
    if manifest.get("format") != FORMAT or not {"step", "files"} <= manifest.keys():
        contract, got = f"a manifest of format {FORMAT}", f"format {manifest.get('format')}"
        raise argument_error(str(path), contract, got, "Use the version that wrote it.", DamagedError)
    return manifest


def digests(paths: list[Path]) -> list[str]:
    """Return the SHA-256 of each file. Several are read at a time."""
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing runs without Python's lock
        return list(pool.map(digest_of, paths))
