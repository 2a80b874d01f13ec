"""The clips of a data set in a fixed order, and their frames a few at a time."""

import logging
from base64 import b64encode
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from telecine.base.checks import argument_error, first_few
from telecine.base.shapes import Video
from telecine.data import DataError, Span, iterate_frames
from telecine.data.clip import ClipSpec, make_clip
from telecine.data.clip_frames import ClipFrames
from telecine.data.decode import read_frames
from telecine.data.source import is_address
from telecine.settings import Bucket, ClipConfig
from telecine.tools.encode.settings import EncodeConfig

logger = logging.getLogger(__name__)

# Frames that are read at once.
_CHUNK = 16
# More frames than a clip has.
_MANY = 2**31


@dataclass(frozen=True)
class SourceClip:
    """The frames of a clip in its video."""

    span: Span
    """The part of the video that the clip is from."""
    first_frame: int
    frames: ClipFrames
    """Which frames follow, by their distance or their time."""
    height: int
    width: int
    size_before_crop: tuple[int, int]
    """Height and width to which frames are resized."""

    @property
    def num_frames(self) -> int:
        """The number of its frames."""
        return self.frames.num_frames

    @property
    def is_whole(self) -> bool:
        """Whether the clip has all frames of its file."""
        info = self.span.info
        has_every_frame = self.frames.fps is None and self.frames.stride == 1
        return has_every_frame and (self.first_frame, self.num_frames) == (0, info.num_frames)

    def metadata(self, data: str) -> dict[str, object]:
        """Return the metadata of the clip, as JSON has it; `data` is where its file was found."""
        metadata: dict[str, object] = {
            "source": _name_in(data, str(self.span.info.source)),
            "first_frame": self.first_frame,
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            "fps": self.frames.fps or self.span.info.fps / self.frames.stride,
            "is_image": self.span.info.is_image,
        }
        if self.frames.stride > 1:
            metadata["stride"] = self.frames.stride
        if self.span.columns:
            metadata["columns"] = _as_json(self.span.columns)
        return metadata


def _as_json(value: object) -> object:
    """Return a value of a list as JSON has it: of Parquet, bytes as base64, and dates and decimal numbers as text."""
    if isinstance(value, Mapping):
        return {str(name): _as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, bytes):
        return b64encode(value).decode("ascii")
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value)


def _name_in(data: str, source: str) -> str:
    """Return the path of a file from where it was found: a folder, a tar file or an address; its name otherwise."""
    if is_address(data):
        if source != data and source.startswith(data):
            return source[len(data) :].lstrip("/")
    elif Path(source) != Path(data) and Path(source).is_relative_to(data):
        return Path(source).relative_to(data).as_posix()
    return Path(source).name


def list_clips(spans: Sequence[Span], config: EncodeConfig) -> list[SourceClip]:
    """Return the clips of a data set, in its order. Videos that are too slow for `fps`, and parts that are
    shorter than a clip, are logged.

    Raises:
        DataError: No video is long enough, or all are too slow.
    """
    clips = []
    slow_rates = []
    short = []
    for span in spans:
        size = span.info.stored_size
        height, width = size
        if config.height is not None and config.width is not None:
            height, width = config.height, config.width
            bucket = Bucket(1, height, width)
            size = bucket.decode_size(span.info.height, span.info.width, 1.0)
        if span.info.is_image:
            clips.append(SourceClip(span, span.first_frame, ClipFrames(1), height, width, size))
            continue
        frames = ClipFrames(config.num_frames or _longest(span, config), config.stride, config.fps)
        if span.info.fps < frames.min_fps:
            logger.warning(
                "skipping %s, which has %.3g frames a second", span.info.source, span.info.fps
            )
            slow_rates.append(span.info.fps)
            continue
        start = span.first_frame
        if frames.last_index(span.info, start) > span.last_frame:
            short.append(f"{span.info.source} ({span.num_frames} frames)")
        while start <= span.last_frame and frames.last_index(span.info, start) <= span.last_frame:
            clips.append(SourceClip(span, start, frames, height, width, size))
            start = frames.last_index(span.info, start) + 1
            if config.num_frames is None:
                break
    if config.fps is not None and len(slow_rates) == len(spans):
        contract = f"at most about the rate of the fastest video, {max(slow_rates):.3g}"
        raise argument_error("fps", contract, f"{config.fps:g}", "Set a smaller one.", DataError)
    if not clips:
        needed = ClipFrames(config.num_frames or 1, config.stride, config.fps).describe()
        longest = max(span.num_frames for span in spans)
        contract = f"videos with a {needed}"
        got = f"at most {longest} frames"
        raise argument_error("data", contract, got, "Set a smaller `num_frames`.", DataError)
    _log_short(short, len(spans), config)
    return clips


def _log_short(short: Sequence[str], num_spans: int, config: EncodeConfig) -> None:
    """Log the videos and segments that are shorter than a clip."""
    if short:
        needed = ClipFrames(config.num_frames or 1, config.stride, config.fps).describe()
        text = "%d of %d files or segments have no %s, and are not encoded: %s"
        logger.warning(text, len(short), num_spans, needed, first_few(short))


def _longest(span: Span, config: EncodeConfig) -> int:
    """Return the number of frames of the longest clip from the start of a span."""

    def last_index(num_frames: int) -> int:
        frames = ClipFrames(num_frames, config.stride, config.fps)
        return frames.last_index(span.info, span.first_frame)

    return bisect_right(range(1, _MANY), span.last_frame, key=last_index)


def read_chunks(clip: SourceClip, config: ClipConfig) -> Iterator[Video]:
    """Yield the frames of a clip, `(C, T, H, W)` in [-1, 1], a few at once.

    Args:
        clip: The clip.
        config: The channels and values of frames.

    Raises:
        DecodeError: A frame cannot be decoded.
    """
    spec = ClipSpec(clip.span, clip.first_frame)
    for frames in _decoded(clip, config):
        bucket = Bucket(len(frames), clip.height, clip.width)
        yield make_clip(frames, spec, bucket)["video"]


def _decoded(clip: SourceClip, config: ClipConfig) -> Iterator[Tensor]:
    """Yield frames `(T, H, W, C)` of a clip before it is cropped."""
    info = clip.span.info
    size = clip.size_before_crop
    if clip.is_whole:  # in order, without a seek
        frames = iterate_frames(info, size, config.pixel_format)
        while True:
            chunk = list(islice(frames, _CHUNK))
            if not chunk:
                return
            yield torch.stack(chunk)
    indices = clip.frames.indices(info, clip.first_frame)
    for offset in range(0, clip.num_frames, _CHUNK):
        yield read_frames(
            info, indices[offset : offset + _CHUNK], size, config.max_pixels, config.pixel_format
        )
