"""How published results were measured: which clips, how they are read, reconstructed and measured."""

import importlib.util
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from telecine.base.checks import argument_error, count
from telecine.base.imports import how_to_install
from telecine.base.randomness import seed_of
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.data import (
    Clip,
    DecodeError,
    Span,
    VideoInfo,
    bytes_from_video,
    read_clip,
    video_from_bytes,
    whole_video,
)
from telecine.data.clip_frames import ClipFrames
from telecine.data.span_table import SpanTable
from telecine.evaluation.metrics.frechet import (
    FVD,
    FVD_SINGLE,
    SingleClipFrechet,
    load_frechet_network,
)
from telecine.evaluation.metrics.lpips import LPIPS_NETWORKS, load_lpips
from telecine.evaluation.metrics.metric_set import MetricSet
from telecine.evaluation.tiling import reconstruct_clip
from telecine.models import VideoAutoencoder
from telecine.ops.pass_options import clip_position, pass_options
from telecine.settings import CHANNELS, ClipConfig, EvaluateConfig, ProtocolName

logger = logging.getLogger(__name__)

CLIP_CHOICES = {
    "all": "consecutive clips of each video from its first frame on; the last one repeats the video's last frame",
    "first": "the first frames of each video; videos that are too short are left out",
    "whole": "each video whole",
    "random": "one clip of each video, whose first frame is drawn by the file's name; short videos repeat their last "
    "frame",
}
VALUES = {
    "float": "float32, reconstructions clamped to [-1, 1]",
    "rounded": "inputs and reconstructions clamped and rounded to 8 bits",
    "truncated": "inputs and reconstructions clamped, and cut to 8 bits without rounding",
}


@dataclass(frozen=True, kw_only=True)
class PublishedProtocol:
    """How published results were measured. Results compare only if all fields are equal."""

    name: ProtocolName
    data: str
    """The videos that the results are of. They are passed by path."""
    num_videos: int | None = None
    """Number of these videos. None: not stated, or not checked."""
    clips: Literal["all", "first", "whole", "random"]
    """Which clips of a video are measured, a key of `CLIP_CHOICES`."""
    num_frames: int | None = None
    """Frames in a clip. None: as many as the video has, for `clips` "whole" only."""
    sample_fps: float | None = None
    """Every n-th frame is used, with n the file's frame rate over this one, rounded. None: every frame."""
    max_length: tuple[int, float] | None = None
    """Frames and seconds; a video is cut after the longer of the two. None: not cut."""
    short_side: int | None = None
    """Length to which the shorter side of a frame is resized. None: frames keep their size."""
    interpolation: Literal["bilinear", "lanczos"]
    """How frames are resized, with antialiasing: by torchvision ("bilinear") or by Pillow ("lanczos")."""
    enlarge: bool
    """Whether frames with a shorter side below `short_side` are resized, too."""
    crop: int | None = None
    """Side of the square at the centre to which frames are cropped. None: not cropped."""
    posterior: Literal["sample", "mode"]
    """What is decoded."""
    chunk: int | None = None
    """Frames that the autoencoder gets at once, for the mode only; chunks share none, and are padded for a model that
    needs more. None: the clip."""
    values: Literal["float", "rounded", "truncated"]
    """The values that are measured, a key of `VALUES`."""
    metrics: tuple[str, ...]
    """Names in `METRICS`."""
    needs_features: bool = False
    """Whether a call without `features` is an error. Results do not depend on it."""
    sources: tuple[str, ...]
    """The paper, and files of the published code, that state the fields."""
    not_stated: tuple[str, ...]
    """What the sources do not state, with what is done here."""
    deviations: tuple[str, ...]
    """What the published code does otherwise, with what is done here."""

    def __post_init__(self) -> None:
        if (self.clips == "whole") != (self.num_frames is None):
            remedy = "Leave `num_frames` out for whole videos only."
            raise argument_error("clips", "whole, or of a number of frames", self.clips, remedy)
        if self.chunk is not None and self.posterior != "mode":
            raise argument_error(
                "posterior", "the mode in chunks", self.posterior, "Leave `chunk` out."
            )

    def check_options(self, config: EvaluateConfig) -> None:
        """Raise a `ValueError` if a setting contradicts the protocol."""
        allowed = {
            "num_frames": self.num_frames,
            "height": self.crop,
            "width": self.crop,
            "stride": 1 if self.sample_fps is None else None,
            "fps": None,
            "max_clips": None,
        }
        for name, expected in allowed.items():
            value = getattr(config, name)
            if value is not None and value != expected:
                contract = "left out" if expected is None else str(expected)
                remedy = f"Leave out `{name}`, or `protocol`."
                raise argument_error(name, f"{contract} with protocol {self.name}", value, remedy)
        if config.features is None and self.needs_features:
            contract = f"the path of StyleGAN-V's I3D, for the FVD of protocol {self.name}"
            remedy = "Add `--features i3d_torchscript.pt`, or `--features none` for the other metrics alone."
            raise argument_error("features", contract, "nothing", remedy)
        if config.features == "transnetv2":
            contract = f"the path of i3d_torchscript.pt, or left out, with protocol {self.name}"
            raise argument_error(
                "features", contract, config.features, "Its Frechet distances are those of an I3D."
            )

    def check_model(self, model: VideoAutoencoder) -> None:
        """Raise a `ValueError` if an autoencoder does not accept the clips."""
        if self.num_frames is not None and self.crop is not None and self.chunk is None:
            model.check_clip(self.num_frames, self.crop, self.crop)
        if model.in_channels != CHANNELS["rgb"]:
            contract = f"left out for a model of {count(model.in_channels, 'channel')}"
            remedy = "Published results are of RGB."
            raise argument_error("protocol", contract, self.name, remedy)

    def select(self, infos: Sequence[VideoInfo]) -> list[Span]:
        """Return the frames of each measured clip.

        Raises:
            ValueError: The videos do not fit the protocol.
        """
        if self.num_videos is not None and len(infos) != self.num_videos:
            contract = f"the {self.num_videos} videos of protocol {self.name} ({self.data})"
            raise argument_error(
                "data", contract, f"{len(infos)} videos", "Pass the folder that has these only."
            )
        for info in infos:
            if self._stride(info) < 1:
                contract = f"videos that have at least half of {self.sample_fps:g} frames a second"
                remedy = f"Protocol {self.name} is not defined for them."
                raise argument_error("data", contract, f"{info.fps:g} in {info.source}", remedy)
        if self.clips == "first":
            frames = ClipFrames(self._num_source_frames(infos[0]))
            SpanTable.of([whole_video(info) for info in infos]).log_too_short(frames)
        spans = []
        for info in infos:
            spans += self._spans(info)
        if not spans:
            contract = f"videos of at least {self.num_frames} frames for protocol {self.name}"
            longest = max(infos, key=lambda info: info.num_frames)
            got = f"at most {longest.num_frames}, in {longest.source}"
            raise argument_error("data", contract, got, "Pass the videos of the published results.")
        return spans

    def _stride(self, info: VideoInfo) -> int:
        return 1 if self.sample_fps is None else round(info.fps / self.sample_fps)

    def _num_source_frames(self, info: VideoInfo) -> int:
        assert self.num_frames is not None
        return (self.num_frames - 1) * self._stride(info) + 1

    def _spans(self, info: VideoInfo) -> list[Span]:
        """Return the clips of one video. The last one of "all" may have fewer frames."""
        num_frames = info.num_frames
        if self.max_length is not None:
            max_frames, max_seconds = self.max_length
            num_frames = min(num_frames, max(max_frames, math.ceil(max_seconds * info.fps)))
        if self.clips == "whole":
            return [Span(info, 0, num_frames - 1)]
        num_source_frames = self._num_source_frames(info)
        starts: Sequence[int] = []
        if self.clips == "all":
            # The next one begins a stride later.
            starts = range(0, num_frames, num_source_frames + self._stride(info) - 1)
        elif self.clips == "random":
            starts = [seed_of(info.source.name) % max(num_frames - num_source_frames + 1, 1)]
        elif num_source_frames <= num_frames:
            starts = [0]
        return [
            Span(info, start, min(start + num_source_frames, num_frames) - 1) for start in starts
        ]

    def read(self, span: Span, file: VideoInfo | None = None) -> Clip | None:
        """Return a clip as the protocol reads it, in [-1, 1]. Log and return None if it cannot be decoded.

        Args:
            span: The clip.
            file: A file with as many frames, from which the same frames are read, whatever its frame rate is. None:
                that of the clip.
        """
        file = file or span.info
        stride = self._stride(span.info)
        num_read = (span.num_frames - 1) // stride + 1
        try:
            frames = read_clip(file, span.first_frame, num_read, stride)
        except DecodeError as error:
            logger.warning("skipping a clip: %s", error)
            return None
        if file.is_array:
            frames = bytes_from_video(video_from_bytes(frames))
        video = torch.stack([self._prepared(frame) for frame in frames], dim=1)
        if self.num_frames is not None and num_read < self.num_frames:
            last_frames = video[:, -1:].expand(-1, self.num_frames - num_read, -1, -1)
            video = torch.cat([video, last_frames], dim=1)
        return {
            "video": video,
            "source": str(file.source),
            "start": span.first_frame,
            "fps": span.info.fps / stride,
        }

    def _prepared(self, frame: Tensor) -> Tensor:
        """Return a frame `(H, W, 3)` of 8 bits resized and cropped, `(3, H, W)` in [-1, 1]."""
        # Takes a second, which `telecine --help` must not spend.
        from torchvision.transforms.v2 import functional

        height, width = self.resized_size(*frame.shape[:2])
        if self.interpolation == "lanczos":
            picture = Image.fromarray(frame.numpy()).resize(
                (width, height), Image.Resampling.LANCZOS
            )
            image = functional.pil_to_tensor(picture).float() / 255
        else:
            image = functional.resize(
                frame.permute(2, 0, 1).float() / 255, [height, width], antialias=True
            )
        if self.crop is not None:
            image = functional.center_crop(image, [self.crop])
        return image.clamp(0, 1) * 2 - 1

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of a frame of this size after resizing, before the crop."""
        short = min(height, width)
        if self.short_side is None or short == self.short_side:
            return height, width
        if short < self.short_side and not self.enlarge:
            return height, width
        # torchvision cuts the longer side to a whole number, the script of TokenBench rounds it.
        rounding = 0.5 if self.interpolation == "lanczos" else 0.0
        longer = int(self.short_side * max(height, width) / short + rounding)
        if height <= width:
            return self.short_side, longer
        return longer, self.short_side

    def reconstruct(self, model: VideoAutoencoder, span: Span, target: Video) -> Video:
        """Return the reconstruction of a clip, `(1, 3, T, H, W)`. A sample of the posterior depends on the clip only.

        Args:
            model: The autoencoder.
            span: Where the clip is in its video.
            target: The clip, `(1, 3, T, H, W)` in [-1, 1].
        """
        if self.chunk is not None:
            parts = []
            first_frame = pass_options().clip_position.first_frame
            for part in target[0].split(self.chunk, dim=1):
                with clip_position(first_frame=first_frame):
                    parts.append(reconstruct_clip(model, part))
                first_frame += part.shape[1]
            return torch.cat(parts, dim=1)[None]
        if self.posterior == "mode":
            return model(target, sample_posterior=False).video
        generator = torch.Generator(target.device).manual_seed(span.first_frame)
        return model(target, sample_posterior=True, generator=generator).video

    def measured_values(self, video: Tensor) -> Tensor:
        """Return a video `(..., 3, T, H, W)` with the values that the protocol measures, in [-1, 1]."""
        video = video.clamp(*VALUE_RANGE)
        if self.values == "float":
            return video
        if self.values == "truncated":
            video = ((video + 1) * 127.5).floor() / 127.5 - 1
        return video_from_bytes(bytes_from_video(video)).to(video.dtype)

    def load_metrics(
        self, spans: Sequence[Span], config: EvaluateConfig, device: torch.device
    ) -> MetricSet:
        """Load the metrics of the protocol.

        Args:
            spans: The clips.
            config: The settings. Their `features` name the I3D of the Frechet distance, which is left out without it.
            device: Where the networks are.

        Raises:
            ValueError: A package is missing, or a clip is too short for a metric.
        """
        if "ssim_uniform" in self.metrics and importlib.util.find_spec("skimage") is None:
            got = f"{self.name} without the package scikit-image"
            remedy = how_to_install("protocols")
            raise argument_error("protocol", "one whose packages are installed", got, remedy)
        num_frames = self.num_frames or min(span.num_frames for span in spans)
        clips = ClipConfig(num_frames=num_frames)
        network = load_frechet_network(config.feature_network, clips, device)
        perceptual, methods = load_lpips(self.metrics, device)
        absent = {}
        pixel_metrics = []
        for name in self.metrics:
            if name in LPIPS_NETWORKS:
                continue
            if name not in (FVD.name, FVD_SINGLE.name):
                pixel_metrics.append(name)
            elif network is None:
                absent[name] = "needs the I3D of StyleGAN-V, i3d_torchscript.pt, as `features`"
        if network is not None and FVD_SINGLE.name in self.metrics:
            metric_set = MetricSet(pixel_metrics, perceptual, None, methods, absent)
            return metric_set.with_measures([SingleClipFrechet(network)])
        if network is not None:
            methods[network.metric.name] = network.origin
        return MetricSet(pixel_metrics, perceptual, network, methods, absent)

    def describe(self, spans: Sequence[Span]) -> dict[str, Any]:
        """Return the fields of `EvaluationRecord` that say how clips were selected, read and measured."""
        frame_rates = {span.info.fps / self._stride(span.info) for span in spans}
        published = asdict(self)
        del published["needs_features"]
        return {
            "num_frames": self.num_frames,
            "height": self.crop,
            "width": self.crop,
            "resize": self._describe_resize(),
            "crop": "none" if self.crop is None else "center",
            "places": CLIP_CHOICES[self.clips],
            "fps": frame_rates.pop() if len(frame_rates) == 1 else None,
            "frame_stride": max(self._stride(span.info) for span in spans),
            "reconstruction": VALUES[self.values],
            "published": published,
        }

    def _describe_resize(self) -> str:
        if self.short_side is None:
            return "not resized"
        kind = "Lanczos by Pillow" if self.interpolation == "lanczos" else "bilinear by torchvision"
        text = f"shorter side to {self.short_side}, {kind}, antialiased"
        return text if self.enlarge else f"{text}, smaller videos not"
