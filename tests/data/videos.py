"""Video files for tests, with real codecs and containers, and frames that encode their number."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import torch
import webdataset
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image
from torch import Tensor

from telecine.data import Clip

# Each channel is one base-16 digit of the number. Digits are 16 levels apart, more than the error of lossy codecs.
_LEVELS = 16


def numbered_frames(num_frames: int, height: int = 48, width: int = 64) -> Tensor:
    """Return uint8 `(T, H, W, 3)`, each frame filled with a colour that encodes its number."""
    numbers = torch.arange(num_frames)
    digits = torch.stack([numbers // _LEVELS**2, numbers // _LEVELS % _LEVELS, numbers % _LEVELS], dim=1)
    colours = (digits * (256 // _LEVELS) + 8).to(torch.uint8)
    return colours[:, None, None].expand(-1, height, width, -1).contiguous()


def numbers_of(frames: Tensor) -> list[int]:
    """Decode the numbers of lossless frames. All pixels of a frame must agree."""
    digits = (frames.int() - 8) / (256 // _LEVELS)
    numbers = (digits.round() * torch.tensor([_LEVELS**2, _LEVELS, 1])).sum(-1).flatten(1)
    assert (numbers == numbers[:, :1]).all()
    return [int(number) for number in numbers[:, 0]]


def moving_frames(num_frames: int, height: int = 48, width: int = 64, seed: int = 0) -> Tensor:
    """Return uint8 `(T, H, W, 3)` of a smooth coloured pattern that moves."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(3, 1, 1, 1, generator=generator) * 6
    time = torch.arange(num_frames).view(1, -1, 1, 1) * 0.3
    rows, columns = torch.arange(height).view(1, 1, -1, 1) / 8, torch.arange(width).view(1, 1, 1, -1) / 6
    waves = 128 + 100 * torch.sin(phase + time + rows) * torch.cos(columns - time)
    return waves.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def write_video(
    path: Path,
    frames: Tensor,
    codec: str = "libx264rgb",
    *,
    fps: int = 25,
    container_format: str | None = None,
    pts: list[int] | None = None,
    container_options: dict[str, str] | None = None,
    matrix: Colorspace | None = None,
    title: str | None = None,
    aspect: Fraction = Fraction(1),
    **options: str,
) -> Path:
    """Encode uint8 frames, by default as lossless RGB H.264, which has no B-frames. `pts` is in milliseconds."""
    path.parent.mkdir(exist_ok=True)
    if codec == "libx264rgb":
        options = {"crf": "0", **options}
    with av.open(str(path), "w", format=container_format, options=container_options or {}) as container:
        if title is not None:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "yuv420p"
        stream.options = {key.replace("_", "-"): value for key, value in options.items()}
        stream.codec_context.thread_count = 1
        stream.codec_context.sample_aspect_ratio = aspect
        if matrix is not None:
            stream.codec_context.colorspace = int(matrix)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels.numpy(), format="rgb24")
            if matrix is not None:
                frame = frame.reformat(format="yuv420p", dst_colorspace=matrix)
            frame.time_base = Fraction(1, 1000)
            frame.pts = pts[number] if pts else number * 1000 // fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_greys(path: Path, lumas: list[int], pixel_format: str) -> Path:
    """Write one lossless grey frame of 48x64 per luma, in BT.709 with limited range."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pixel_format
        stream.codec_context.colorspace, stream.codec_context.color_range = int(Colorspace.ITU709), int(ColorRange.MPEG)
        for number, luma in enumerate(lumas):
            frame = av.VideoFrame(64, 48, pixel_format)
            for plane, level in zip(frame.planes, (luma, 128, 128), strict=True):
                plane.update(bytes([level]) * plane.buffer_size)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_exif(path: Path, frames: Tensor, orientation: int) -> Path:
    """Write a motion JPEG of uint8 frames, each a JPEG with an EXIF orientation, as cameras do."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuvj420p"
        for number, pixels in enumerate(frames):
            jpeg = io.BytesIO()
            Image.fromarray(pixels.numpy()).save(jpeg, "JPEG", quality=98, exif=exif)
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
    return path


def write_audio(path: Path) -> Path:
    """Write a tenth of a second of silence without video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.planes[0].update(bytes(4 * 1024))
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def damage(path: Path, begin: float, end: float) -> Path:
    """Overwrite the bytes between two fractions of the file."""
    content = bytearray(path.read_bytes())
    first, last = int(begin * len(content)), int(end * len(content))
    content[first:last] = bytes((37 * i + 11) % 251 for i in range(last - first))
    path.write_bytes(content)
    return path


def truncate(path: Path, fraction: float) -> Path:
    """Keep the first `fraction` of the file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    return path


def rotate_clockwise(path: Path) -> Path:
    """Set the display matrix of an MP4 to a rotation by 90 degrees clockwise."""
    return set_display_matrix(path, (0, 1, -1, 0))


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Set the display matrix in the track header of an MP4: where one step right and one step down are displayed."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def assert_same_clips(first: list[Clip], second: list[Clip]) -> None:
    """Assert that two sequences of clips are identical."""
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert (a["source"], int(a["start"])) == (b["source"], int(b["start"]))
        assert torch.equal(a["video"], b["video"])


def write_images(folder: Path, count: int, suffix: str = ".png", height: int = 48, width: int = 64) -> list[Path]:
    """Write `0.png`, `1.png`, ..., each filled with a colour that encodes its number."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}{suffix}" for number in range(count)]
    for path, pixels in zip(paths, numbered_frames(count, height, width), strict=True):
        Image.fromarray(pixels.numpy()).save(path)
    return paths


def write_shard(path: Path, files: list[Path]) -> Path:
    """Write files, and a text file for each, into a tar file with the webdataset package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for file in files:
            writer.write({"__key__": file.stem, file.suffix[1:]: file.read_bytes(), "txt": file.stem})
    return path


def write_packed(path: Path, frames: Tensor) -> Path:
    """Write an AVI as DivX does: each P-frame in a packet with the B-frame before it, then an empty frame."""
    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.height, encoder.width = frames.shape[1:3]
    encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, 25), Fraction(25)
    encoder.options = {"bf": "1", "sc_threshold": "1000000000"}
    encoder.gop_size, encoder.bit_rate = len(frames), 2_000_000
    encoded = [
        bytes(packet) for frame in frames for packet in encoder.encode(av.VideoFrame.from_ndarray(frame.numpy()))
    ]
    first, *others = [*encoded, *(bytes(packet) for packet in encoder.encode(None))]
    empty = b"\x00\x00\x01\xb6\x51\x00\x00"
    packets = [(encoder.extradata or b"") + b"\x00\x00\x01\xb2DivX503b1393p" + first]
    for index in range(0, len(others), 2):
        packets += [b"".join(others[index : index + 2]), empty][: len(others[index : index + 2])]
    with av.open(path, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = encoder.height, encoder.width, "yuv420p"
        for index, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 25)
            packet.is_keyframe = index == 0
            container.mux(packet)
    return path


def write_in_decoding_order(path: Path, frames: Tensor, **options: str) -> Path:
    """Write an MP4 with B-frames whose timestamps are in the order in which frames are decoded, as some muxers do."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        stream.options = {"crf": "1", "x264-params": "bframes=3:b-adapt=0:b-pyramid=normal", **options}
        pictures = [av.VideoFrame.from_ndarray(pixels.numpy(), format="rgb24") for pixels in frames]
        packets = [packet for picture in [*pictures, None] for packet in stream.encode(picture)]
        for number, packet in enumerate(packets):
            packet.pts, packet.dts, packet.time_base = number, number, Fraction(1, 25)
            container.mux(packet)
    return path


def add_cover(path: Path) -> Path:
    """Insert a picture of 16 x 16 as the first stream of an MP4, where programs for tags put it."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        content = b"".join(parts)
        return struct.pack(">I4s", 8 + len(content), kind) + content

    jpeg = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(jpeg, "JPEG")
    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    pictures = box(b"ilst", box(b"covr", box(b"data", struct.pack(">II", 13, 0), jpeg.getvalue())))
    cover = box(b"udta", box(b"meta", bytes(4), handler, pictures))
    content = path.read_bytes()
    start = content.rindex(b"moov") - 4  # behind the frames, whose positions stay
    (size,) = struct.unpack_from(">I", content, start)
    path.write_bytes(content[:start] + struct.pack(">I4s", size + len(cover), b"moov") + cover + content[start + 8 :])
    return path
