"""An indexed video, and a range of its frames."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from telecine.data.source import DecodeError, Source

# A clip covers its crop: an image of 1 x 100 000 would be enlarged to 256 x 25 600 000.
MAX_ASPECT_RATIO = 100


@dataclass(frozen=True)
class VideoInfo:
    """The timestamps and keyframes of a video, as found by `telecine.data.index_video`. An image has one frame."""

    path: Source
    """The file, or the member of a tar file."""
    width: int
    """Width in square pixels, as displayed."""
    height: int
    """Height in square pixels, as displayed."""
    fps: float
    """Average number of frames per second; 1 for an image."""
    pts: array[int] = field(repr=False, hash=False)
    """Timestamp of each frame in display order, in units of `time_base`. The frame's index if `seekable` is false.

    Some files have timestamps in decoding order. Then these do not increase, and only tell frames apart."""
    keyframes: array[int] = field(repr=False, hash=False)
    """Indices of the keyframes, in display order."""
    seekable: bool = True
    """Whether frames have timestamps to seek to. Otherwise a clip is read by decoding from the start of the file."""
    time_base: float = 1.0
    """Unit of `pts` in seconds."""
    is_image: bool = False
    """Whether this is a still image."""
    sample_aspect_ratio: float = 1.0
    """Width of a stored pixel divided by its height, after rotation; above 1 if `width` is stretched for display."""

    @property
    def num_frames(self) -> int:
        """Number of displayed frames."""
        return len(self.pts)

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width in stored pixels, after rotation."""
        aspect = self.sample_aspect_ratio
        return round(self.height * min(aspect, 1)), round(self.width * min(1 / aspect, 1))

    def frame_at(self, seconds: float) -> int:
        """Return the index of the first frame displayed at or after `seconds`, counted from the first frame."""
        return bisect_left(self._sorted_pts, self._sorted_pts[0] + round(seconds / self.time_base))

    @cached_property
    def _sorted_pts(self) -> array[int]:
        """The timestamps in increasing order, usually `pts` itself, for any number of segments of the video."""
        is_sorted = all(a <= b for a, b in pairwise(self.pts))
        return self.pts if is_sorted else array("q", sorted(self.pts))


@dataclass(frozen=True)
class Span:
    """A range of consecutive frames of a video."""

    info: VideoInfo
    """The video."""
    first_frame: int
    """Index of the first frame."""
    last_frame: int
    """Index of the last frame, inclusive."""

    @property
    def num_frames(self) -> int:
        """Number of frames; 0 or less if the range is empty."""
        return self.last_frame - self.first_frame + 1

    def num_starts(self, clip_span: int) -> int:
        """Return the number of frames at which a clip that spans `clip_span` frames can start."""
        return max(0, self.num_frames - clip_span + 1)


def whole_video(info: VideoInfo) -> Span:
    """Return the range of all frames of a video."""
    return Span(info, 0, info.num_frames - 1)


def check_frame_size(source: Source, width: int, height: int, max_pixels: int) -> None:
    """Raise a `DecodeError` if decoding such frames, or resizing them to cover a clip, would take too much memory."""
    if width * height > max_pixels:
        raise DecodeError(f"{source}: {width} x {height} pixels, more than the {max_pixels} of `clips.max_pixels`")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        limit = f"one side may be at most {MAX_ASPECT_RATIO} times the other"
        raise DecodeError(f"{source}: {width} x {height} pixels, but {limit}")
