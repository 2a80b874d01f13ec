"""The sound of a file, copied into a video that is written."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet

from telecine.data.decode import open_container
from telecine.data.remote_read import open_local
from telecine.data.source import AnyPath, as_source

logger = logging.getLogger(__name__)

# The codecs that players expect in an MP4. FFmpeg also writes others, such as PCM, which few play.
_MP4_CODECS = ("aac", "ac3", "alac", "eac3", "flac", "mp3", "opus")

# What is heard depends on packets up to this many seconds before, which players of MP4s decode and do not play.
_PREROLL = 0.1


class CopiedSound:
    """Copies the packets of a file's sound, without decoding them, beside a video that is written.

    All its streams are copied, but for codecs that the output cannot have, which are logged.

    Args:
        name: Name of the source, for the log.
        source: The file.
        output: The file that is written, before its first packet.
        start: When the video begins in the source, in seconds; in the output it begins at 0.
    """

    def __init__(
        self, name: str, source: InputContainer, output: OutputContainer, start: float
    ) -> None:
        self._name = name
        self._source = source
        self._output = output
        self._start = start
        self._is_mp4 = output.format.name == "mp4"
        self._copies: dict[int, AudioStream] = {}
        for stream in source.streams.audio:
            context = stream.codec_context
            if context is None:
                codec = "an unknown codec"
                is_possible = False
            elif self._is_mp4:
                codec = context.codec.canonical_name
                is_possible = codec in _MP4_CODECS
            else:
                codec = context.name
                is_possible = codec in output.supported_codecs
            if not is_possible:
                kind = "the MP4: write an MKV, which has more codecs" if self._is_mp4 else "the MKV"
                logger.warning("the sound of %s (%s) is not in %s", name, codec, kind)
                continue
            self._copies[stream.index] = output.add_stream_from_template(stream)
        self._packets = self._shifted_packets()
        self._next = next(self._packets, None)

    def copy_until(self, seconds: float) -> None:
        """Copy the packets that begin up to this time of the output."""
        while self._next is not None:
            assert self._next.pts is not None
            if self._next.pts * self._next.time_base > seconds:
                return
            self._output.mux(self._next)
            self._next = next(self._packets, None)

    def _shifted_packets(self) -> Iterator[Packet[Any]]:
        """Yield the packets to copy, at their time in the output."""
        streams = [stream for stream in self._source.streams.audio if stream.index in self._copies]
        if not streams:
            return
        try:
            for packet in self._source.demux(streams):
                if packet.pts is None or packet.dts is None or packet.size == 0:
                    continue
                shift = round(self._start / packet.time_base)
                packet.pts -= shift
                packet.dts -= shift
                earliest = -_PREROLL if self._is_mp4 else 0.0  # an MKV has no negative times
                if packet.pts * packet.time_base < earliest:
                    continue
                packet.stream = self._copies[packet.stream.index]
                yield packet
        except FFmpegError as error:
            logger.warning("the sound of %s ends where it is damaged: %s", self._name, error)


@contextmanager
def copied_sound(path: AnyPath, output: OutputContainer, start: float) -> Iterator[CopiedSound]:
    """Yield the sound of a file, which is copied to the end when the `with` block ends without an error.

    Args:
        path: The file.
        output: The file that is written, before its first packet.
        start: When the video begins in the file, in seconds.
    """
    with open_local(as_source(path), open_container) as source:
        sound = CopiedSound(str(path), source, output, start)
        yield sound
        sound.copy_until(math.inf)
