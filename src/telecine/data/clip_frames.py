"""Which frames of a video a clip has: every n-th of them, or those nearest to evenly spaced times."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telecine.data.source import TIE_SECONDS, Span, VideoInfo
from telecine.settings import Bucket, ClipConfig

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

    @property
    def min_fps(self) -> float:
        """Frames a second that a video must have; 0 without `fps`, and for clips of one frame."""
        if self.fps is None or self.num_frames == 1:
            return 0.0
        return MIN_RATE * self.fps

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
        if span.info.fps < self.min_fps:
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
        counts[fps < self.min_fps] = 0
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
