"""The protocol of an evaluation: what was measured and how. Figures compare only if their protocols agree."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from telecine.base.checks import argument_error, check_count
from telecine.base.files import write_json
from telecine.base.shapes import VALUE_RANGE
from telecine.evaluation.definitions import METRIC_DEFINITIONS

VERSIONED_PACKAGES = ("telecine", "torch", "torchmetrics", "av")


@dataclass(frozen=True)
class EvaluationProtocol:
    """Everything that a figure depends on besides the model.

    Raises:
        ValueError: A count is not positive, or a metric is neither built in nor described in `definitions`.
    """

    data: str
    """The data set, e.g. its folder."""
    num_clips: int
    """Number of clips that the means are over."""
    num_frames: int | None
    """Frames per clip. None: as many as each video has."""
    height: int | None
    """Height of a frame after resize and crop. None: that of each video."""
    width: int | None
    """Width of a frame after resize and crop. None: that of each video."""
    resize: str
    """How frames were resized, e.g. `shorter side to 256, bilinear with antialias`."""
    crop: str
    """How frames were cropped, e.g. `center`."""
    metrics: tuple[str, ...]
    """The names of the reported metrics."""
    subject: str = ""
    """What was measured: a checkpoint and which of its weights, or the folder of the reconstructions."""
    num_videos: int = 1
    """Number of videos that the clips are from."""
    places: str = ""
    """How the clips were selected."""
    clips_sha256: str | None = None
    """Hash of the pixels of all input clips in order. Equal hashes mean equal inputs."""
    fps: float | None = None
    """Frame rate of the clips. None: each file's frame rate over `frame_stride`."""
    frame_stride: int = 1
    """Distance between the frames of a clip in the video."""
    backbones: tuple[tuple[str, str], ...] = ()
    """Pairs of a metric and its network with the source or hash of the weights."""
    definitions: tuple[tuple[str, str], ...] = ()
    """Pairs of a metric that is not built in and its definition."""
    absent: tuple[tuple[str, str], ...] = ()
    """Pairs of a metric that is not reported and the reason."""
    reconstruction: str = "clamped to the value range before measuring"
    """What was done to reconstructions before measuring."""
    published: tuple[tuple[str, object], ...] = ()
    """The name of the published protocol that was followed and its items, as pairs."""

    def __post_init__(self) -> None:
        for name in ("num_clips", "num_videos", "frame_stride"):
            check_count(name, getattr(self, name))
        for name in ("num_frames", "height", "width"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if unknown := [name for name in self.metrics if name not in self._definitions()]:
            raise argument_error("metrics", "metrics with a definition", str(unknown), "Add them to `definitions`.")

    def _definitions(self) -> dict[str, str]:
        return METRIC_DEFINITIONS | dict(self.definitions)

    def better(self, name: str) -> str:
        """Return which values of a metric are better, as its definition ends with."""
        return self._definitions()[name].rpartition("; ")[2].removesuffix(" is better")

    def as_dict(self) -> dict[str, object]:
        """Return the content of `protocol.json`: all fields, the metrics' definitions, the value range and versions."""
        values: dict[str, object] = asdict(self)
        del values["definitions"]
        values |= {"backbones": dict(self.backbones), "absent": dict(self.absent), "published": dict(self.published)}
        values["value_range"] = list(VALUE_RANGE)
        values["metrics"] = {name: self._definitions()[name] for name in self.metrics}
        versions = {package: version(package) for package in VERSIONED_PACKAGES}
        values["versions"] = {"python": platform.python_version()} | versions
        return values

    def write(self, path: str | Path) -> None:
        """Write `as_dict()` as JSON to `path`, atomically."""
        write_json(Path(path), self.as_dict())
