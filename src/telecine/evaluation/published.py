"""Protocols of published figures, by name: which clips, how they are read and measured, and where each is stated."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.randomness import seed_of
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.base.yaml_files import read_package_yaml
from telecine.data import Clip, DecodeError, Span, VideoInfo, bytes_from_video, read_clip, video_from_bytes, whole_video
from telecine.data.index import log_too_short
from telecine.evaluation.tiling import reconstruct_in_chunks
from telecine.models import VideoAutoencoder
from telecine.settings import EvaluateConfig, ProtocolName, Tiling

logger = logging.getLogger(__name__)

_TEXTS = read_package_yaml("telecine.evaluation", "definitions.yaml")
_CLIP_CHOICES: dict[str, str] = _TEXTS["clips"]
_VALUES: dict[str, str] = _TEXTS["values"]


@dataclass(frozen=True, kw_only=True)
class PublishedProtocol:
    """How published figures were measured. Figures compare only if all fields are equal."""

    name: ProtocolName
    data: str
    """The videos that the figures are of. They are passed by path."""
    num_videos: int | None = None
    """Number of these videos. None: not stated, or not checked."""
    clips: Literal["all", "first", "whole", "random"]
    """Which clips of a video are measured, a key of `clips` in definitions.yaml."""
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
    """The values that are measured, a key of `values` there."""
    metrics: tuple[str, ...]
    needs_features: bool = False
    """Whether `features` must be given, or "none". It decides about an error, and not about a figure."""
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
            raise argument_error("posterior", "the mode in chunks", self.posterior, "Leave `chunk` out.")

    def check_options(self, config: EvaluateConfig) -> None:
        """Raise a `ValueError` if a setting contradicts the protocol."""
        size = {"num_frames": self.num_frames, "height": self.crop, "width": self.crop}
        fields = {**size, "stride": 1 if self.sample_fps is None else None, "max_clips": None}
        for name, expected in fields.items():
            value = getattr(config, name)
            if value is not None and value != expected:
                contract = f"{'left out' if expected is None else expected} with protocol {self.name}"
                raise argument_error(name, contract, value, f"Leave out `{name}`, or `protocol`.")
        if config.features is None and self.needs_features:
            contract = f"the path of StyleGAN-V's I3D, for the FVD of protocol {self.name}"
            remedy = "Add `--features i3d_torchscript.pt`, or `--features none` for the other metrics alone."
            raise argument_error("features", contract, "nothing", remedy)
        if config.features == "transnetv2":
            contract = f"the path of i3d_torchscript.pt, or left out, with protocol {self.name}"
            raise argument_error("features", contract, config.features, "Its Frechet distances are those of an I3D.")

    def select(self, infos: Sequence[VideoInfo]) -> list[Span]:
        """Return the frames of each measured clip; raise a `ValueError` if the videos do not fit the protocol."""
        if self.num_videos is not None and len(infos) != self.num_videos:
            contract = f"the {self.num_videos} videos of protocol {self.name} ({self.data})"
            raise argument_error("data", contract, f"{len(infos)} videos", "Pass the folder that has these only.")
        for info in infos:
            if self._stride(info) < 1:
                contract = f"videos that have at least half of {self.sample_fps:g} frames a second"
                remedy = f"Protocol {self.name} is not defined for them."
                raise argument_error("data", contract, f"{info.fps:g} in {info.path}", remedy)
        if self.clips == "first":
            log_too_short(map(whole_video, infos), self._clip_span(infos[0]))
        spans = [span for info in infos for span in self._spans(info)]
        if not spans:
            contract = f"videos of at least {self.num_frames} frames for protocol {self.name}"
            longest = max(infos, key=lambda info: info.num_frames)
            got = f"at most {longest.num_frames}, in {longest.path}"
            raise argument_error("data", contract, got, "Pass the videos of the published figures.")
        return spans

    def _stride(self, info: VideoInfo) -> int:
        return 1 if self.sample_fps is None else round(info.fps / self.sample_fps)

    def _clip_span(self, info: VideoInfo) -> int:
        assert self.num_frames is not None
        return (self.num_frames - 1) * self._stride(info) + 1

    def _spans(self, info: VideoInfo) -> list[Span]:
        """Return the clips of one video. The last one of "all" may have fewer frames."""
        length = self._length(info.num_frames, info.fps)
        if self.clips == "whole":
            return [Span(info, 0, length - 1)]
        clip_span = self._clip_span(info)
        starts: Iterable[int]
        if self.clips == "first":
            starts = [0] if clip_span <= length else []
        elif self.clips == "random":
            starts = [seed_of(info.path.name) % max(length - clip_span + 1, 1)]
        else:
            starts = range(0, length, clip_span + self._stride(info) - 1)  # the next one begins a stride later
        return [Span(info, start, min(start + clip_span, length) - 1) for start in starts]

    def _length(self, num_frames: int, fps: float) -> int:
        if self.max_length is None:
            return num_frames
        frames, seconds = self.max_length
        return min(num_frames, max(frames, math.ceil(seconds * fps)))

    def read(self, span: Span) -> Clip | None:
        """Return a clip as the protocol reads it, in [-1, 1]. Log and return None if it cannot be decoded."""
        stride = self._stride(span.info)
        num_frames = (span.num_frames - 1) // stride + 1
        try:
            frames = read_clip(span.info, span.first_frame, num_frames, stride)
        except DecodeError as error:
            logger.warning("skipping a clip: %s", error)
            return None
        if span.info.layout:  # an array
            frames = bytes_from_video(video_from_bytes(frames))
        video = torch.stack([self._prepared(frame) for frame in frames], dim=1)
        if (num_missing := (self.num_frames or 0) - num_frames) > 0:
            video = torch.cat([video, video[:, -1:].expand(-1, num_missing, -1, -1)], dim=1)
        return {"video": video, "source": str(span.info.path), "start": span.first_frame, "fps": span.info.fps / stride}

    def _prepared(self, frame: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional  # takes a second, which `telecine --help` must not spend

        size = self._resized(*frame.shape[:2])
        if self.interpolation == "lanczos":
            picture = Image.fromarray(frame.numpy()).resize(size[::-1], Image.Resampling.LANCZOS)
            image = functional.pil_to_tensor(picture).float() / 255
        else:
            image = functional.resize(frame.permute(2, 0, 1).float() / 255, list(size), antialias=True)
        if self.crop is not None:
            image = functional.center_crop(image, [self.crop])
        return image.clamp(0, 1) * 2 - 1

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of a frame of this size after resizing, before the crop."""
        short = min(height, width)
        if self.short_side is None or short == self.short_side or (short < self.short_side and not self.enlarge):
            return height, width
        # torchvision cuts the longer side to a whole number, the script of TokenBench rounds it.
        rounding = 0.5 if self.interpolation == "lanczos" else 0.0
        longer = int(self.short_side * max(height, width) / short + rounding)
        return (self.short_side, longer) if height <= width else (longer, self.short_side)

    def _describe_resize(self) -> str:
        if self.short_side is None:
            return "not resized"
        kind = "bilinear by torchvision" if self.interpolation == "bilinear" else "Lanczos by Pillow"
        smaller = "" if self.enlarge else ", smaller videos not"
        return f"shorter side to {self.short_side}, {kind}, antialiased{smaller}"

    def reconstruct(self, model: VideoAutoencoder, span: Span, target: Video) -> Video:
        """Return the reconstruction of a clip. A sample of the posterior depends on the clip only."""
        if self.chunk is not None:
            return reconstruct_in_chunks(model, target[0], self.chunk, overlap=0, tiling=Tiling())[None]
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

    def describe(self, spans: Sequence[Span]) -> dict[str, Any]:
        """Return the fields of `EvaluationProtocol` that say how clips were selected, read and measured."""
        frame_rates = {span.info.fps / self._stride(span.info) for span in spans}
        return {
            "num_frames": self.num_frames,
            "height": self.crop,
            "width": self.crop,
            "resize": self._describe_resize(),
            "crop": "none" if self.crop is None else "center",
            "places": _CLIP_CHOICES[self.clips],
            "fps": frame_rates.pop() if len(frame_rates) == 1 else None,
            "frame_stride": max(self._stride(span.info) for span in spans),
            "reconstruction": _VALUES[self.values],
            "published": {name: value for name, value in asdict(self).items() if name != "needs_features"},
        }


_FIELDS = read_package_yaml("telecine.evaluation", "protocols.yaml")
PROTOCOLS = TypeAdapter(dict[ProtocolName, PublishedProtocol]).validate_python(
    {name: {"name": name, **fields} for name, fields in _FIELDS.items()}
)
