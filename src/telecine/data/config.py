"""The settings of clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from telecine.data.bucket import Bucket, check_count
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
    buckets: tuple[Bucket, ...] = ()
    """Several sizes to train on instead of one, e.g. `[{num_frames: 17, height: 256, width: 256, weight: 3}, ...]`. All
    clips of a step have the same. One of them must be that of the three settings above, which validation uses."""
    image_ratio: float = 0.0
    """Share of the steps that get images instead of clips, if there are both; images are clips of one frame."""
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
            check_count(name, getattr(self, name), least=1)
        check_count("num_workers", self.num_workers, least=0)
        if not 0.0 <= self.image_ratio <= 1.0:
            raise argument_error("image_ratio", "from 0 to 1", self.image_ratio, "Use 0 for videos only.")
        if not 1.0 <= self.scale_jitter <= 8.0:
            raise argument_error("scale_jitter", "from 1 to 8", self.scale_jitter, "Use 1 for no zoom.")
        if not 0.0 < self.val_fraction <= 0.5:
            remedy = "Use 0.1 to hold out a tenth."
            raise argument_error("val_fraction", "above 0 and at most 0.5", self.val_fraction, remedy)

        if self.buckets and self.main.shape not in {bucket.shape for bucket in self.buckets}:
            remedy = "Set num_frames, height and width to one of the buckets, the one to validate on."
            raise argument_error("buckets", f"sizes with {self.main} among them", _listed(self.buckets), remedy)

    @property
    def main(self) -> Bucket:
        """The size of clips to validate on."""
        return Bucket(self.num_frames, self.height, self.width)

    @property
    def sizes(self) -> tuple[Bucket, ...]:
        """All sizes of clips to train on."""
        return self.buckets or (self.main,)

    @property
    def clip_span(self) -> int:
        """Frames of the video from the first to the last of a clip of the main size, both counted."""
        return self.span_of(self.main)

    def span_of(self, bucket: Bucket) -> int:
        """Return the frames of the video from a clip's first to its last, both counted."""
        return (bucket.num_frames - 1) * self.stride + 1


def _listed(buckets: Sequence[Bucket]) -> str:
    return ", ".join(map(str, buckets))
