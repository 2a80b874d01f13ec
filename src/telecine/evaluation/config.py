"""The settings of an evaluation."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from telecine.data import ClipConfig
from telecine.devices import DeviceName
from telecine.runs import Weights


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured on what."""

    data: str | None = None
    """A folder of videos (searched with its subfolders) or one video: the inputs. Needed, except with --compare."""
    weights: Weights = "ema"
    """The averaged weights, or the raw ones ("model")."""
    max_clips: int = 100
    """How many clips to measure, spread over the videos."""
    num_frames: int | None = None
    """Frames in a clip; those of the training run by default, else 17."""
    height: int | None = None
    """Height of a clip; that of the training run by default, of the videos where reconstructions are given as videos,
    else 256."""
    width: int | None = None
    """Width of a clip; as `height`."""
    stride: int | None = None
    """Distance between the frames of a clip; that of the training run by default, else 1."""
    features: str | None = None
    """Network of a Frechet distance over the whole set: the path of an I3D as TorchScript (reported as fvd), or
    "transnetv2" (reported as frechet_transnetv2; needs telecine[frechet]). Needs more clips than it has features."""
    device: DeviceName = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        for name in ("data", "features"):  # as behind `=`, where a shell leaves `~` alone
            if getattr(self, name) is not None:
                object.__setattr__(self, name, os.path.expanduser(getattr(self, name)))

    def applied_to(self, clips: ClipConfig) -> ClipConfig:
        """Return `clips` with the frames, size and stride that are given here, and without what only training needs."""
        given = {name: getattr(self, name) for name in ("num_frames", "height", "width", "stride")}
        given = {name: value for name, value in given.items() if value is not None}
        return replace(clips, **given, buckets=(), image_ratio=0.0, scale_jitter=1.0, cache=False)
