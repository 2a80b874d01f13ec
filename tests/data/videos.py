"""Video files for tests, with real codecs and containers, and frames that encode their number."""

import io
import struct
from contextlib import contextmanager
from fractions import Fraction

import av
import torch
import webdataset
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

# Each channel is one base-16 digit of the number. Digits are 16 levels apart, more than the error of lossy codecs.
_LEVELS = 16


def numbered_frames(num_frames, height=48, width=64):
    """Return uint8 `(T, H, W, 3)`, each frame filled with a colour that encodes its number."""
    numbers = torch.arange(num_frames)
    digits = torch.stack(
        [numbers // _LEVELS**2, numbers // _LEVELS % _LEVELS, numbers % _LEVELS], dim=1
    )
    colours = (digits * (256 // _LEVELS) + 8).to(torch.uint8)
    return colours[:, None, None].expand(-1, height, width, -1).contiguous()


def numbers_of(frames):
    """Decode the numbers of lossless frames. All pixels of a frame must agree."""
    digits = (frames.int() - 8) / (256 // _LEVELS)
    numbers = (digits.round() * torch.tensor([_LEVELS**2, _LEVELS, 1])).sum(-1).flatten(1)
    assert (numbers == numbers[:, :1]).all()
    return [int(number) for number in numbers[:, 0]]


def moving_frames(num_frames, height=48, width=64, seed=0):
    """Return uint8 `(T, H, W, 3)` of a smooth coloured pattern that moves."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(3, 1, 1, 1, generator=generator) * 6
    time = torch.arange(num_frames).view(1, -1, 1, 1) * 0.3
    rows = torch.arange(height).view(1, 1, -1, 1) / 8
    columns = torch.arange(width).view(1, 1, 1, -1) / 6
    waves = 128 + 100 * torch.sin(phase + time + rows) * torch.cos(columns - time)
    return waves.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()


@contextmanager
def new_stream(
    path,
    codec,
    pixel_format,
    size=(48, 64),
    *,
    rate=25,
    container_format=None,
    container_options=None,
):
    """Open a file to write, and yield its container and a stream of video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(
        str(path), "w", format=container_format, options=container_options or {}
    ) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        yield container, stream


def stamp(item, number, stream=None):
    """Give a frame or a packet the time of its number at 25 frames a second."""
    item.pts = number
    item.time_base = Fraction(1, 25)
    if isinstance(item, av.Packet):
        item.dts = number
    if stream is not None:
        item.stream = stream
    return item


def write_video(
    path,
    frames,
    codec="libx264rgb",
    *,
    fps=25,
    container_format=None,
    pts=None,
    container_options=None,
    matrix=None,
    title=None,
    aspect=Fraction(1),
    **options,
):
    """Encode uint8 frames, by default as lossless RGB H.264, which has no B-frames. `pts` is in milliseconds."""
    pixel_format = "yuv420p"
    if codec == "libx264rgb":
        pixel_format = "rgb24"
        options = {"crf": "0", **options}
    with new_stream(
        path,
        codec,
        pixel_format,
        frames.shape[1:3],
        rate=fps,
        container_format=container_format,
        container_options=container_options,
    ) as (container, stream):
        if title is not None:
            container.metadata["title"] = title
        stream.options = {key.replace("_", "-"): value for key, value in options.items()}
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


def write_planes(path, pixel_format, frames, codec="ffv1", colorspace=None, **options):
    """Write frames of 48x64, each a list of the bytes of its planes, with limited range if there is a colour space."""
    with new_stream(path, codec, pixel_format) as (container, stream):
        stream.options = options
        if colorspace is not None:
            stream.codec_context.colorspace = int(colorspace)
            stream.codec_context.color_range = int(ColorRange.MPEG)
        for number, planes in enumerate(frames):
            frame = av.VideoFrame(64, 48, pixel_format)
            for plane, content in zip(frame.planes, planes, strict=True):
                plane.update(content)
            container.mux(stream.encode(stamp(frame, number)))
        container.mux(stream.encode())
    return path


def write_greys(path, lumas, pixel_format):
    """Write one lossless grey frame of 48x64 per luma, in BT.709 with limited range."""
    sizes = [plane.buffer_size for plane in av.VideoFrame(64, 48, pixel_format).planes]
    frames = [
        [bytes([level]) * size for level, size in zip((luma, 128, 128), sizes, strict=True)]
        for luma in lumas
    ]
    return write_planes(path, pixel_format, frames, colorspace=Colorspace.ITU709)


def write_exif(path, frames, orientation):
    """Write a motion JPEG of uint8 frames, each a JPEG with an EXIF orientation, as cameras do."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with new_stream(path, "mjpeg", "yuvj420p", frames.shape[1:3]) as (container, stream):
        for number, pixels in enumerate(frames):
            jpeg = io.BytesIO()
            Image.fromarray(pixels.numpy()).save(jpeg, "JPEG", quality=98, exif=exif)
            packet = stamp(av.Packet(jpeg.getvalue()), number, stream)
            packet.is_keyframe = True
            container.mux(packet)
    return path


def write_audio(path):
    """Write a tenth of a second of silence without video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.planes[0].update(bytes(4 * 1024))
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_packed(path, frames):
    """Write an AVI as DivX does: each P-frame in a packet with the B-frame before it, then an empty frame."""
    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.height, encoder.width = frames.shape[1:3]
    encoder.pix_fmt = "yuv420p"
    encoder.time_base = Fraction(1, 25)
    encoder.framerate = Fraction(25)
    encoder.options = {"bf": "1", "sc_threshold": "1000000000"}
    encoder.gop_size = len(frames)
    encoder.bit_rate = 2_000_000
    pictures = [av.VideoFrame.from_ndarray(frame.numpy()) for frame in frames]
    first, *others = [
        bytes(packet) for picture in [*pictures, None] for packet in encoder.encode(picture)
    ]
    empty = b"\x00\x00\x01\xb6\x51\x00\x00"
    packets = [(encoder.extradata or b"") + b"\x00\x00\x01\xb2DivX503b1393p" + first]
    for index in range(0, len(others), 2):
        pair = others[index : index + 2]
        packets += [b"".join(pair), empty][: len(pair)]
    with new_stream(path, "mpeg4", "yuv420p", frames.shape[1:3], container_format="avi") as (
        container,
        stream,
    ):
        for number, content in enumerate(packets):
            packet = stamp(av.Packet(content), number, stream)
            packet.is_keyframe = number == 0
            container.mux(packet)
    return path


def write_in_decoding_order(path, frames, **options):
    """Write an MP4 with B-frames whose timestamps are in the order in which frames are decoded, as some muxers do."""
    with new_stream(path, "libx264rgb", "rgb24", frames.shape[1:3]) as (container, stream):
        stream.options = {
            "crf": "1",
            "x264-params": "bframes=3:b-adapt=0:b-pyramid=normal",
            **options,
        }
        pictures = [av.VideoFrame.from_ndarray(pixels.numpy(), format="rgb24") for pixels in frames]
        packets = [packet for picture in [*pictures, None] for packet in stream.encode(picture)]
        for number, packet in enumerate(packets):
            container.mux(stamp(packet, number))
    return path


def write_images(folder, count, suffix=".png", height=48, width=64):
    """Write `0.png`, `1.png`, ..., each filled with a colour that encodes its number."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}{suffix}" for number in range(count)]
    for path, pixels in zip(paths, numbered_frames(count, height, width), strict=True):
        Image.fromarray(pixels.numpy()).save(path)
    return paths


def write_shard(path, files):
    """Write files, and a text file for each, into a tar file with the webdataset package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for file in files:
            writer.write(
                {"__key__": file.stem, file.suffix[1:]: file.read_bytes(), "txt": file.stem}
            )
    return path


def damage(path, begin, end):
    """Overwrite the bytes between two fractions of the file."""
    content = bytearray(path.read_bytes())
    first = int(begin * len(content))
    last = int(end * len(content))
    content[first:last] = bytes((37 * i + 11) % 251 for i in range(last - first))
    path.write_bytes(content)
    return path


def truncate(path, fraction):
    """Keep the first `fraction` of the file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    return path


def set_display_matrix(path, matrix):
    """Set the display matrix in the track header of an MP4: where one step right and one step down are displayed."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def rotate_clockwise(path):
    """Set the display matrix of an MP4 to a rotation by 90 degrees clockwise."""
    return set_display_matrix(path, (0, 1, -1, 0))


def _box(kind, *parts):
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def add_cover(path):
    """Insert a picture of 16 x 16 as the first stream of an MP4, where programs for tags put it."""
    jpeg = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(jpeg, "JPEG")
    handler = _box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    picture = _box(b"data", struct.pack(">II", 13, 0), jpeg.getvalue())
    cover = _box(b"udta", _box(b"meta", bytes(4), handler, _box(b"ilst", _box(b"covr", picture))))
    content = path.read_bytes()
    start = content.rindex(b"moov") - 4  # behind the frames, whose positions stay
    (size,) = struct.unpack_from(">I", content, start)
    path.write_bytes(
        content[:start]
        + struct.pack(">I4s", size + len(cover), b"moov")
        + cover
        + content[start + 8 :]
    )
    return path


def assert_same_clips(first, second):
    """Assert that two sequences of clips are identical."""
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert (a["source"], int(a["start"])) == (b["source"], int(b["start"]))
        assert torch.equal(a["video"], b["video"])


def touch(folder, *names):
    """Write empty files into a folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
