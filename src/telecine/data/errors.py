"""Errors of data that cannot be used, and the deadline for reading a file."""

import errno
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from telecine.base.checks import ArgumentError
from telecine.settings import TIMEOUT

T = TypeVar("T")

_ERRORS_OF_SYSTEM = frozenset(
    {
        errno.EACCES,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOENT,
        errno.ENOMEM,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)


class DataError(ArgumentError):
    """The data cannot be used: nothing was found, nothing can be decoded, or everything is too short."""

    def __str__(self) -> str:
        text = super().__str__()
        if "Original Traceback" in text:
            # A `DataLoader` worker sends its error as the text of a traceback, with the message at the end.
            text = text.strip().rpartition(f"{type(self).__name__}: ")[2]
        # A line break in a file name must not look like a line of ours.
        return text.replace("\n", "\\n")


class DecodeError(DataError):
    """One file, or one part of it, cannot be decoded."""


class ChangedError(DataError):
    """A file at an address has another size or version than its server has told before, or does not exist any more."""


def is_of_system(error: DecodeError) -> bool:
    """Return whether an error tells nothing of the file: another attempt may read it."""
    return getattr(error.__cause__, "errno", None) in _ERRORS_OF_SYSTEM


@contextmanager
def decode_errors(source: object, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Convert errors of a library or of the system to a `DecodeError` that names the file.

    Args:
        source: The file.
        errors: The classes of errors to convert. A `DataError` among them is raised unchanged.

    Raises:
        DecodeError: the `with` block raised one of `errors`.
    """
    try:
        yield
    except errors as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise DecodeError(f"{source}: {reason}") from error


@contextmanager
def thread_errors() -> Iterator[None]:
    """Convert the errors of Python when the system starts no more threads or processes.

    Raises:
        DataError: one could not be started in the `with` block.
    """
    try:
        yield
    except (RuntimeError, BlockingIOError) as error:
        if isinstance(error, RuntimeError) and "start new thread" not in str(error):
            raise
        remedy = "Raise the limit of processes (`ulimit -u`) or of the container, or set `clips.num_workers` to 0."
        raise DataError(f"The system starts no more threads or processes. {remedy}") from error


class Deadline:
    """The time by which a source must be read. A small file can cause endless work.

    Args:
        source: The file, for the error.
        seconds: Time until the deadline.
    """

    def __init__(self, source: object, seconds: float = TIMEOUT) -> None:
        self._source = source
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def seconds_left(self) -> float:
        """Return the seconds until the deadline.

        Raises:
            DataError: the deadline has passed. The file is not skipped: the data would depend on the machine's speed.
        """
        left = self._end - time.monotonic()
        if left > 0:
            return left
        command = (
            "`telecine data --clips.timeout` (with `--clips.index lazy`, `telecine data index`)"
        )
        remedy = f"Remove the file, or if it is only slow, index it once with {command}."
        raise DataError(f"{self._source}: not read within {self._seconds:g} seconds. {remedy}")

    def check(self) -> None:
        """Raise the error of `seconds_left` if the deadline has passed."""
        self.seconds_left()

    def limit(self, items: Iterable[T]) -> Iterator[T]:
        """Yield `items`, and check the deadline at each of them."""
        for item in items:
            self.check()
            yield item
