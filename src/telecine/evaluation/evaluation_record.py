"""What was measured and how: the protocol of an evaluation."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from telecine.base.shapes import VALUE_RANGE
from telecine.evaluation.metrics.metric import Better


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("telecine", "torch", "torchmetrics", "av"):
        versions[package] = version(package)
    return versions


@dataclass(frozen=True)
class EvaluationRecord:
    """Everything that a value depends on besides the model: the content of `protocol.json`."""

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
    """The definition of each reported metric."""
    better: Mapping[str, Better]
    """Which values of each metric are better."""
    subject: str = ""
    """What was measured: a checkpoint and which of its weights, or the folder of the reconstructions."""
    checkpoint: str = ""
    """The name or the folder of the model; empty for reconstructions that are videos, and for modules from Python."""
    weights: str = ""
    """Which weights of a run were measured, see `ModelUse.weights`; as empty as `checkpoint`."""
    decoder: str = ""
    """The model that decoded, if it is another one than the one that encoded."""
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
    """How each metric is measured: the source or hash of the weights of its network, or its method."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """The reason for each metric that is not reported."""
    reconstruction: str = "clamped to the value range before measuring"
    """Processing of reconstructions before measuring."""
    sampler: Mapping[str, object] = field(default_factory=dict)
    """Name, steps and seed by which a decoder that generates is sampled; empty for others."""
    published: Mapping[str, object] = field(default_factory=dict)
    """The fields of the published protocol; empty without one."""
    speed: Mapping[str, object] = field(default_factory=dict)
    """Device, threads, dtype, clip and rules by which the speed was measured; empty if it was not."""
    tf32: bool = False
    """Whether float32 may be computed in TF32, by the model and by the metrics, on NVIDIA's GPUs from Ampere on. Older
    protocols do not say it: there, PyTorch's default held, which has TF32 in convolutions."""
    value_range: tuple[float, float] = VALUE_RANGE
    versions: Mapping[str, str] = field(default_factory=_versions)


def describe_clips(record: Mapping[str, Any]) -> str:
    """Return number, length and size of the clips of a `protocol.json`, and the name of the published protocol."""
    num_frames = record["num_frames"]
    frames = "whole videos" if num_frames is None else f"{num_frames} frames"
    size = "their size" if record["height"] is None else f"{record['height']} x {record['width']}"
    text = f"{record['num_clips']} clips, {frames} of {size}"
    published_name = record.get("published", {}).get("name")
    if published_name:
        text = f"{text}, protocol {published_name}"
    return text
