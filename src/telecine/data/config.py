"""The settings of clips."""

from __future__ import annotations

from dataclasses import dataclass

from telecine.data.info import VideoInfo
from telecine.shapes import argument_error


@dataclass(frozen=True)
class ClipConfig:
    """Which clips are cut out of the videos, and how they are read."""

    num_frames: int = 17
    """Frames in a clip. Most causal autoencoders want a multiple of 4 or 8, plus 1."""
    height: int = 256
    """Height of a clip in pixels; videos are resized until they cover it, then cropped."""
    width: int = 256
    """Width of a clip in pixels."""
    stride: int = 1
    """Distance between the frames of a clip: 1 takes every frame of the video, 2 every other."""
    random_flip: bool = True
    """Mirror half of the training clips left to right."""
    scale_jitter: float = 1.0
    """Zoom at random into training clips, from the whole picture at 1 up to this factor; 1 turns it off."""
    num_workers: int = 2
    """Processes that read clips beside the training; 0 reads them in the training process."""
    cache: bool = False
    """Decode every training frame once, before training, and keep it in memory at training resolution."""
    val_fraction: float = 0.1
    """Share of the data that is held out for validation: of the videos, or of each one's frames if they are few."""

    def __post_init__(self) -> None:
        for name in ("num_frames", "height", "width", "stride"):
            _check_count(name, getattr(self, name), least=1)
        _check_count("num_workers", self.num_workers, least=0)
        if not 1.0 <= self.scale_jitter <= 8.0:
            raise argument_error("scale_jitter", "from 1 to 8", self.scale_jitter, "Use 1 for no zoom.")
        if not 0.0 < self.val_fraction <= 0.5:
            remedy = "Use 0.1 to hold out a tenth."
            raise argument_error("val_fraction", "above 0 and at most 0.5", self.val_fraction, remedy)

    @property
    def clip_span(self) -> int:
        """Frames of the video from a clip's first to its last, both counted."""
        return (self.num_frames - 1) * self.stride + 1

    def decode_size(self, info: VideoInfo) -> tuple[int, int]:
        """Return the `(height, width)` at which a video is read: the smallest that covers the crop, times the zoom."""
        scale = self.scale_jitter * max(self.height / info.height, self.width / info.width)
        return max(self.height, round(info.height * scale)), max(self.width, round(info.width * scale))


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise argument_error(name, "a whole number", value, f"Use {least} or more.", TypeError)
    if value < least:
        raise argument_error(name, f"at least {least}", value, f"Use {least} or more.")
