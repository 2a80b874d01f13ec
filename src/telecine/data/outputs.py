"""Checks of paths that are written to, beside the data."""

from collections.abc import Sequence
from glob import has_magic
from os import PathLike
from pathlib import Path

from telecine.base.checks import argument_error
from telecine.data.paths import deepest_folder, expand_braces, paths_of
from telecine.data.source import is_address


def check_is_local(name: str, output: str | PathLike[str]) -> None:
    """Check that a path to write to is local.

    Args:
        name: Name of the argument `output` in error messages.
        output: The path.

    Raises:
        ValueError: It is an address.
    """
    if "://" in str(output):
        raise argument_error(
            name, "a path on this machine", repr(output), "Mount it, or copy the output afterwards."
        )


def check_output(
    name: str,
    data: str | PathLike[str] | Sequence[str | PathLike[str]] | None,
    output: str | PathLike[str],
) -> None:
    """Check that a path to write to is local, and is no folder of the data; it may be inside one.

    Args:
        name: Name of the argument `output` in error messages.
        data: Where the data is, or None for the sample videos.
        output: The path to write to.

    Raises:
        ValueError: It is an address, or a folder that is searched for data.
    """
    check_is_local(name, output)
    patterns = []
    for data_path in paths_of(data):
        patterns += expand_braces(data_path)
    for pattern in patterns:
        path = Path(pattern)
        is_pattern = has_magic(pattern) and not is_address(pattern) and not path.is_file()
        if not path.is_dir() and not is_pattern:
            continue
        if deepest_folder(path).resolve() == Path(output).resolve():
            raise argument_error(
                name, "another folder than the data", repr(str(output)), "Name a folder inside it."
            )
