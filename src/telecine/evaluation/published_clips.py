"""The clips of a published protocol: which are selected, how they are read, and their reconstructions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from telecine.autoencoders import VideoAutoencoder
from telecine.base.checks import argument_error
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.data import (
    Clip,
    Span,
    VideoInfo,
    bytes_from_video,
    log_too_short,
    read_clip,
    video_from_bytes,
    whole_video,
)
from telecine.data.source import DecodeError
from telecine.evaluation.published import CLIP_CHOICES, VALUES, PublishedProtocol
from telecine.evaluation.source import MatchingVideos, contains_videos, index_data, load_model, match_videos
from telecine.evaluation.tiling import blended_chunks, overlapping_chunks, reconstruct_tiled
from telecine.runs import find_checkpoint
from telecine.settings import EvaluateConfig, Tiling

logger = logging.getLogger(__name__)


def check_options(config: EvaluateConfig, protocol: PublishedProtocol) -> None:
    """Raise a `ValueError` if a setting was given that contradicts the protocol."""
    side = protocol.crop
    stride = 1 if protocol.sample_fps is None else None
    items = {"num_frames": protocol.num_frames, "height": side, "width": side, "stride": stride, "max_clips": None}
    for name, expected in items.items():
        value = getattr(config, name)
        if value is not None and value != expected:
            contract = f"{'left out' if expected is None else expected} with protocol {protocol.name}"
            raise argument_error(name, contract, value, f"Leave out `{name}`, or `protocol`.")
    if config.features == "transnetv2":
        contract = f"the path of i3d_torchscript.pt, or left out, with protocol {protocol.name}"
        raise argument_error("features", contract, config.features, "Its Frechet distances are those of an I3D.")


def open_published(
    checkpoint: Path, config: EvaluateConfig, protocol: PublishedProtocol, device: torch.device
) -> tuple[PublishedModelSource | PublishedVideoSource, list[VideoInfo]]:
    """Return the source of the reconstructions, and the videos of `config.data`.

    Raises:
        ValueError: There is neither a model nor videos that match, or the model does not accept the protocol's clips.
    """
    data = str(config.data)
    if contains_videos(checkpoint):
        infos = index_data(data)
        matches = match_videos(infos, data=data, reconstructions=checkpoint)
        return PublishedVideoSource(matches, f"{checkpoint}, as videos", protocol), infos
    model = load_model(checkpoint, config.weights, device)
    if protocol.num_frames is not None and protocol.crop is not None:
        model.check_clip(protocol.num_frames, protocol.crop, protocol.crop)
    title = f"{checkpoint}, weights {config.weights}" if find_checkpoint(checkpoint) else str(checkpoint)
    return PublishedModelSource(model, protocol, title), index_data(data)


def describe_published(protocol: PublishedProtocol, spans: Sequence[Span]) -> dict[str, Any]:
    """Return the fields of the protocol of an evaluation that say how clips were selected, read and measured."""
    strides = {protocol.stride(span.info.fps) for span in spans}
    frame_rates = {span.info.fps / protocol.stride(span.info.fps) for span in spans}
    return {
        "num_frames": protocol.num_frames,
        "height": protocol.crop,
        "width": protocol.crop,
        "resize": protocol.describe_resize(),
        "crop": "none" if protocol.crop is None else "center",
        "places": CLIP_CHOICES[protocol.clips],
        "fps": frame_rates.pop() if len(frame_rates) == 1 else None,
        "frame_stride": max(strides),
        "reconstruction": VALUES[protocol.values],
        "published": (("name", protocol.name), *protocol.as_items().items()),
    }


def select_published(infos: Sequence[VideoInfo], protocol: PublishedProtocol) -> list[Span]:
    """Return the frames of each clip that the protocol measures, in the order of the videos.

    Raises:
        ValueError: The videos are not as many as published, have too few frames a second, or are all too short.
    """
    if protocol.num_videos is not None and len(infos) != protocol.num_videos:
        contract = f"the {protocol.num_videos} videos of protocol {protocol.name} ({protocol.data})"
        raise argument_error("data", contract, f"{len(infos)} videos", "Pass the folder that has these only.")
    for info in infos:
        if protocol.stride(info.fps) < 1:
            contract = f"videos that have at least half of {protocol.sample_fps:g} frames a second"
            got = f"{info.fps:g} in {info.path}"
            raise argument_error("data", contract, got, f"Protocol {protocol.name} is not defined for them.")
    if protocol.clips == "first":
        log_too_short(map(whole_video, infos), _clip_span(protocol, infos[0]))
    spans = [span for info in infos for span in _spans(info, protocol)]
    if not spans:
        contract = f"videos of at least {protocol.num_frames} frames for protocol {protocol.name}"
        longest = max(infos, key=lambda info: info.num_frames)
        got = f"at most {longest.num_frames}, in {longest.path}"
        raise argument_error("data", contract, got, "Pass the videos of the published figures.")
    return spans


def _clip_span(protocol: PublishedProtocol, info: VideoInfo) -> int:
    """Return the frames of a video from the first to the last of a clip, inclusive."""
    assert protocol.num_frames is not None
    return (protocol.num_frames - 1) * protocol.stride(info.fps) + 1


def _spans(info: VideoInfo, protocol: PublishedProtocol) -> list[Span]:
    """Return the clips of one video. The last one of "all" may have fewer frames."""
    length = protocol.length(info.num_frames, info.fps)
    if protocol.clips == "whole":
        return [Span(info, 0, length - 1)]
    span = _clip_span(protocol, info)
    if protocol.clips == "first":
        return [Span(info, 0, span - 1)] if span <= length else []
    assert protocol.num_frames is not None
    starts = range(0, length, protocol.num_frames * protocol.stride(info.fps))
    return [Span(info, start, min(start + span, length) - 1) for start in starts]


def read_published(span: Span, protocol: PublishedProtocol) -> Clip | None:
    """Return a clip as the protocol reads it, in [-1, 1]. Log and return None if it cannot be decoded."""
    stride = protocol.stride(span.info.fps)
    num_frames = (span.num_frames - 1) // stride + 1
    try:
        frames = read_clip(span.info, span.first_frame, num_frames, stride)
    except DecodeError as error:
        logger.warning("skipping a clip: %s", error)
        return None
    video = torch.stack([_prepared(frame, protocol) for frame in frames], dim=1)
    if protocol.num_frames is not None and num_frames < protocol.num_frames:
        last = video[:, -1:].expand(-1, protocol.num_frames - num_frames, -1, -1)
        video = torch.cat([video, last], dim=1)
    return {"video": video, "source": str(span.info.path), "start": span.first_frame}


def _prepared(frame: Tensor, protocol: PublishedProtocol) -> Tensor:
    """Resize and crop a frame, uint8 `(H, W, 3)`, and return it in [-1, 1], `(3, H, W)`."""
    # Importing torchvision takes a second, which `telecine --help` must not spend.
    from torchvision.transforms.v2 import functional

    size = protocol.size(*frame.shape[:2])
    if protocol.interpolation == "lanczos":
        resized = functional.pil_to_tensor(Image.fromarray(frame.numpy()).resize(size[::-1], Image.Resampling.LANCZOS))
        image = resized.float() / 255
    else:
        image = functional.resize(frame.permute(2, 0, 1).float() / 255, list(size), antialias=True)
    if protocol.crop is not None:
        image = functional.center_crop(image, [protocol.crop])
    return image.clamp(0, 1) * 2 - 1


def measured_values(video: Tensor, protocol: PublishedProtocol) -> Tensor:
    """Return a video `(..., 3, T, H, W)` with the values that the protocol measures, in [-1, 1]."""
    video = video.clamp(*VALUE_RANGE)
    if protocol.values == "float":
        return video
    if protocol.values == "truncated":
        video = ((video + 1) * 127.5).floor() / 127.5 - 1
    return video_from_bytes(bytes_from_video(video)).to(video.dtype)


@dataclass(frozen=True)
class PublishedModelSource:
    """Reconstructs clips with an autoencoder, as a protocol does."""

    model: VideoAutoencoder
    """In eval mode."""
    protocol: PublishedProtocol
    title: str
    """The folder of the model, and which of its weights."""

    def read(self, span: Span) -> Clip | None:
        """Return the clip of a span, or None if it cannot be decoded."""
        return read_published(span, self.protocol)

    def reconstruct(self, span: Span, target: Video) -> Video:
        """Return the reconstruction. A sample of the posterior depends on the clip only."""
        if self.protocol.chunk is not None:
            return self._in_chunks(target, self.protocol.chunk)
        if self.protocol.posterior == "mode":
            return self.model(target, sample_posterior=False).video
        generator = torch.Generator(target.device).manual_seed(span.first_frame)
        return self.model(target, sample_posterior=True, generator=generator).video

    def _in_chunks(self, target: Video, num_frames: int) -> Video:
        """Decode the mode of each chunk, padded to a size that the model accepts."""

        def reconstruct(chunk: Tensor) -> Tensor:
            return reconstruct_tiled(self.model, chunk.transpose(0, 1), Tiling()).transpose(0, 1)

        chunks = overlapping_chunks(target[0].transpose(0, 1), num_frames, 0)
        parts = [reconstruction for _, reconstruction in blended_chunks(chunks, 0, reconstruct)]
        return torch.cat(parts).transpose(0, 1)[None]


@dataclass(frozen=True)
class PublishedVideoSource(MatchingVideos):
    """Reads clips as a protocol does, and their reconstructions from other videos."""

    protocol: PublishedProtocol

    def read(self, span: Span) -> Clip | None:
        """Return the clip of a span, or None if it cannot be decoded."""
        return read_published(span, self.protocol)
