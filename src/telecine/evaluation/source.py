"""Where reconstructions come from: an autoencoder, or videos that one has written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
import yaml
from torch import nn

from telecine.data import ClipConfig, Span, VideoInfo
from telecine.evaluation.clips import read_place
from telecine.evaluation.config import EvaluateConfig
from telecine.evaluation.model import load_model
from telecine.evaluation.pairs import match_videos
from telecine.runs import CONFIG_FILE, find_checkpoint
from telecine.shapes import Video, argument_error


class Source(Protocol):
    """Reconstructs clips."""

    @property
    def clips(self) -> ClipConfig:
        """How clips are read."""

    @property
    def title(self) -> str:
        """What the protocol says about the source."""

    def reconstruct(self, place: Span, target: Video) -> Video:
        """Return the reconstruction of the clip at a place, whose pixels are `target` `(1, 3, T, H, W)`."""


@dataclass(frozen=True)
class ModelSource:
    """Sends each clip through an autoencoder."""

    model: nn.Module
    """A `VideoAutoencoder` in eval mode."""
    clips: ClipConfig
    """How clips are read."""
    title: str
    """Where the model is, and which of its weights."""

    def reconstruct(self, place: Span, target: Video) -> Video:
        """Return the reconstruction from the mode of the clip's posterior."""
        return self.model(target, sample_posterior=False).video


@dataclass(frozen=True)
class VideoSource:
    """Reads each clip's place in another video."""

    matches: Mapping[str, VideoInfo]
    """The reconstruction of each video, by its path."""
    clips: ClipConfig
    """How both are read."""
    title: str
    """Where the reconstructions are."""

    def reconstruct(self, place: Span, target: Video) -> Video:
        """Return the same frames of the video's match, resized and cropped in the same way."""
        match = self.matches[str(place.info.path)]
        clip = read_place(replace(place, info=match), self.clips)
        if clip is None:
            got = f"{match.path}, whose frames {place.first_frame} to {place.last_frame} are broken"
            raise argument_error("checkpoint", "decodable where `data` is", got, "Write that video again.")
        return clip["video"][None].to(target)


def model_source(checkpoint: Path, config: EvaluateConfig, device: torch.device) -> ModelSource:
    """Load an autoencoder, to be measured on clips like those of its run, or on the default ones if it has none.

    Raises:
        ValueError: there is no model, or it does not reproduce clips of this size.
    """
    model = load_model(checkpoint, config.weights, device)
    found = find_checkpoint(checkpoint)
    saved = yaml.safe_load((found / CONFIG_FILE).read_text(encoding="utf-8"))["clips"] if found else {}
    clips = config.applied_to(ClipConfig(**{**saved, "buckets": ()}))  # they are for training alone
    model.check_clip(clips.num_frames, clips.height, clips.width)
    return ModelSource(model, clips, f"{checkpoint}, weights {config.weights}" if found else str(checkpoint))


def video_source(
    reconstructions: Path, infos: Sequence[VideoInfo], config: EvaluateConfig, data: str | Path
) -> VideoSource:
    """Match reconstructions to the videos they are of, to be measured at their own size where no other is given.

    Raises:
        ValueError: the two do not match, or have several sizes and none is given.
    """
    matches = match_videos(infos, data=Path(data), reconstructions=reconstructions)
    clips = config.applied_to(ClipConfig())
    if config.height is None or config.width is None:
        height, width = _one_size(infos)
        clips = config.applied_to(replace(clips, height=height, width=width))
    return VideoSource(matches, clips, f"{reconstructions}, as videos")


def _one_size(infos: Sequence[VideoInfo]) -> tuple[int, int]:
    sizes = sorted({(info.height, info.width) for info in infos})
    if len(sizes) > 1:
        got = f"{len(sizes)} sizes, from {sizes[0][0]} x {sizes[0][1]} to {sizes[-1][0]} x {sizes[-1][1]}"
        remedy = "Give `height` and `width`, to which all are resized and cropped."
        raise argument_error("data", "videos of one size", got, remedy)
    return sizes[0]
