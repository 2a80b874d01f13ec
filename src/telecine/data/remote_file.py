"""Binary files whose bytes are fetched by range, in blocks, when they are read. Importing it imports fsspec."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO

from fsspec.caching import BaseCache, BlockCache, ReadAheadCache

# Of each open file: those of its tables, and of the streams between which a reader jumps.
_BLOCKS_IN_MEMORY = 4
# Bytes that are read ahead in a tar file: the headers of one sample.
_WINDOW_BYTES = 2**16

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


def open_windows(size: int, read_range: ReadRange, name: str) -> BinaryIO:
    """Open a file of which small parts are read in order, such as the headers of a tar file.

    Args:
        size: Its size in bytes.
        read_range: Fetches bytes.
        name: What libraries show as its name.
    """
    return io.BufferedReader(RemoteFile(ReadAheadCache(_WINDOW_BYTES, read_range, size), name))
