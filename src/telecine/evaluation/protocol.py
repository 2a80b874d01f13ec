"""What was measured and how: the definition of each metric, and the protocol of an evaluation."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from telecine.base.checks import argument_error, check_counts
from telecine.base.files import write_json
from telecine.base.shapes import VALUE_RANGE
from telecine.base.yaml_files import read_package_yaml

GRID_PERIODS = (2, 4, 8, 16)  # spatial strides of common autoencoders


@dataclass(frozen=True)
class _Definition:
    """Definition of one metric, see definitions.yaml."""

    text: str
    """Formula, settings, source and averaging."""
    better: Literal["larger", "smaller", "nearest to 0", "nearest to 1"] = "larger"
    min_side: int = 1
    """Smallest height and width of a frame."""
    min_frames: int = 1

    def __str__(self) -> str:
        return f"{self.text}; {self.better} is better"

    def unavailable_reason(self, num_frames: int, height: int, width: int) -> str | None:
        """Return why the metric is undefined for clips of this size, or None if it is defined."""
        if min(height, width) < self.min_side:
            return f"needs frames of at least {self.min_side} x {self.min_side}, not {height} x {width}"
        if num_frames < self.min_frames:
            return f"needs at least {self.min_frames} frames, not {num_frames}"
        return None


def _read_definitions(group: str) -> dict[str, _Definition]:
    found = read_package_yaml("telecine.evaluation", "definitions.yaml")[group]
    return {name: _Definition(**{**fields, "text": "".join(fields["text"])}) for name, fields in found.items()}


DEFINITIONS = _read_definitions("metrics")
SET_DEFINITIONS = _read_definitions("sets")
"""Of the Frechet distances, whose definition in a protocol ends with the number of clips."""
FLOW_SIDE = DEFINITIONS["warping_error"].min_side
METRIC_DEFINITIONS = {name: str(definition) for name, definition in DEFINITIONS.items()}


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
    """Like `height`."""
    resize: str
    """For example "shorter side to 256, bilinear with antialias"."""
    crop: str
    """For example "center"."""
    metrics: tuple[str, ...]
    """The names of the reported metrics."""
    subject: str = ""
    """What was measured: a checkpoint and which of its weights, or the folder of the reconstructions."""
    num_videos: int = 1
    """Number of videos that the clips are from."""
    places: str = ""
    """Which clips of the videos were selected."""
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
    """Processing of reconstructions before measuring."""
    sampler: tuple[tuple[str, object], ...] = ()
    """Name, steps and seed by which a decoder that generates is sampled, as pairs; empty for others."""
    published: tuple[tuple[str, object], ...] = ()
    """The fields of the published protocol, as pairs."""

    def __post_init__(self) -> None:
        check_counts(num_clips=self.num_clips, num_videos=self.num_videos, frame_stride=self.frame_stride)
        size = {"num_frames": self.num_frames, "height": self.height, "width": self.width}
        check_counts(**{name: value for name, value in size.items() if value is not None})
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
        values |= {name: dict(getattr(self, name)) for name in ("backbones", "absent", "sampler", "published")}
        values["value_range"] = list(VALUE_RANGE)
        values["metrics"] = {name: self._definitions()[name] for name in self.metrics}
        versions = {package: version(package) for package in ("telecine", "torch", "torchmetrics", "av")}
        return values | {"versions": {"python": platform.python_version()} | versions}

    def write(self, path: str | Path) -> None:
        """Write `as_dict()` as JSON to `path`, atomically."""
        write_json(Path(path), self.as_dict())


def describe_clips(protocol: Mapping[str, Any]) -> str:
    """Return number, length and size of the clips of a `protocol.json`, and the name of the published protocol."""
    frames = "whole videos" if protocol["num_frames"] is None else f"{protocol['num_frames']} frames"
    size = "their size" if protocol["height"] is None else f"{protocol['height']} x {protocol['width']}"
    name = protocol.get("published", {}).get("name")
    return f"{protocol['num_clips']} clips, {frames} of {size}{f', protocol {name}' if name else ''}"
