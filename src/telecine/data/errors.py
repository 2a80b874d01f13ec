"""The errors of data that cannot be used, and the deadline by which a file must be read."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from telecine.settings import TIMEOUT

T = TypeVar("T")


class DataError(ValueError):
    """The data cannot be used: nothing was found, nothing can be decoded, or everything is too short."""

    def __str__(self) -> str:
        # A `DataLoader` worker sends its error as the text of a traceback, with the message at the end.
        text = super().__str__()
        text = text.strip().rpartition(f"{type(self).__name__}: ")[2] if "Original Traceback" in text else text
        return text.replace("\n", "\\n")  # of a file's name: it must not look like a line of ours


class DecodeError(DataError):
    """One file, or one part of it, cannot be decoded."""


@contextmanager
def decode_errors(source: object, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Raise a `DecodeError` that names the file, for `errors` of a library and of the system."""
    try:
        yield
    except errors as error:
        if isinstance(error, DataError):
            raise
        raise DecodeError(f"{source}: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def thread_errors() -> Iterator[None]:
    """Raise a `DataError` where Python cannot start a thread, which would be a bare `RuntimeError`."""
    try:
        yield
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        remedy = "Raise the limit of processes (`ulimit -u`) or of the container, or use fewer `clips.num_workers`."
        raise DataError(f"The system starts no more threads. {remedy}") from error


class Deadline:
    """The time by which a source must be read, `seconds` from now: a small file can make endless work."""

    def __init__(self, source: object, seconds: float = TIMEOUT) -> None:
        self._source, self._seconds = source, seconds
        self._end = time.monotonic() + seconds

    def seconds_left(self) -> float:
        """Return the seconds until the deadline; raise a `DataError` after it, since a skip would depend on speed."""
        if (left := self._end - time.monotonic()) > 0:
            return left
        remedy = "Remove the file, or if it is only slow, index it once with `telecine data --clips.timeout`."
        raise DataError(f"{self._source}: not read within {self._seconds:g} seconds. {remedy}")

    def limit(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items until the deadline."""
        for item in items:
            self.seconds_left()
            yield item
