"""Decoded frames kept in memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from torch import Tensor

from telecine.data.bucket import Bucket
from telecine.data.config import ClipConfig
from telecine.data.decode import read_clip
from telecine.data.errors import DataError, DecodeError
from telecine.data.progress import with_progress
from telecine.data.source import Source
from telecine.data.split import Span
from telecine.shapes import argument_error

logger = logging.getLogger(__name__)

# The rest is for the model, the system, and whoever else is on the machine.
_SHARE_OF_MEMORY = 0.8


class DecodedCache:
    """All frames of some spans as uint8 at each training resolution, decoded once.

    Forked workers share the memory; spawned ones get it through shared memory. A span that cannot be decoded to
    its end is logged and left out.

    Raises:
        ValueError: the frames do not fit in memory.
        DataError: no span can be decoded.
    """

    def __init__(self, spans: Sequence[Span], config: ClipConfig) -> None:
        _check_memory(spans, config)
        self.config = config
        wanted = [(span, bucket) for bucket in _resolutions(config) for span in spans]
        decoded = ((_key(*place), _decode(*place, config)) for place in with_progress(wanted, "decoding videos"))
        self._frames = {key: frames for key, frames in decoded if frames is not None}
        if not self._frames:
            raise argument_error("data", "decodable", f"{len(spans)} videos that are not", "See the log.", DataError)

    @property
    def num_bytes(self) -> int:
        """Size of the cached frames in bytes."""
        return sum(frames.numel() for frames in self._frames.values())

    def read(self, span: Span, start: int, bucket: Bucket) -> Tensor:
        """Return the clip that begins at position `start` of the span's video, uint8 `(T, H, W, 3)`, not a copy.

        Raises:
            DecodeError: the span could not be decoded.
        """
        frames = self._frames.get(_key(span, bucket))
        if frames is None:
            raise DecodeError(f"{span.info.path}: could not be decoded into the cache")
        offset = start - span.first_frame
        return frames[offset : offset + self.config.span_of(bucket) : self.config.stride]


def _resolutions(config: ClipConfig) -> list[Bucket]:
    """Return one bucket of each height and width."""
    return list({(bucket.height, bucket.width): bucket for bucket in config.sizes}.values())


def _decode(span: Span, bucket: Bucket, config: ClipConfig) -> Tensor | None:
    size = bucket.covered_by(span.info, config.scale_jitter)
    try:
        return read_clip(span.info, span.first_frame, span.num_frames, size=size)
    except DecodeError as error:
        logger.warning("not cached: %s", error)
        return None


def _key(span: Span, bucket: Bucket) -> tuple[Source, int, int, int, int]:
    # The path itself, of which that of a member holds its place: a tar file may hold two of one name.
    return span.info.path, span.first_frame, span.last_frame, bucket.height, bucket.width


def num_cached_bytes(spans: Sequence[Span], config: ClipConfig) -> int:
    """Return how many bytes the decoded frames of `spans` take."""
    sizes = (
        (span.num_frames, *bucket.covered_by(span.info, config.scale_jitter))
        for bucket in _resolutions(config)
        for span in spans
    )
    return sum(3 * frames * height * width for frames, height, width in sizes)


def _check_memory(spans: Sequence[Span], config: ClipConfig) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else float("inf")
    needed = num_cached_bytes(spans, config)
    if needed > _SHARE_OF_MEMORY * memory:
        contract = f"off for videos that do not fit in {_SHARE_OF_MEMORY:.0%} of {memory / 2**30:.1f} GiB of memory"
        got = f"{needed / 2**30:.1f} GiB of decoded frames"
        raise argument_error("cache", contract, got, "Turn it off, or train at a smaller size.")
