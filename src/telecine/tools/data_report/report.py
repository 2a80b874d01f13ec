"""What a training run will see of its data, as values."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from telecine.data import Span
from telecine.tools.data_report.measures import DEFINITIONS


@dataclass(frozen=True)
class SampledClip:
    """A clip as training sees it."""

    frames: Tensor
    """As they are shown, uint8 `(T, H, W, 3)`; channels without colours side by side."""
    shape: tuple[int, ...]
    """Of the clip itself, `(T, H, W, C)`."""
    source: str
    start: int
    """Position of its first frame in its file."""
    fps: float
    seconds: float
    """Reading time on one core."""
    flaws: tuple[str, ...]
    """What is unusual about it: black, static, a cut."""
    orientation: str
    """How it was mirrored and turned, in words; empty if it was not."""


@dataclass(frozen=True)
class FileRow:
    """A file of the data."""

    path: str
    use: str
    """Its use, or why it is not used."""
    is_used: bool
    is_image: bool = False
    """False also for a file that cannot be read."""
    codec: str = ""
    num_bytes: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    num_frames: int = 0
    keyframe_distance: int | None = None
    """Most frames from a keyframe to the next, or to the end; None for an image."""


@dataclass(frozen=True)
class DataReport:
    """What a training run will see."""

    data: str
    clips: list[SampledClip]
    files: list[FileRow]
    """The usable files, then the others."""
    ignored: dict[str, int]
    """Number of files of other kinds in the folder, by suffix."""
    copies: list[list[str]]
    scenes: list[Span]
    """The training data between the cuts that were found, in groups if a list has them or there are copies; empty
    without cuts."""
    grouped: list[Span]
    """The training data in groups, with copies in one; empty without copies, and if `scenes` has them."""
    num_searched: int
    """Files that were searched for cuts."""
    num_left: int
    """Videos that `max_frames` left out of the search."""
    num_cut: int
    """Files with a cut."""
    num_unlisted: int
    """Videos and images in tar files, whose scenes are left out."""
    num_train: int
    """Frames to train on."""
    num_held_out: int
    cache_bytes: int
    """Of all training frames, decoded at the size of the clips."""
    advice: list[str]

    @property
    def clips_per_second(self) -> float:
        """Number of sampled clips that one core reads in a second."""
        return len(self.clips) / sum(clip.seconds for clip in self.clips)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, without the frames."""
        values = asdict(replace(self, clips=[], scenes=[], grouped=[]))
        values["scenes"] = len(self.scenes)
        del values["grouped"]
        values["clips"] = []
        for clip in self.clips:
            clip_values = dict(vars(clip))
            del clip_values["frames"]
            values["clips"].append(clip_values)
        values["clips_per_second"] = self.clips_per_second
        values["definitions"] = DEFINITIONS
        return values
