"""Index videos and images: the timestamps and keyframes of all frames, so that any clip can be read exactly."""

import logging
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from os import PathLike
from typing import TypeAlias

from av.error import FFmpegError
from av.video.frame import VideoFrame
from PIL import ExifTags

from telecine.base.checks import argument_error
from telecine.base.terminal import with_progress
from telecine.data.arrays import index_array
from telecine.data.decode import FORMATS, VIDEO_ERRORS, decoded_frames, displayed, open_image, open_video
from telecine.data.errors import DataError, Deadline, DecodeError, decode_errors, thread_errors
from telecine.data.mp4_tables import MAX_FRAMES, check_tables
from telecine.data.remote import open_local
from telecine.data.source import Source, Span, VideoInfo, as_source, check_frame, kind_of
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_LONG_GOP = 300  # frames after a single keyframe, with which reading a clip takes seconds
# DivX and XviD store a P-frame and the B-frame before it in one packet, then an empty packet, of up to 19 bytes for
# FFmpeg's `mpeg4_unpack_bframes`: frames leave the decoder with each other's timestamps.
_MAX_EMPTY_FRAME = 19
_DEFAULT_FPS, _MAX_DEVIATION = 25.0, 0.05  # the stream's frame rate is a guess where it varies
_TRANSPOSED = (5, 6, 7, 8)  # orientations that swap height and width; any other value, also of a wrong type, does not
_NUM_REASONS_SHOWN = 3
# Bytes of all packets of a file relative to its size. Some containers leave out what is the same in all packets.
_MAX_EXPANSION = 4

_Stamps: TypeAlias = list[tuple[int, bool]]  # the timestamp of each frame, and whether it is a keyframe


@dataclass(frozen=True)
class Skipped:
    """A file or a part of one that is not used, and the reason."""

    path: Source
    reason: str

    @staticmethod
    def listed(skipped: "Sequence[Skipped]") -> str:
        """List the first few skipped files with their reasons, and the number of the others."""
        shown = "; ".join(f"{skip.path} ({skip.reason})" for skip in skipped[:_NUM_REASONS_SHOWN])
        num_more = len(skipped) - _NUM_REASONS_SHOWN
        return f"{shown}; and {num_more} more" if num_more > 0 else shown


def index_video(path: str | PathLike[str] | Source, config: ClipConfig | None = None) -> VideoInfo:
    """Index a video by its packets and its first frame, an image or an array by its header.

    All frames are decoded only if the packets do not determine the displayed frames and their order: if timestamps are
    missing, repeated or in decoding order, if the codec has hidden frames, or if the first frames cannot be decoded.
    Matroska and MPEG-TS files have no table of frames: of a truncated one, the remaining frames are indexed.

    Raises:
        DecodeError: the file cannot be read, has no decodable video, is truncated, exceeds `config.max_pixels` per
            frame, or has more frames than a file of its size can have, or other channels, axes or values than `config`.
        DataError: it is not read within `config.timeout` seconds.
    """
    source, config = as_source(path), config or ClipConfig()
    deadline = Deadline(source, config.timeout)
    if kind_of(source) == "images" and (info := _index_image(source, config, deadline)):
        return info
    if kind_of(source) == "arrays":
        return index_array(source, config, deadline)
    with decode_errors(source, VIDEO_ERRORS):
        open_local(source, lambda local: check_tables(local, deadline), deadline)
    first, stored_aspect = _first_frame(source, config, deadline)
    stamps, fps, time_base, seekable = _scan_packets(source, config, deadline)
    if not seekable or stamps[0][0] != first.pts:
        stamps, seekable = _scan_frames(source, config, deadline)
    height, width, aspect = displayed(first, stored_aspect)
    check_frame(source, width, height, config)
    pts = array("q", (pts for pts, _ in stamps))
    keyframes = array("q", (index for index, (_, is_key) in enumerate(stamps) if is_key))
    fps, time_base = (_frame_rate(stamps, time_base, fps), time_base) if seekable else (fps, 1 / fps)
    info = VideoInfo(source, width, height, fps, pts, keyframes, seekable, time_base, sample_aspect_ratio=aspect)
    if info.num_frames > _LONG_GOP and not (seekable and len(info.keyframes) > 1):
        text = "%s: %d frames after a single keyframe. Reading a clip decodes all frames before it. Cache "
        text += "decoded frames, or re-encode with a short GOP: `ffmpeg -i IN -c:v libx264 -crf 16 -g 30 OUT.mp4`."
        logger.warning(text, source, info.num_frames)
    return info


def _index_image(source: Source, config: ClipConfig, deadline: Deadline) -> VideoInfo | None:
    """Index an image by its header, or return None for an animated PNG, which is a video.

    Damage after the header shows when the image is read, except in PNG files.
    """
    with open_image(source, deadline) as image:
        if image.format == "PNG" and getattr(image, "is_animated", False):
            return None
        check_frame(source, *image.size, config)
        transposed = image.getexif().get(ExifTags.Base.Orientation) in _TRANSPOSED
        width, height = image.size[::-1] if transposed else image.size
    return VideoInfo(source, width, height, 1.0, array("q", [0]), array("q", [0]), is_image=True)


def index_videos(
    paths: Iterable[str | PathLike[str] | Source], *, index: Callable[[Source], VideoInfo] = index_video
) -> tuple[list[VideoInfo], list[Skipped]]:
    """Index videos and images in parallel threads with the function `index`.

    Return the infos in order, and the skipped files, also logged. Raise a `DataError` with reasons if all are skipped.
    """

    def index_or_skip(source: Source) -> VideoInfo | Skipped:
        try:
            return index(source)
        except DecodeError as error:
            return Skipped(source, str(error).removeprefix(f"{source}: "))

    sources = [as_source(path) for path in paths]
    with thread_errors(), ThreadPoolExecutor(os.cpu_count()) as pool:
        results = [*with_progress(pool.map(index_or_skip, sources), "indexing files", total=len(sources))]
    infos = [result for result in results if isinstance(result, VideoInfo)]
    skipped = [result for result in results if isinstance(result, Skipped)]
    if not infos:
        got = f"{len(skipped)} that cannot be decoded: {Skipped.listed(skipped)}"
        remedy = "Check that they are complete and that other programs show them."
        raise argument_error("data", "at least one decodable file", got, remedy, DataError)
    if skipped:
        logger.warning("skipped %d of %d files: %s", len(skipped), len(results), Skipped.listed(skipped))
    return infos, skipped


def log_too_short(spans: Iterable[Span], clip_span: int) -> int:
    """Log and count the videos without a span of `clip_span` frames."""
    longest: dict[Source, int] = {}
    for span in spans:
        if not span.info.is_image:
            longest[span.info.path] = max(span.num_frames, longest.get(span.info.path, 0))
    short = [Skipped(path, f"{frames} frames") for path, frames in longest.items() if frames < clip_span]
    if short:
        text = "%d of %d files are shorter than %d frames, and not used: %s"
        logger.warning(text, len(short), len(longest), clip_span, Skipped.listed(short))
    return len(short)


def _first_frame(path: Source, config: ClipConfig, deadline: Deadline) -> tuple[VideoFrame, Fraction]:
    """Return the first displayed frame, if the stream can be decoded, and the aspect ratio of its pixels."""
    with open_video(path, config.max_pixels, deadline) as (container, stream):
        check_frame(path, stream.codec_context.width or 1, stream.codec_context.height or 1, config)
        frame = next(decoded_frames(deadline.limit(container.demux(stream))), None)
        aspect = stream.sample_aspect_ratio or Fraction(1)
    if frame is None:
        raise DecodeError(f"{path}: no frame can be decoded")
    if frame.is_corrupt:
        raise DecodeError(f"{path}: its first frame is corrupt")
    return frame, aspect


def _scan_packets(path: Source, config: ClipConfig, deadline: Deadline) -> tuple[_Stamps, float, float, bool]:
    """Read all packets; return timestamps, the stream's frame rate, time base in seconds, and whether stamps are exact.

    They are if there is a distinct one for every displayed frame, and for no other, in display order.
    """
    with open_video(path, config.max_pixels, deadline) as (container, stream):
        packets: list[tuple[int | None, bool, bool, bool, int, int | None]] = []
        codec, has_b_frames = stream.codec_context.name, stream.codec_context.has_b_frames
        left, is_tried, tried = _MAX_EXPANSION * container.size, False, list[VideoFrame]()
        for packet in deadline.limit(container.demux(stream)):
            left -= packet.size
            if left < 0 or len(packets) == MAX_FRAMES:
                raise DecodeError(f"{path}: more frames than a file of {container.size} bytes can have")
            if packet.size:
                flags = packet.is_keyframe, packet.is_discard, packet.is_corrupt
                is_tried = is_tried or (bool(packets) and codec == "h264" and flags[:2] == (True, False))
                packets.append((packet.pts, *flags, packet.size, packet.dts))
            if is_tried and not tried:
                with suppress(FFmpegError):  # damaged
                    tried = packet.decode()
        # An MP4 file has a table of its frames, of which an edit list leaves some out. Others estimate their number.
        num_frames = min(stream.frames, len(stream.index_entries)) if "mp4" in container.format.name else 0
        if not packets or packets[-1][3] or len(packets) < num_frames:
            raise DecodeError(f"{path}: truncated after {len(packets)} frames")
        # With intra refresh, H.264 has "keyframes" from which frames become whole only later: the first is no keyframe.
        has_keys = not is_tried or any(frame.key_frame for frame in tried[:1])
        displayed = [(pts, is_key and has_keys) for pts, is_key, is_discard, *_ in packets if not is_discard]
        stamps = sorted((pts, is_key) for pts, is_key in displayed if pts is not None)
        distinct = len({pts for pts, _ in stamps}) == len(displayed)
        is_packed = codec == "mpeg4" and min(size for *_, size, _ in packets) <= _MAX_EMPTY_FRAME
        # AVI has no display times, and some muxers write none: frames of H.264 would get each other's.
        delays = {pts - dts for pts, *_, dts in packets if pts is not None and dts is not None}
        in_display_order = not is_packed and not (has_b_frames and len(delays) == 1)
        is_complete = distinct and in_display_order and codec not in FORMATS["hidden_frames"]
        assert stream.time_base is not None  # streams of an opened file have one
        fps = float(stream.average_rate or stream.guessed_rate or _DEFAULT_FPS)
        return stamps, fps, float(stream.time_base), is_complete


def _scan_frames(path: Source, config: ClipConfig, deadline: Deadline) -> tuple[_Stamps, bool]:
    """Decode all frames. Return their timestamps, or their indices unless the stream is seekable, and whether it is.

    It is if each frame has its own timestamp, and timestamps increase or the decoder keeps them with their frames.
    """
    with open_video(path, config.max_pixels, deadline) as (container, stream):
        stays_with_frame = stream.codec_context.name in FORMATS["packet_for_each_frame"]
        decoded = deadline.limit(decoded_frames(container.demux(stream)))
        frames = [(frame.pts, bool(frame.key_frame)) for frame in decoded]
    stamps = [pts for pts, _ in frames if pts is not None]
    increase = all(a < b for a, b in pairwise(stamps))
    seekable = len(set(stamps)) == len(frames) and (increase or stays_with_frame)
    return [(stamps[i] if seekable else i, is_key) for i, (_, is_key) in enumerate(frames)], seekable


def _frame_rate(stamps: _Stamps, time_base: float, of_stream: float) -> float:
    """Return the average number of frames per second: the stream's own, exact one if timestamps agree with it."""
    times = [pts for pts, _ in stamps]
    duration, expected = max(times) - min(times), (len(times) - 1) / of_stream / time_base
    if duration == 0 or abs(duration - expected) <= 1 + _MAX_DEVIATION * expected:
        return of_stream
    return (len(times) - 1) / duration / time_base
