"""The clips of a data set in a fixed order, and their frames piece by piece."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from telecine.base.shapes import Video
from telecine.data import DataError, Span, iterate_frames, read_clip
from telecine.data.clip import ClipSpec, make_clip
from telecine.settings import Bucket, ClipConfig
from telecine.tools.encode.settings import EncodeConfig

# Frames that are read at once.
_PIECE = 16


@dataclass(frozen=True)
class SourceClip:
    """The frames of a clip in its video."""

    span: Span
    """The part of the video that the clip is from."""
    first_frame: int
    num_frames: int
    stride: int
    height: int
    width: int

    @property
    def is_whole(self) -> bool:
        """Whether the clip has all frames of its file."""
        info = self.span.info
        return (self.first_frame, self.num_frames, self.stride) == (0, info.num_frames, 1)

    def facts(self, data: str) -> dict[str, object]:
        """Return what is known about the clip, as JSON has it; `data` is where its file was found."""
        source = str(self.span.info.source)
        if source != data and source.startswith(data):
            source = source[len(data) :].lstrip("/")
        else:
            source = Path(source).name
        facts: dict[str, object] = {
            "source": source,
            "first_frame": self.first_frame,
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            "fps": self.span.info.fps / self.stride,
            "is_image": self.span.info.is_image,
        }
        if self.stride > 1:
            facts["stride"] = self.stride
        if self.span.columns:
            facts["columns"] = dict(self.span.columns)
        return facts


def list_clips(spans: Sequence[Span], config: EncodeConfig) -> list[SourceClip]:
    """Return the clips of a data set, in its order.

    Raises:
        DataError: No video is long enough.
    """
    clips = []
    for span in spans:
        height, width = span.info.stored_size
        if config.height is not None and config.width is not None:
            height, width = config.height, config.width
        if config.num_frames is None or span.info.is_image:
            num_frames = -(-span.num_frames // config.stride)
            clips.append(
                SourceClip(span, span.first_frame, num_frames, config.stride, height, width)
            )
            continue
        length = (config.num_frames - 1) * config.stride + 1
        for start in range(span.first_frame, span.last_frame - length + 2, length):
            clips.append(SourceClip(span, start, config.num_frames, config.stride, height, width))
    if not clips:
        longest = max(span.num_frames for span in spans)
        raise DataError(
            f"must have videos of {config.num_frames} frames at stride {config.stride}, but the longest has {longest}. "
            "Set a smaller `num_frames`.",
            "data",
        )
    return clips


def read_pieces(clip: SourceClip, config: ClipConfig) -> Iterator[Video]:
    """Yield the frames of a clip, `(C, T, H, W)` in [-1, 1], a few at once.

    Args:
        clip: The clip.
        config: The channels and values of frames.

    Raises:
        DecodeError: A frame cannot be decoded.
    """
    start = clip.first_frame
    for frames in _decoded(clip, config):
        bucket = Bucket(len(frames), clip.height, clip.width)
        spec = ClipSpec(
            clip.span, start, zoom=1.0, top=0.5, left=0.5, flip=False, stride=clip.stride
        )
        start += len(frames) * clip.stride
        yield make_clip(frames, spec, bucket)["video"]


def _decoded(clip: SourceClip, config: ClipConfig) -> Iterator[Tensor]:
    """Yield frames `(T, H, W, C)` of a clip before it is cropped."""
    info = clip.span.info
    size = info.stored_size
    if (clip.height, clip.width) != size:
        bucket = Bucket(clip.num_frames, clip.height, clip.width)
        size = bucket.decode_size(info.height, info.width, 1.0)
    if clip.is_whole:  # in order, without a seek
        frames = iterate_frames(info, size, config.pixel_format)
        while True:
            piece = list(islice(frames, _PIECE))
            if not piece:
                return
            yield torch.stack(piece)
    for offset in range(0, clip.num_frames, _PIECE):
        yield read_clip(
            info,
            clip.first_frame + offset * clip.stride,
            min(_PIECE, clip.num_frames - offset),
            clip.stride,
            size,
            config.max_pixels,
            config.pixel_format,
        )
