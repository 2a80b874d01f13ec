"""Decoded frames kept in memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.devices import machine_memory
from telecine.base.terminal import with_progress
from telecine.data.decode import read_clip
from telecine.data.source import DataError, DecodeError, Source, Span
from telecine.settings import Bucket, ClipConfig

logger = logging.getLogger(__name__)

# The rest is left to the model and to other processes.
_MAX_MEMORY_FRACTION = 0.8

_Key: TypeAlias = tuple[Source, int, int, int, int]
"""Source, first and last frame, height and width. A tar member includes its offset, because names may repeat."""


class DecodedCache:
    """All frames of some spans as uint8 at each training resolution, decoded once.

    Worker processes share the memory. A span that cannot be decoded completely is logged and left out.

    Args:
        spans: The frames to decode.
        config: The clip settings.

    Raises:
        ValueError: the frames do not fit in memory.
        DataError: no span can be decoded.
    """

    def __init__(self, spans: Sequence[Span], config: ClipConfig) -> None:
        _check_memory(spans, config)
        self.config = config
        items = [(span, bucket) for bucket in _resolutions(config) for span in spans]
        decoded = ((_key(*item), _decode_span(*item, config)) for item in with_progress(items, "decoding videos"))
        self._frames = {key: frames for key, frames in decoded if frames is not None}
        if not self._frames:
            got = f"{len(spans)} videos that cannot be decoded"
            raise argument_error("data", "decodable", got, "See the log for the reasons.", DataError)

    def read(self, span: Span, start: int, bucket: Bucket) -> Tensor:
        """Return the clip that starts at frame `start` of the video, uint8 `(T, H, W, 3)`, as a view of the cache.

        Raises:
            DecodeError: the span could not be decoded.
        """
        frames = self._frames.get(_key(span, bucket))
        if frames is None:
            raise DecodeError(f"{span.info.path}: could not be decoded into the cache")
        offset = start - span.first_frame
        return frames[offset : offset + self.config.span_of(bucket) : self.config.stride]


def num_cached_bytes(spans: Sequence[Span], config: ClipConfig) -> int:
    """Return the size of the decoded frames of `spans` in bytes."""
    sizes = (
        (span.num_frames, *bucket.decode_size(span.info.height, span.info.width, config.scale_jitter))
        for bucket in _resolutions(config)
        for span in spans
    )
    return sum(3 * frames * height * width for frames, height, width in sizes)


def _resolutions(config: ClipConfig) -> list[Bucket]:
    """Return one bucket for each height and width."""
    return list({(bucket.height, bucket.width): bucket for bucket in config.train_buckets}.values())


def _decode_span(span: Span, bucket: Bucket, config: ClipConfig) -> Tensor | None:
    size = bucket.decode_size(span.info.height, span.info.width, config.scale_jitter)
    try:
        return read_clip(span.info, span.first_frame, span.num_frames, size=size)
    except DecodeError as error:
        logger.warning("not cached: %s", error)
        return None


def _key(span: Span, bucket: Bucket) -> _Key:
    return span.info.path, span.first_frame, span.last_frame, bucket.height, bucket.width


def _check_memory(spans: Sequence[Span], config: ClipConfig) -> None:
    memory, needed = machine_memory(), num_cached_bytes(spans, config)
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this run on this machine, set by `torchrun`
    if num_processes * needed > _MAX_MEMORY_FRACTION * memory:
        each = f" in each of {num_processes} processes" if num_processes > 1 else ""
        contract = f"off if frames take more than {_MAX_MEMORY_FRACTION:.0%} of {memory / 2**30:.1f} GiB of memory"
        got = f"on for {needed / 2**30:.1f} GiB of decoded frames{each}"
        raise argument_error("cache", contract, got, "Turn it off, or train at a smaller size.")
