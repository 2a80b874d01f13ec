"""The clips that settings describe, and the metrics that are defined for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from telecine.base.checks import argument_error, check_count
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.base.terminal import with_progress
from telecine.data import Clip, Span, VideoInfo, iterate_validation_clips
from telecine.data.clip_frames import ClipFrames
from telecine.data.source import whole_video
from telecine.data.spacing import evenly_spaced
from telecine.data.span_table import SpanTable
from telecine.evaluation.metrics import METRICS, default_metrics
from telecine.evaluation.metrics.frechet import load_frechet_network
from telecine.evaluation.metrics.lpips import LPIPS_NETWORKS, load_lpips
from telecine.evaluation.metrics.metric_set import MetricSet
from telecine.models import VideoAutoencoder
from telecine.settings import ClipConfig, EvaluateConfig

CLIP_SELECTION = (
    "clips without overlap from each video's first frame on, evenly spaced among all of them"
)


@dataclass(frozen=True)
class ConfiguredClips:
    """Clips of the length, size and stride of settings: the protocol of evaluations without a published one."""

    config: ClipConfig
    max_clips: int
    """Largest number of clips."""

    def select(self, infos: Sequence[VideoInfo]) -> list[Span]:
        """Return clips of videos, always the same ones, evenly spaced among all that do not overlap.

        Raises:
            ValueError: All videos are too short.
        """
        check_count("max_clips", self.max_clips)
        frames = ClipFrames.of(self.config.val_bucket, self.config)
        videos = [whole_video(info) for info in infos]
        if not any(frames.fits(video) for video in videos):
            longest = max(infos, key=lambda info: info.num_frames)
            got = f"at most {longest.num_frames} frames, in {longest.source}"
            remedy = "Set a smaller `num_frames` or `stride`."
            raise argument_error("data", f"files with a {frames.describe()}", got, remedy)
        SpanTable.of(videos).log_too_short(frames)
        spans = []
        for video in videos:
            start = 0
            while frames.fits(replace(video, first_frame=start)):
                last = frames.last_index(video.info, start)
                spans.append(Span(video.info, start, last))
                start = last + 1
        count = min(self.max_clips, len(spans))
        return [spans[index] for index in evenly_spaced(len(spans), count)]

    def read(self, span: Span, file: VideoInfo | None = None) -> Clip | None:
        """Return a clip, resized and center-cropped. Log and return None if it cannot be decoded.

        Args:
            span: The clip.
            file: A file with as many frames, from which the same frames are read, whatever its frame rate is. None:
                that of the clip.
        """
        return next(iterate_validation_clips([span], self.config, 1, file=file), None)

    def read_all(self, infos: Sequence[VideoInfo]) -> Iterator[tuple[Span, Clip]]:
        """Yield the clips of videos that can be decoded, with their frames in the videos.

        Raises:
            ValueError: All videos are too short, or no clip can be decoded.
        """
        selected = self.select(infos)
        num_read = 0
        for span in with_progress(selected, "reading"):
            clip = self.read(span)
            if clip is not None:
                num_read += 1
                yield span, clip
        if num_read == 0:
            got = f"{len(selected)} broken ones"
            raise argument_error("data", "files with a decodable clip", got, "See the log.")

    def reconstruct(self, model: VideoAutoencoder, span: Span, target: Video) -> Video:
        """Return the reconstruction of the mode of a clip's posterior, `(1, C, T, H, W)`.

        Args:
            model: The autoencoder.
            span: Where the clip is in its video.
            target: The clip, `(1, C, T, H, W)` in [-1, 1].
        """
        return model(target, sample_posterior=False).video

    def measured_values(self, video: Tensor) -> Tensor:
        """Return a video clamped to [-1, 1]."""
        return video.clamp(*VALUE_RANGE)

    def load_metrics(
        self, spans: Sequence[Span], config: EvaluateConfig, device: torch.device
    ) -> MetricSet:
        """Load all metrics that are defined for these clips.

        Args:
            spans: The clips, which all have one length and size.
            config: The settings. Their `features` name the network of the Frechet distance.
            device: Where the networks are.

        Raises:
            ValueError: What was requested is not defined for these clips.
        """
        clips = self.config
        if not clips.has_colours:
            for name, value in (("flow", config.flow), ("flat", config.flat)):
                if value:
                    contract = "left out unless clips have 1, 3 or 4 channels"
                    got = f"{value} for {clips.num_channels}"
                    raise argument_error(name, contract, got, "Leave it out.")
        network = load_frechet_network(config.feature_network, clips, device)
        names = []
        absent = {}
        for name in (*default_metrics(), *LPIPS_NETWORKS):
            reason = METRICS[name].unavailable_reason(clips.num_frames, clips.height, clips.width)
            if name in LPIPS_NETWORKS and not clips.has_colours:
                reason = f"needs RGB frames, but clips have {clips.num_channels} channels"
            if reason is None:
                names.append(name)
            else:
                absent[name] = reason
        perceptual, methods = load_lpips(names, device)
        if network is not None:
            methods[network.metric.name] = network.origin
        pixel_metrics = [name for name in names if name not in LPIPS_NETWORKS]
        return MetricSet(pixel_metrics, perceptual, network, methods, absent)

    def describe(self, spans: Sequence[Span]) -> dict[str, Any]:
        """Return the fields of `EvaluationRecord` that say how clips were selected and read."""
        clips = self.config
        frame_rates = {clips.fps or span.info.fps / clips.stride for span in spans}
        return {
            "num_frames": self.config.num_frames,
            "height": self.config.height,
            "width": self.config.width,
            "resize": "the smallest size that covers the crop, aspect kept, antialiased bicubic",
            "crop": "center",
            "places": CLIP_SELECTION,
            "fps": frame_rates.pop() if len(frame_rates) == 1 else None,
            "frame_stride": self.config.stride,
        }
