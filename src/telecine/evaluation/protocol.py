"""What a result was measured on, and how: without it two numbers cannot be compared."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from telecine.evaluation.definitions import METRIC_DEFINITIONS
from telecine.files import write_json
from telecine.shapes import VALUE_RANGE, argument_error

VERSIONED_PACKAGES = ("telecine", "torch", "torchmetrics", "av")


@dataclass(frozen=True)
class EvaluationProtocol:
    """Everything that a figure depends on besides the model.

    Raises:
        ValueError: a count is not positive, or a metric is neither built in nor described in `definitions`.
    """

    data: str
    """Which set, e.g. a folder, and which part of it."""
    num_clips: int
    """How many clips the means are over."""
    num_frames: int
    """Frames per clip."""
    height: int
    """Rows of a frame, after resize and crop."""
    width: int
    """Columns of a frame, after resize and crop."""
    resize: str
    """How frames were brought to size, e.g. `shorter side to 256, bilinear with antialias`."""
    crop: str
    """Which part was kept, e.g. `center`."""
    metrics: tuple[str, ...]
    """The names of the reported metrics."""
    subject: str = ""
    """What was measured: a checkpoint and which of its weights, or reconstructions as videos."""
    num_videos: int = 1
    """How many videos the clips are from."""
    places: str = ""
    """How the clips were chosen."""
    clips_sha256: str | None = None
    """Hash of the inputs' pixels, all clips in order; equal hashes mean that the same was measured."""
    fps: float | None = None
    """Frames per second that clips were sampled at; None means each file's own rate over `frame_stride`."""
    frame_stride: int = 1
    """Every how many decoded frames one was taken."""
    backbones: tuple[tuple[str, str], ...] = ()
    """Pairs of a perceptual metric and its network with the weights' source or hash."""
    definitions: tuple[tuple[str, str], ...] = ()
    """Pairs of a further metric and its definition."""
    absent: tuple[tuple[str, str], ...] = ()
    """Pairs of a metric that is not reported and the reason."""

    def __post_init__(self) -> None:
        for name in ("num_clips", "num_videos", "num_frames", "height", "width", "frame_stride"):
            if getattr(self, name) < 1:
                raise argument_error(name, "at least 1", getattr(self, name), "State what was measured.")
        if unknown := [name for name in self.metrics if name not in self._known()]:
            raise argument_error("metrics", "metrics with a definition", str(unknown), "Add them to `definitions`.")

    def _known(self) -> dict[str, str]:
        return METRIC_DEFINITIONS | dict(self.definitions)

    def better(self, name: str) -> str:
        """Return which values of a metric are better, as the last words of its definition say."""
        return self._known()[name].rpartition("; ")[2].removesuffix(" is better")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: the fields, each metric's definition, the value range and the versions."""
        stated = asdict(self) | {"backbones": dict(self.backbones), "absent": dict(self.absent)}
        stated["value_range"] = list(VALUE_RANGE)
        del stated["definitions"]
        stated["metrics"] = {name: self._known()[name] for name in self.metrics}
        stated["reconstruction"] = "clamped to the value range before measuring"
        stated["versions"] = versions()
        return stated

    def write(self, path: str | Path) -> None:
        """Write `as_dict()` as JSON to `path`, aside first and renamed, so that it is whole or absent."""
        write_json(Path(path), self.as_dict())


def versions(packages: Sequence[str] = VERSIONED_PACKAGES) -> dict[str, str]:
    """Return the version of Python and of each installed package, read without importing them."""
    return {"python": platform.python_version()} | {package: version(package) for package in packages}
