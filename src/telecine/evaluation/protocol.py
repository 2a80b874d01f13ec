"""What was measured and how: the definition of each metric, and the protocol of an evaluation."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal

from telecine.base.shapes import VALUE_RANGE
from telecine.base.yaml_files import read_package_yaml

GRID_PERIODS = (2, 4, 8, 16)  # spatial strides of common autoencoders


@dataclass(frozen=True)
class _Definition:
    text: str  # formula, settings, source and averaging
    better: Literal["larger", "smaller", "nearest to 0", "nearest to 1"] = "larger"
    min_side: int = 1  # smallest height and width of a frame
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


def _versions() -> dict[str, str]:
    packages = ("telecine", "torch", "torchmetrics", "av")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


@dataclass(frozen=True)
class EvaluationProtocol:
    """Everything that a figure depends on besides the model: the content of `protocol.json`."""

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
    metrics: dict[str, str]
    """The definition of each reported metric, which ends with its better values."""
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
    backbones: Mapping[str, str] = field(default_factory=dict)
    """The source or hash of the weights of each metric's network."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """The reason for each metric that is not reported."""
    reconstruction: str = "clamped to the value range before measuring"
    """Processing of reconstructions before measuring."""
    sampler: Mapping[str, object] = field(default_factory=dict)
    """Name, steps and seed by which a decoder that generates is sampled; empty for others."""
    published: Mapping[str, object] = field(default_factory=dict)
    """The fields of the published protocol; empty without one."""
    value_range: tuple[float, float] = VALUE_RANGE
    versions: Mapping[str, str] = field(default_factory=_versions)


def better_values(definition: str) -> str:
    """Return which values of a metric are better, as its definition in a protocol ends with."""
    return definition.rpartition("; ")[2].removesuffix(" is better")


def describe_clips(protocol: Mapping[str, Any]) -> str:
    """Return number, length and size of the clips of a `protocol.json`, and the name of the published protocol."""
    frames = "whole videos" if protocol["num_frames"] is None else f"{protocol['num_frames']} frames"
    size = "their size" if protocol["height"] is None else f"{protocol['height']} x {protocol['width']}"
    name = protocol.get("published", {}).get("name")
    return f"{protocol['num_clips']} clips, {frames} of {size}{f', protocol {name}' if name else ''}"
