"""The members of tar files: from the file that has those of all, or from their sidecars."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from telecine.base.terminal import with_progress
from telecine.data.errors import thread_errors
from telecine.data.lazy.file_table import FileTable
from telecine.data.lazy.index_file import DAMAGE_ERRORS, remove_left
from telecine.data.lazy.mapped_members import (
    key_of_archives,
    map_members,
    remove_unused,
    write_members,
)
from telecine.data.lazy.sidecar import (
    Sidecar,
    has_arrays,
    read_sidecar,
    scan_archive,
    write_sidecar,
)
from telecine.data.source import File, Skipped
from telecine.data.worker_process import map_in_processes, num_processors
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

# Tar files that are scanned at once, on few processors, too: a server is asked for headers one after the other.
_FEWEST_SCANS = 4


def find_members(
    archives: Sequence[File], folders: Sequence[Path], config: ClipConfig
) -> tuple[FileTable, list[Skipped]]:
    """Return the members of tar files by their sidecars. A sidecar is written where there is none.

    They are kept in one file, which later runs map into memory. It is not written if a tar file has arrays, or cannot
    be read whole by the system: each run scans such a tar file.

    Args:
        archives: The tar files.
        folders: Where the one file is. The first folder is written to.
        config: Its `timeout` is for each tar file without a sidecar. Its other settings are for arrays.

    Returns:
        The members, and those whose header cannot be read.

    Raises:
        DataError: a tar file is not read in time.
    """
    name = key_of_archives(archives)
    paths = [folder / name for folder in folders]
    mapped = _map_first(paths, archives)
    if mapped is not None:
        return mapped
    sidecars = _sidecars_of(archives, config)
    unread = [archive for archive in archives if not sidecars[archive].was_read_whole]
    with_arrays = [archive for archive in archives if has_arrays(sidecars[archive])]
    parts = []
    skipped = []
    for archive, sidecar in sidecars.items():
        parts.append(replace(sidecar.members, archives=(archive,)))
        skipped.extend(sidecar.skipped)
    members = FileTable.joined(parts)
    if unread:
        text = "each run reads the headers of all tar files until all can be read; %d cannot: %s"
        logger.warning(text, len(unread), unread[0])
    if 0 < len(with_arrays) < len(archives):
        text = "each run scans %d of %d tar files, as they have arrays: %s"
        logger.warning(text, len(with_arrays), len(archives), with_arrays[0])
    if not unread and not with_arrays:
        path = paths[0]
        mapped = _map_first([path], archives)  # another process may have written it meanwhile
        if mapped is not None:
            return mapped
        try:
            remove_left(path.parent)
            remove_unused(path.parent)
            path.unlink(missing_ok=True)  # it is damaged
            write_members(path, members, skipped)
            return map_members(path, archives)
        except (OSError, ValueError) as error:
            logger.warning("the members of tar files cannot be saved: %s", error)
    return members, skipped


def _map_first(
    paths: Sequence[Path], archives: Sequence[File]
) -> tuple[FileTable, list[Skipped]] | None:
    """Return the members of tar files by the first file that can be mapped; None if none can."""
    for path in paths:
        with suppress(*DAMAGE_ERRORS):
            return map_members(path, archives)
    return None


def _sidecars_of(archives: Sequence[File], config: ClipConfig) -> dict[File, Sidecar]:
    """Return the sidecars of tar files. Those that have none are scanned, by processes if there are some, and get one.

    Raises:
        DataError: a tar file is not read in time, or a process was killed.
    """
    with thread_errors(), ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(read_sidecar, archives)
        results = with_progress(results, "reading sidecars", total=len(archives))
        saved = dict(zip(archives, results, strict=True))
    missing = [archive for archive, sidecar in saved.items() if sidecar is None]
    if not missing:
        return {archive: sidecar for archive, sidecar in saved.items() if sidecar is not None}
    num_processes = 1
    if config.num_workers > 0:
        num_processes = max(1, min(len(missing), max(_FEWEST_SCANS, num_processors())))
    # They share the disk and the network: all of them together may take as long as one after the other.
    config = replace(config, timeout=config.timeout * num_processes)
    scan = partial(_scan_and_save, config=config)
    with thread_errors():
        sidecars = map_in_processes(scan, missing, num_processes, "scanning tar files")
        scanned = dict(zip(missing, sidecars, strict=True))
    return {archive: sidecar or scanned[archive] for archive, sidecar in saved.items()}


def _scan_and_save(archive: File, config: ClipConfig) -> Sidecar:
    sidecar = scan_archive(archive, config)
    if _is_lasting(sidecar):
        try:
            write_sidecar(archive, sidecar)
        except OSError as error:
            logger.warning("the headers of %s cannot be saved: %s", archive, error)
    return sidecar


def _is_lasting(sidecar: Sidecar) -> bool:
    """Return whether a sidecar holds for other runs, too."""
    return sidecar.was_read_whole and not has_arrays(sidecar)
