"""Write files atomically, read and write JSON, digests of files, and the user's cache folder."""

import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from telecine.base.checks import argument_error

# Marks the folders that data sets leave out.
OUTPUT_MARKER = ".telecine-output"
# Bytes of the largest JSON file that is read.
_MAX_JSON = 2**26
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}\.partial")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def absolute_if_exists(name: str) -> str:
    """Return the absolute path of a file or folder that exists. Another name, such as one on the Hub, stays."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Name a file in the errors of the system that the block raises. Those of reading and writing name none.

    Raises:
        OSError: The block raised it. Its `filename` is `path` if it had none.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file to read its bytes.

    Raises:
        ValueError: It is another kind of file, or, without `follow`, a link.
    """
    kind = stat.S_IFMT(os.stat(path, follow_symlinks=follow).st_mode)
    if kind != stat.S_IFREG:  # opening a FIFO would wait
        raise argument_error(
            str(path), "a regular file", _KINDS.get(kind, "a device"), "Copy its content to a file."
        )
    # Should it be replaced meanwhile, the open does not wait either.
    flags = getattr(os, "O_NONBLOCK", 0)
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    return open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags))


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        ValueError: It is another kind of file, or has more bytes.
    """
    with named_errors(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(max_bytes + 1) if size <= max_bytes else b""
    size = max(size, len(content))
    if size > max_bytes:
        raise argument_error(
            str(path), f"a file of at most {max_bytes} bytes", f"{size} bytes", "Check the path."
        )
    return content


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the same folder, then rename that file to `path`.

    Readers see the old or the new file, never a part, also after a power failure. If `write` fails, nothing remains.
    """
    partial = partial_path(path)
    with named_errors(path):
        try:
            partial.touch(exist_ok=False)
            write(partial)
            flush([partial])
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def flush(paths: Iterable[Path]) -> None:
    """Flush files and folders to the disk, so that a power failure loses none of them."""
    for path in paths:
        with named_errors(path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def partial_path(path: Path) -> Path:
    """Return a path beside `path` to write to. It is random, so that nobody can put a link there before."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def remove_partial(folder: Path, before: float) -> None:
    """Remove from a folder what interrupted writes to paths of `partial_path` left `before` this time, in seconds."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        # Not the time of its content: a copy has the original's.
        if _PARTIAL.fullmatch(path.name) and path.lstat().st_ctime < before:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a symbolic link; what it points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def mark_output(folder: Path) -> None:
    """Mark a folder with videos that telecine writes, and make it if needed. Data sets leave such folders out."""
    folder.mkdir(parents=True, exist_ok=True)
    note = "telecine wrote this folder, and does not use its videos as data. Remove this file to use them.\n"
    write_text(folder / OUTPUT_MARKER, note)  # replaces a link of that name


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, atomically; bytes of names that are not UTF-8 become escapes."""
    atomic_write(
        path, lambda partial: partial.write_bytes(text.encode("utf-8", "backslashreplace"))
    )


def write_json(path: Path, value: object) -> None:
    """Write plain values as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def create_json(path: Path, value: object) -> None:
    """Write plain values as JSON into a new file, which appears whole; one that is there, or appears meanwhile, stays.

    Of several processes that call this at once, one creates the file. Read it to know whose values it has.
    """
    text = json.dumps(value, indent=2) + "\n"
    partial = partial_path(path)
    try:
        with named_errors(path):
            partial.write_text(text, encoding="utf-8")
        flush([partial])
        try:
            os.link(partial, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links, where readers may see a part of the file
            with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
                file.write(text)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ValueError: The file has other content, or is too large.
    """
    content = read_bounded(path, _MAX_JSON)
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise argument_error(
            str(path), "JSON", f"other text ({error})", "Write it again."
        ) from error
    if not isinstance(value, dict):
        raise argument_error(str(path), "a JSON object", value, "Write it again.")
    return value


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with named_errors(path), open_regular(path) as file:
        while True:
            block = file.read(2**20)
            if not block:
                break
            digest.update(block)
    return digest.hexdigest()


def user_cache_folder() -> Path:
    """Return `telecine` in `$XDG_CACHE_HOME` or `~/.cache`; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "telecine"
