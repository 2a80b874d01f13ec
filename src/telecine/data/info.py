"""What is known of a video once it is indexed."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class VideoInfo:
    """Where a video's frames are; made by `telecine.data.index_video`."""

    path: Path
    """The file."""
    width: int
    """Width in pixels, as displayed."""
    height: int
    """Height in pixels, as displayed."""
    fps: float
    """Frames a second, on average."""
    pts: array[int] = field(repr=False, hash=False)
    """Time stamp of every frame in the order of display, in the stream's unit; its number where `seekable` is false."""
    keyframes: array[int] = field(repr=False, hash=False)
    """Positions, in the order of display, of the frames at which decoding can begin."""
    seekable: bool = True
    """Whether frames have time stamps to seek to; without, a clip is read by decoding from the beginning."""

    @property
    def num_frames(self) -> int:
        """Number of frames that are shown."""
        return len(self.pts)
