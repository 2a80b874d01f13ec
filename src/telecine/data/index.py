"""Index videos and images: the timestamps and keyframes of all frames, so that any clip can be read exactly."""

import hashlib
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from telecine.base.checks import argument_error
from telecine.base.terminal import with_progress
from telecine.data.arrays import index_array
from telecine.data.decode import VIDEO_ERRORS, decode_packets, open_video
from telecine.data.errors import DataError, Deadline, DecodeError, decode_errors, thread_errors
from telecine.data.hdr import hdr_of
from telecine.data.image import is_animated, open_image, upright_size
from telecine.data.mp4_tables import MAX_FRAMES, check_tables
from telecine.data.pixels import displayed_shape
from telecine.data.remote_read import SourceBytes, open_bytes
from telecine.data.source import (
    AnyPath,
    Skipped,
    Source,
    VideoInfo,
    as_source,
    check_frame,
    kind_of,
)
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_LONG_GOP = 300  # frames after a single keyframe, with which reading a clip takes seconds
# DivX and XviD store a P-frame and the B-frame before it in one packet, then an empty packet, of up to 19 bytes for
# FFmpeg's `mpeg4_unpack_bframes`: frames leave the decoder with each other's timestamps.
_MAX_EMPTY_FRAME = 19
_DEFAULT_FPS = 25.0
_MAX_FPS_DEVIATION = 0.05  # the stream's frame rate is a guess where it varies
# Bytes of all packets of a file relative to its size. Some containers leave out what is the same in all packets.
_MAX_EXPANSION = 4
# Codecs with hidden frames in packets of their own.
_CODECS_WITH_HIDDEN_FRAMES = ("vp8",)
# Of a larger file, this many blocks of this many bytes identify the content.
_NUM_BLOCKS = 16
_BLOCK_BYTES = 2**16
# Decoders that give each frame the timestamp of its packet, also after seeking.
_CODECS_WITH_PACKET_TIMESTAMPS = ("h264", "hevc")


def index_video(
    path: AnyPath, config: ClipConfig | None = None, deadline: Deadline | None = None
) -> VideoInfo:
    """Index a video by its packets and its first frame, an image or an array by its header.

    All frames are decoded only if the packets do not determine the displayed frames and their order: if timestamps are
    missing, repeated or in decoding order, if the codec has hidden frames, or if the first frames cannot be decoded.
    Matroska and MPEG-TS files have no table of frames: of a truncated one, the remaining frames are indexed.

    Args:
        path: The file.
        config: Its limits.
        deadline: The time by which it must be read; by default in `config.timeout` seconds.

    Raises:
        DecodeError: the file cannot be read, has no decodable video, is truncated, exceeds `config.max_pixels` per
            frame, or has more frames than a file of its size can have, or other channels, axes or values than `config`.
        DataError: it is not read by the deadline.
    """
    source = as_source(path)
    if config is None:
        config = ClipConfig()
    if deadline is None:
        deadline = Deadline(source, config.timeout)
    # A file at an address is fetched whole: what follows reads the copy.
    with (
        decode_errors(source, VIDEO_ERRORS),
        open_bytes(source, deadline, reads="whole") as opened,
    ):
        if opened.size == 0:
            raise DecodeError(f"{source}: an empty file")
    info = None
    if kind_of(source) == "arrays":
        info = index_array(source, config, deadline)
    elif kind_of(source) == "images":
        info = index_image(source, config, deadline)
    if info is None:
        info = _index_video(source, config, deadline)
    with decode_errors(source, VIDEO_ERRORS), open_bytes(source, deadline) as opened:
        return replace(info, digest=_digest_content(opened))


def _digest_content(opened: SourceBytes) -> str:
    """Return a SHA-256 of the size of a file and of its bytes; of more than 1 MiB, of 16 evenly spaced blocks."""
    size = opened.size
    distance = max(_BLOCK_BYTES, (size - _BLOCK_BYTES) / (_NUM_BLOCKS - 1))
    digest = hashlib.sha256(str(size).encode())
    for number in range(_NUM_BLOCKS):
        offset = int(number * distance)
        opened.file.seek(opened.begin + offset)
        digest.update(opened.file.read(max(0, min(_BLOCK_BYTES, size - offset))))
    return digest.hexdigest()


def index_image(source: Source, config: ClipConfig, deadline: Deadline) -> VideoInfo | None:
    """Index an image by its header, or return None for an animated PNG, which is a video.

    Damage after the header shows when the image is read, except in PNG files.

    Args:
        source: The file.
        config: Its `max_pixels` is the limit of a frame.
        deadline: The time by which a file at an address must arrive.
    """
    with open_image(source, deadline) as image:
        if image.format == "PNG" and is_animated(image):
            return None
        check_frame(source, *image.size, config)
        width, height = upright_size(image)
    first = array("q", [0])
    return VideoInfo(source, width, height, fps=1.0, pts=first, keyframes=first, is_image=True)


def _index_video(source: Source, config: ClipConfig, deadline: Deadline) -> VideoInfo:
    with decode_errors(source, VIDEO_ERRORS):
        check_tables(source, deadline)
    first_frame, stored_aspect = _read_first_frame(source, config, deadline)
    with open_video(source, config.max_pixels, deadline) as (container, stream):
        scan = scan_packets(source, container, stream, deadline)
    frames = scan.frames
    fps = scan.fps
    time_base = scan.time_base
    seekable = scan.is_exact and frames[0].pts == first_frame.pts
    if not seekable:
        frames, seekable = _scan_frames(source, config, deadline)
    elif not _keyframes_are_real(source, config, frames, deadline):
        frames = [FrameTime(frame.pts, is_keyframe=False) for frame in frames]
    if seekable:
        fps = average_frame_rate([frame.pts for frame in frames], time_base, fps)
    else:
        time_base = 1 / fps
    height, width, aspect = displayed_shape(first_frame, stored_aspect)
    check_frame(source, width, height, config)
    info = VideoInfo(
        source,
        width,
        height,
        fps,
        pts=array("q", [frame.pts for frame in frames]),
        keyframes=array("q", [index for index, frame in enumerate(frames) if frame.is_keyframe]),
        seekable=seekable,
        time_base=time_base,
        sample_aspect_ratio=aspect,
        hdr=hdr_of(first_frame),
    )
    has_long_gop = not seekable or len(info.keyframes) <= 1
    if has_long_gop and info.num_frames > _LONG_GOP:
        text = "%s: %d frames after a single keyframe. Reading a clip decodes all frames before it. Cache "
        text += "decoded frames, or re-encode with a short GOP: `ffmpeg -i IN -c:v libx264 -crf 16 -g 30 OUT.mp4`."
        logger.warning(text, source, info.num_frames)
    return info


def index_videos(
    paths: Iterable[AnyPath], *, index: Callable[[Source], VideoInfo] = index_video
) -> tuple[list[VideoInfo], list[Skipped]]:
    """Index videos, images and arrays in parallel threads.

    Args:
        paths: The files.
        index: The function that indexes one file. If it raises a `DecodeError`, the file is skipped.

    Returns:
        The indices in order, and the skipped files, which are also logged.

    Raises:
        DataError: all files are skipped, with the reasons.
    """

    def index_or_skip(source: Source) -> VideoInfo | Skipped:
        try:
            return index(source)
        except DecodeError as error:
            return Skipped.of(source, error)

    sources = [as_source(path) for path in paths]
    infos: list[VideoInfo] = []
    skipped: list[Skipped] = []
    with thread_errors(), ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(index_or_skip, sources)
        for result in with_progress(results, "indexing files", total=len(sources)):
            if isinstance(result, Skipped):
                skipped.append(result)
            else:
                infos.append(result)
    if not infos:
        got = f"{len(skipped)} that cannot be decoded: {Skipped.listed(skipped)}"
        contract = "at least one decodable file"
        raise argument_error("data", contract, got, Skipped.remedy(skipped), DataError)
    if skipped:
        logger.warning(
            "skipped %d of %d files: %s", len(skipped), len(sources), Skipped.listed(skipped)
        )
    return infos, skipped


def _read_first_frame(
    source: Source, config: ClipConfig, deadline: Deadline
) -> tuple[VideoFrame, Fraction]:
    """Return the first displayed frame, if the stream can be decoded, and the aspect ratio of its pixels."""
    with open_video(source, config.max_pixels, deadline) as (container, stream):
        codec = stream.codec_context
        check_frame(source, codec.width or 1, codec.height or 1, config)
        frame = next(decode_packets(deadline.limit(container.demux(stream))), None)
        aspect = stream.sample_aspect_ratio or Fraction(1)
    if frame is None:
        raise DecodeError(f"{source}: no frame can be decoded")
    if frame.is_corrupt:
        raise DecodeError(f"{source}: its first frame is corrupt")
    return frame, aspect


class FrameTime(NamedTuple):
    """A displayed frame: its timestamp, or its index where the file has no exact ones."""

    pts: int
    is_keyframe: bool


class PacketScan(NamedTuple):
    """What the packets of a file tell about its frames."""

    frames: list[FrameTime]  # in the order of their timestamps
    fps: float  # the stream's own frame rate
    time_base: float  # unit of timestamps in seconds
    is_exact: bool  # whether timestamps of packets are those of the displayed frames


class _PacketHeader(NamedTuple):
    """A packet without its data."""

    pts: int | None
    dts: int | None
    size: int  # in bytes
    is_keyframe: bool
    is_discard: bool
    is_corrupt: bool


def scan_packets(
    source: Source, container: InputContainer, stream: VideoStream, deadline: Deadline
) -> PacketScan:
    """Read all packets of a stream.

    Args:
        source: The file, for errors.
        container: The opened file.
        stream: Its stream of video.
        deadline: The time by which all packets must be read.

    Raises:
        DecodeError: the file is truncated, or has more frames than a file of its size can have.
        DataError: the deadline has passed.
    """
    packets = _read_packets(source, container, stream, deadline)
    # An MP4 file has a table of its frames, of which an edit list leaves some out. Others estimate their number.
    num_frames = 0
    if "mp4" in container.format.name:
        num_frames = min(stream.frames, len(stream.index_entries))
    if not packets or packets[-1].is_corrupt or len(packets) < num_frames:
        raise DecodeError(f"{source}: truncated after {len(packets)} frames")
    frames = []
    for packet in packets:
        if packet.pts is not None and not packet.is_discard:
            frames.append(FrameTime(packet.pts, packet.is_keyframe))
    assert stream.time_base is not None  # streams of an opened file have one
    return PacketScan(
        frames=sorted(frames),
        fps=float(stream.average_rate or stream.guessed_rate or _DEFAULT_FPS),
        time_base=float(stream.time_base),
        is_exact=_times_are_exact(packets, stream),
    )


def _times_are_exact(packets: Sequence[_PacketHeader], stream: VideoStream) -> bool:
    """Return whether the timestamps of packets are those of the displayed frames."""
    codec = stream.codec_context
    displayed = [packet for packet in packets if not packet.is_discard]
    times = [packet.pts for packet in displayed if packet.pts is not None]
    if len(set(times)) < len(displayed):  # some are missing or repeated
        return False
    if codec.name in _CODECS_WITH_HIDDEN_FRAMES:
        return False
    smallest = min(packet.size for packet in packets)
    if codec.name == "mpeg4" and smallest <= _MAX_EMPTY_FRAME:  # a packet has two frames
        return False
    delays = set()
    for packet in packets:
        if packet.pts is not None and packet.dts is not None:
            delays.add(packet.pts - packet.dts)
    # If timestamps are in decoding order, frames of H.264 would get each other's: AVI has no display times, and some
    # muxers write none. Delays vary in an AVI that repeats frames by empty packets.
    is_in_decoding_order = len(delays) == 1 or all(
        earlier < later for earlier, later in pairwise(times)
    )
    return not (codec.has_b_frames and is_in_decoding_order)


def _read_packets(
    source: Source, container: InputContainer, stream: VideoStream, deadline: Deadline
) -> list[_PacketHeader]:
    """Return the headers of all packets with data."""
    packets: list[_PacketHeader] = []
    bytes_left = _MAX_EXPANSION * container.size
    for packet in deadline.limit(container.demux(stream)):
        bytes_left -= packet.size
        if bytes_left < 0 or len(packets) == MAX_FRAMES:
            raise DecodeError(
                f"{source}: more frames than a file of {container.size} bytes can have"
            )
        if packet.size > 0:
            header = _PacketHeader(
                packet.pts,
                packet.dts,
                packet.size,
                packet.is_keyframe,
                packet.is_discard,
                packet.is_corrupt,
            )
            packets.append(header)
    return packets


def _keyframes_are_real(
    source: Source, config: ClipConfig, frames: Sequence[FrameTime], deadline: Deadline
) -> bool:
    """Return whether decoding can begin at keyframes: whether the second one of a file of H.264 gives a keyframe.

    With intra refresh, H.264 has "keyframes" from which frames become whole only later.

    Args:
        source: The file.
        config: The limits of `index_video`.
        frames: All frames, with their own timestamps.
        deadline: The time by which the frame must be decoded.
    """
    num_keyframes = sum(frame.is_keyframe for frame in frames)
    with open_video(source, config.max_pixels, deadline) as (container, stream):
        if num_keyframes < 2 or stream.codec_context.name != "h264":
            return True
        is_first = True
        is_decoding = False
        for packet in deadline.limit(container.demux(stream)):
            if packet.size == 0:
                continue
            if packet.is_keyframe and not packet.is_discard and not is_first:
                is_decoding = True
            is_first = False
            if is_decoding:
                with suppress(FFmpegError):  # damaged
                    for picture in packet.decode():
                        return bool(picture.key_frame)
    return False


def _scan_frames(
    source: Source, config: ClipConfig, deadline: Deadline
) -> tuple[list[FrameTime], bool]:
    """Decode all frames, and return them with whether the stream is seekable.

    It is if each frame has its own timestamp, and timestamps increase or the decoder keeps them with their frames.
    Otherwise frames have their indices instead.
    """
    with open_video(source, config.max_pixels, deadline) as (container, stream):
        keeps_timestamps = stream.codec_context.name in _CODECS_WITH_PACKET_TIMESTAMPS
        times: list[int | None] = []
        are_keyframes: list[bool] = []
        for frame in deadline.limit(decode_packets(container.demux(stream))):
            times.append(frame.pts)
            are_keyframes.append(bool(frame.key_frame))
    pts = [time for time in times if time is not None]
    is_increasing = all(earlier < later for earlier, later in pairwise(pts))
    seekable = len(set(pts)) == len(times) and (is_increasing or keeps_timestamps)
    if not seekable:
        pts = list(range(len(times)))
    return [FrameTime(*frame) for frame in zip(pts, are_keyframes, strict=True)], seekable


def average_frame_rate(pts: Sequence[int], time_base: float, stream_fps: float) -> float:
    """Return the average number of frames per second: the stream's own, exact one if timestamps agree with it.

    Args:
        pts: Timestamps of all frames, in any order.
        time_base: Unit of timestamps in seconds.
        stream_fps: Frames per second as the stream says.
    """
    num_intervals = len(pts) - 1
    duration = max(pts) - min(pts)
    expected = num_intervals / stream_fps / time_base
    if duration == 0 or abs(duration - expected) <= 1 + _MAX_FPS_DEVIATION * expected:
        return stream_fps
    return num_intervals / duration / time_base
