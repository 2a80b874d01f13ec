"""What is known of a video once it is indexed."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, field

from telecine.data.source import Source


@dataclass(frozen=True)
class VideoInfo:
    """Where a video's frames are; made by `telecine.data.index_video`. An image is a video of one frame."""

    path: Source
    """The file, or the member of a tar file."""
    width: int
    """Width in pixels, as displayed."""
    height: int
    """Height in pixels, as displayed."""
    fps: float
    """Frames a second, on average; 1 for an image."""
    pts: array[int] = field(repr=False, hash=False)
    """Time stamp of every frame in the order of display, in the stream's unit; its number where `seekable` is false."""
    keyframes: array[int] = field(repr=False, hash=False)
    """Positions, in the order of display, of the frames at which decoding can begin."""
    seekable: bool = True
    """Whether frames have time stamps to seek to; without, a clip is read by decoding from the beginning."""
    time_base: float = 1.0
    """Seconds in the unit of `pts`."""
    is_image: bool = False
    """Whether it is a still image."""

    @property
    def num_frames(self) -> int:
        """Number of frames that are shown."""
        return len(self.pts)

    def position_at(self, seconds: float) -> int:
        """Return the position of the first frame shown at `seconds` after the first one or later."""
        return bisect_left(self.pts, self.pts[0] + round(seconds / self.time_base))
