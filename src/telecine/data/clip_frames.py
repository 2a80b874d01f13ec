"""Which frames of a video a clip has: every so many of them, or those nearest to evenly spaced times."""

import logging
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telecine.base.checks import first_few
from telecine.data.source import TIE_SECONDS, Source, Span, VideoInfo
from telecine.settings import Bucket, ClipConfig

logger = logging.getLogger(__name__)

# A video of fewer frames a second than this fraction of `clips.fps` has none of its clips: they would repeat frames.
MIN_RATE = 0.95


@dataclass(frozen=True)
class ClipFrames:
    """The frames of clips of one length.

    Without `fps`, a clip has every `stride`-th frame. With it, the frames are those whose timestamps are nearest to
    `number / fps` seconds after the first one, whatever the video's frame rate is, and whether it is constant or not.
    """

    num_frames: int
    stride: int = 1
    fps: float | None = None

    @classmethod
    def of(cls, bucket: Bucket, config: ClipConfig) -> "ClipFrames":
        """Return the frames of clips of a size."""
        return cls(bucket.num_frames, config.stride, config.fps)

    @classmethod
    def shortest(cls, config: ClipConfig) -> "ClipFrames":
        """Return those of the shortest clips to train on."""
        num_frames = min(bucket.num_frames for bucket in config.train_buckets)
        return cls(num_frames, config.stride, config.fps)

    def num_source_frames(self, info: VideoInfo) -> int:
        """Return the number of frames of a video from the first to the last frame of a clip, both included.

        With `fps`, it is that at the video's average frame rate.
        """
        if self.fps is None:
            return (self.num_frames - 1) * self.stride + 1
        return round((self.num_frames - 1) * info.fps / self.fps) + 1

    def is_too_slow(self, info: VideoInfo) -> bool:
        """Return whether a video has too few frames a second for clips of several frames at `fps`."""
        return self.fps is not None and self.num_frames > 1 and info.fps < MIN_RATE * self.fps

    def indices(self, info: VideoInfo, start: int) -> Sequence[int]:
        """Return the index of each frame of the clip that begins at frame `start`. Indices may repeat with `fps`."""
        if self.fps is None:
            return range(start, start + (self.num_frames - 1) * self.stride + 1, self.stride)
        return [info.nearest_frame(start, number / self.fps) for number in range(self.num_frames)]

    def last_index(self, info: VideoInfo, start: int) -> int:
        """Return the index of the last frame of the clip that begins at frame `start`; it may be after the video."""
        if self.fps is None:
            return start + (self.num_frames - 1) * self.stride
        return info.nearest_frame(start, (self.num_frames - 1) / self.fps)

    def num_starts(self, span: Span) -> int:
        """Return the number of positions for a clip in a span, from its first frame on."""
        if self.fps is None:
            return max(0, span.num_frames - (self.num_frames - 1) * self.stride)
        if self.is_too_slow(span.info):
            return 0
        starts = range(span.first_frame, span.last_frame + 1)
        return bisect_right(
            starts, span.last_frame, key=lambda start: self.last_index(span.info, start)
        )

    def count_starts(
        self, num_frames: NDArray[np.integer[Any]], fps: NDArray[np.float64]
    ) -> NDArray[np.integer[Any]]:
        """Return `num_starts` of spans of videos with evenly spaced frames.

        Args:
            num_frames: The number of frames of each span.
            fps: The frame rate of the video of each span.
        """
        if self.fps is None:
            return np.maximum(0, num_frames - (self.num_frames - 1) * self.stride)
        distance = (self.num_frames - 1) * fps / self.fps
        counts = np.floor(num_frames + 0.5 + TIE_SECONDS * fps - distance)
        if self.num_frames > 1:
            counts[fps < MIN_RATE * self.fps] = 0
        return np.maximum(0, counts).astype(np.int64)

    def fits(self, span: Span) -> bool:
        """Return whether a span is long enough for a clip."""
        return self.num_starts(span) > 0

    def describe(self) -> str:
        """Return how long a clip is, for errors: "clip of 33 frames", or "clip of 17 frames at 12 a second"."""
        if self.fps is None:
            return f"clip of {(self.num_frames - 1) * self.stride + 1} frames"
        return f"clip of {self.num_frames} frames at {self.fps:g} a second"

    def rule(self) -> str:
        """Return what a video must have for a clip, for errors."""
        if self.fps is None:
            return "(num_frames - 1) * stride + 1"
        seconds = (self.num_frames - 1) / self.fps
        return f"{seconds:.3g} seconds of a video with {MIN_RATE * self.fps:.3g} frames a second or more"


def log_too_short(spans: Iterable[Span], frames: ClipFrames) -> int:
    """Log and count the videos without a span that is long enough for a clip, or with too few frames a second."""
    longest: dict[Source, Span] = {}
    with_clip = set()
    for span in spans:
        source = span.info.source
        if span.info.is_image:
            continue
        if source not in longest or span.num_frames > longest[source].num_frames:
            longest[source] = span
        if frames.fits(span):
            with_clip.add(source)
    short = []
    for source, span in longest.items():
        if source in with_clip:
            continue
        reason = f"{span.num_frames} frames"
        if frames.is_too_slow(span.info):
            reason = f"{span.info.fps:.3g} frames a second"
        short.append(f"{source} ({reason})")
    warn_of_short(short, len(longest), frames)
    return len(short)


def warn_of_short(short: Sequence[str], num_files: int, frames: ClipFrames) -> None:
    """Log videos that are too short for a clip, if there are any.

    Args:
        short: Each of them, with the reason.
        num_files: The number of all videos.
        frames: The frames of a clip.
    """
    if short:
        text = "%d of %d files have no %s, and are not used: %s"
        clip = frames.describe()
        logger.warning(text, len(short), num_files, clip, first_few(short))
