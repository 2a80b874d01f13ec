"""Binary files whose bytes are fetched by range, in blocks, when they are read. Importing it imports fsspec."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO

from fsspec.caching import BaseCache, BlockCache

# Of each open file: those of its tables, and of the streams between which a reader jumps.
_BLOCKS_IN_MEMORY = 4
# Bytes that are read ahead in a tar file at first: the headers of one sample.
_WINDOW_BYTES = 2**16
_MAX_WINDOW_BYTES = 2**20
# Of headers: at the beginning of a member, at its end, and between.
_WINDOWS_IN_MEMORY = 4

ReadRange = Callable[[int, int], bytes]  # gets the positions of the first byte and after the last


class RemoteFile(io.RawIOBase):
    """A binary file whose bytes one of fsspec's caches fetches.

    Args:
        cache: The cache, which has the size of the file.
        name: What libraries show as its name.
    """

    def __init__(self, cache: BaseCache, name: str) -> None:
        self.name = name
        self._cache: Any = cache
        self._position = 0

    def readable(self) -> bool:
        """Return true."""
        return True

    def seekable(self) -> bool:
        """Return true."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position relative to the start, the position or the end, and return it.

        Raises:
            ValueError: it would be before the start.
        """
        origins = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._cache.size}
        position = origins[whence] + offset
        if position < 0:
            raise ValueError(f"negative position {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer, fewer only at the end of the file. Return their number."""
        end = min(self._position + len(buffer), self._cache.size)  # fsspec 2025.9 needs the minimum
        content = self._cache._fetch(self._position, end)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def open_blocks(size: int, block_bytes: int, read_block: ReadRange, name: str) -> BinaryIO:
    """Open a file that is read in blocks, of which the last few stay in memory.

    Args:
        size: Its size in bytes.
        block_bytes: Bytes of a block; the last one may have fewer.
        read_block: Fetches a block.
        name: What libraries show as its name.
    """
    cache = BlockCache(block_bytes, read_block, size, _BLOCKS_IN_MEMORY)
    return io.BufferedReader(RemoteFile(cache, name))


class WindowCache(BaseCache):
    """Keeps the last few ranges of a file. How much it fetches beside what is read follows from earlier reads.

    A read that continues a range doubles the number of bytes that are fetched ahead. A read shortly before a range, as
    of tables at the end of a video, sets how many bytes are fetched before each position to which a later read jumps.

    Args:
        read_range: Fetches bytes.
        size: The size of the file in bytes.
    """

    name = "windows"

    def __init__(self, read_range: ReadRange, size: int) -> None:
        super().__init__(_WINDOW_BYTES, read_range, size)
        self._windows: list[tuple[int, bytes]] = []  # start and content, the newest last
        self._bytes_before = 0
        self._bytes_ahead = _WINDOW_BYTES

    def _fetch(self, start: int | None, end: int | None) -> bytes:
        start = start or 0
        end = self.size if end is None else min(end, self.size)
        content = b""
        while start < end:
            part = self._held(start, end)
            if not part:
                self._add_window(start, end)
                part = self._held(start, end)
            content += part
            start += len(part)
        return content

    def _held(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` on that a window has, at most to `end`."""
        for begin, content in self._windows:
            if begin <= start < begin + len(content):
                return content[start - begin : end - begin]
        return b""

    def _add_window(self, start: int, end: int) -> None:
        """Fetch a range with at least the byte at `start`, which no window has."""
        begins = [begin for begin, _ in self._windows if 0 < begin - start <= _MAX_WINDOW_BYTES]
        follows = any(begin + len(content) == start for begin, content in self._windows)
        if follows:
            self._bytes_ahead = min(2 * self._bytes_ahead, _MAX_WINDOW_BYTES)
            stop = end + self._bytes_ahead
        elif begins:
            stop = min(begins)
            distance = 2 * (stop - start)
            self._bytes_before = min(max(self._bytes_before, distance), _MAX_WINDOW_BYTES)
        else:
            stop = end + self._bytes_ahead
            start = max(0, start - self._bytes_before)
        content = self.fetcher(start, min(stop, self.size))
        self._windows.append((start, content))
        del self._windows[:-_WINDOWS_IN_MEMORY]


def open_windows(size: int, read_range: ReadRange, name: str) -> BinaryIO:
    """Open a file of which small parts are read about in order, such as the headers of a tar file and of its members.

    Args:
        size: Its size in bytes.
        read_range: Fetches bytes.
        name: What libraries show as its name.
    """
    return io.BufferedReader(RemoteFile(WindowCache(read_range, size), name))
