"""Decoded frames kept in memory: the setting `clips.cache`."""

import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.devices import machine_memory
from telecine.base.terminal import with_progress
from telecine.data.clip_frames import ClipFrames
from telecine.data.decode import read_clip
from telecine.data.errors import DecodeError
from telecine.data.source import Span
from telecine.settings import Bucket, ClipConfig

logger = logging.getLogger(__name__)

# The rest is left to the model and to other processes.
_MAX_MEMORY_FRACTION = 0.8


class DecodedCache:
    """All frames of spans without damage at each training resolution, in memory that worker processes share.

    With zoom, frames keep the size of their file, so that clips are resized once.

    Raises:
        ValueError: the frames do not fit in memory.
    """

    def __init__(self, spans: Sequence[Span], config: ClipConfig) -> None:
        _check_memory(spans, config)
        self.config = config
        self._frames: dict[tuple[Span, int, int], Tensor] = {}  # by span, height and width
        for decoding in with_progress(_decodings(spans, config), "decoding videos"):
            span = decoding.span
            try:
                frames = read_clip(
                    span.info,
                    span.first_frame,
                    num_frames=span.num_frames,
                    size=(decoding.height, decoding.width),
                    max_pixels=config.max_pixels,
                    pixels=config.pixel_format,
                )
            except DecodeError as error:
                logger.warning("not cached: %s", error)
            else:
                self._frames[span, decoding.height, decoding.width] = frames

    def read(self, span: Span, start: int, bucket: Bucket) -> Tensor | None:
        """Return the frames of a clip, as a view if they are evenly spaced.

        Args:
            span: The span of the clip.
            start: Index of the clip's first frame in the video.
            bucket: The size of the clip.

        Returns:
            Frames `(T, H, W, C)`, or None if a frame of the span is damaged.
        """
        frames = self._frames.get((span, *_cached_size(span, bucket, self.config)))
        if frames is None:
            return None
        indices = ClipFrames.of(bucket, self.config).indices(span.info, start)
        if isinstance(indices, range):
            first = indices.start - span.first_frame
            return frames[first : first + len(indices) * indices.step : indices.step]
        return frames[[index - span.first_frame for index in indices]]


def _check_memory(spans: Sequence[Span], config: ClipConfig) -> None:
    memory = machine_memory()
    needed = num_cached_bytes(spans, config)
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by `torchrun`
    if num_processes * needed > _MAX_MEMORY_FRACTION * memory:
        contract = f"off if frames take more than {_MAX_MEMORY_FRACTION:.0%} of {memory / 2**30:.1f} GiB of memory"
        got = f"on for {needed / 2**30:.1f} GiB of decoded frames"
        if num_processes > 1:
            got += f" in each of {num_processes} processes"
        raise argument_error("cache", contract, got, "Turn it off, or train at a smaller size.")


def num_cached_bytes(spans: Sequence[Span], config: ClipConfig) -> int:
    """Return the size of the decoded frames of `spans` in bytes."""
    total = 0
    for span, height, width in _decodings(spans, config):
        bytes_per_value = 4 if span.info.is_array else config.bit_depth // 8
        total += span.num_frames * height * width * config.num_channels * bytes_per_value
    return total


class _Decoding(NamedTuple):
    """A span, and a height and width to decode it at."""

    span: Span
    height: int
    width: int


def _decodings(spans: Sequence[Span], config: ClipConfig) -> list[_Decoding]:
    """Return each span once at each size that clips are made from."""
    decodings: dict[_Decoding, None] = {}
    for bucket in config.train_buckets:
        for span in spans:
            decodings[_Decoding(span, *_cached_size(span, bucket, config))] = None
    return list(decodings)


def _cached_size(span: Span, bucket: Bucket, config: ClipConfig) -> tuple[int, int]:
    """Return the height and width at which the frames of a span are kept for clips of a size."""
    info = span.info
    if config.scale_jitter > 1:
        return info.height, info.width
    return bucket.decode_size(info.height, info.width, 1.0)
