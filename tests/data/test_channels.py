"""Grey, alpha, and more than 8 bits: exact pixels of real files."""

import struct
import zlib
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Colorspace
from PIL import ExifTags, Image

from telecine.data import (
    ClipDataset,
    DecodeError,
    index_video,
    iterate_frames,
    read_clip,
    whole_video,
)
from telecine.settings import ClipConfig, PixelFormat

from .videos import write_planes

END_OF_HEADER = 33  # of a PNG: its signature and its first chunk

T = 5
H = 48
W = 64
LUMA = {Colorspace.ITU709: (0.2126, 0.0722), Colorspace.ITU601: (0.299, 0.114)}
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (H, W, 4), dtype=np.uint8)
DEEP = np.random.default_rng(0).integers(0, 65536, (H, W, 4), dtype=np.uint16)


def random_planes(pixel_format):
    """Return `T` frames of random values in all bits of a planar format, a list of planes for each."""
    frame = av.VideoFrame(W, H, pixel_format)
    num_components = len(frame.format.components)
    frames = []
    for _ in range(T):
        planes = []
        for plane, component in zip(frame.planes, frame.format.components, strict=False):
            unit = 1 << (component.bits - 8)
            dtype = np.uint16 if unit > 1 else np.uint8
            limits = (0, 256 * unit)
            if component.index == 0 and not frame.format.is_rgb and num_components > 2:
                limits = (16 * unit, 235 * unit + 1)
            shape = (plane.height, plane.line_size // np.dtype(dtype).itemsize)
            planes.append(RANDOM.integers(*limits, shape, dtype=dtype))
        frames.append(planes)
    return frames


def write(path, pixel_format, frames, codec="ffv1", colorspace=None, **options):
    content = [[plane.tobytes() for plane in planes] for planes in frames]
    return write_planes(path, pixel_format, content, codec, colorspace, **options)


def stack(frames, index):
    """Return one plane of all frames as `(T, H, W)`, without the padding of its rows."""
    return np.stack([planes[index][:, :W] for planes in frames]).astype(np.float64)


def read(path, channels, bit_depth=8, num_frames=T, **options):
    info = index_video(path)
    assert info.num_frames == num_frames
    return read_clip(info, 0, num_frames, pixels=PixelFormat(channels, bit_depth), **options)


def error(frames, expected):
    return np.abs(frames.numpy().astype(np.float64) - expected).max()


def test_grey_of_16_bits_is_exact(tmp_path):
    frames = random_planes("gray16le")
    path = write(tmp_path / "a.mkv", "gray16le", frames)
    expected = stack(frames, 0)[..., None]
    for channels in ("grey", "rgb"):
        assert error(read(path, channels, 16), expected) == 0
    assert (read(path, "rgba", 16)[..., 3] == 65535).all()
    assert read(path, "grey").dtype == torch.uint8
    assert error(read(path, "grey"), expected // 257) <= 1


def test_rgb_with_alpha_of_8_bits_is_exact(tmp_path):
    frames = random_planes("bgra")
    path = write(tmp_path / "a.mkv", "bgra", frames)
    stored = np.stack([planes[0].reshape(H, -1, 4)[:, :W] for planes in frames])[
        ..., [2, 1, 0, 3]
    ].astype(int)
    assert error(read(path, "rgba"), stored) == 0
    assert error(read(path, "rgba", 16), 257 * stored) == 0
    assert error(read(path, "rgb"), stored[..., :3]) == 0


@pytest.mark.parametrize(
    ("pixel_format", "bits"), [("gbrap10le", 10), ("gbrap12le", 12), ("gbrap16le", 16)]
)
def test_rgb_with_alpha_is_exact(tmp_path, pixel_format, bits):
    frames = random_planes(pixel_format)
    path = write(tmp_path / "a.mkv", pixel_format, frames)
    green, blue, red, alpha = (stack(frames, index) for index in range(4))
    expected = np.rint(np.stack([red, green, blue, alpha], -1) * 65535 / (2**bits - 1))
    pixels = read(path, "rgba", 16)
    assert pixels.dtype == torch.uint16
    assert error(pixels, expected) <= (0 if bits == 16 else 1)
    assert torch.equal(read(path, "rgb", 16), pixels[..., :3])


@pytest.mark.parametrize("colorspace", LUMA)
@pytest.mark.parametrize(
    ("pixel_format", "bits"), [("yuv444p10le", 10), ("yuv444p12le", 12), ("yuva444p10le", 10)]
)
def test_yuv_of_many_bits_is_within_two_levels_of_the_formula(
    tmp_path, pixel_format, bits, colorspace
):
    """FFmpeg's own conversion has its white at 65283 of 65535."""
    frames = random_planes(pixel_format)
    middle = 1 << (bits - 1)
    for planes in frames:
        planes[1][:] = middle + planes[1] // 64
        planes[2][:] = middle - planes[2] // 64
    path = write(tmp_path / "a.mkv", pixel_format, frames, colorspace=colorspace)
    unit = 2 ** (bits - 8)
    y = (stack(frames, 0) / unit - 16) / 219
    cb = (stack(frames, 1) / unit - 128) / 224
    cr = (stack(frames, 2) / unit - 128) / 224
    kr, kb = LUMA[colorspace]
    red = y + 2 * (1 - kr) * cr
    blue = y + 2 * (1 - kb) * cb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    alpha = np.full_like(y, 65535)
    if "yuva" in pixel_format:
        alpha = stack(frames, 3) * 65535 / (2**bits - 1)
    pixels = read(path, "rgba", 16)
    assert error(pixels[..., :3], np.clip(65535 * np.stack([red, green, blue], -1), 0, 65535)) <= 2
    assert error(pixels[..., 3], alpha) <= 1
    assert error(read(path, "grey", 16)[..., 0], 65535 * y) <= 1


@pytest.mark.parametrize(
    ("codec", "options", "limit"),
    [
        ("libvpx-vp9", {"lossless": "1"}, 0),
        ("libvpx", {"crf": "4", "b": "8M", "auto-alt-ref": "0"}, 12),
    ],
)
def test_alpha_of_webm_is_read_at_any_position(tmp_path, codec, options, limit):
    frames = random_planes("yuva420p")
    for number, planes in enumerate(frames):
        planes[3][:] = 40 * number + 20
        planes[3][:, : W // 2] = 255 - 40 * number
    path = write(tmp_path / "a.webm", "yuva420p", frames, codec, **options)
    pixels = read(path, "rgba")
    assert error(pixels[..., 3], stack(frames, 3)) <= limit
    info = index_video(path)
    assert torch.equal(read_clip(info, 2, 2, 2, pixels=PixelFormat("rgba")), pixels[2::2])
    assert torch.equal(torch.stack([*iterate_frames(path, pixels=PixelFormat("rgba"))]), pixels)
    assert torch.equal(read_clip(info, 0, T), read(path, "rgb")), "the default"
    if limit == 0:
        assert torch.equal(pixels[..., :3], read(path, "rgb"))


def test_alpha_of_prores(tmp_path):
    frames = random_planes("yuva444p10le")
    for planes in frames:
        for plane, level in zip(planes, (500, 512, 512), strict=False):
            plane[:] = level
    path = write(tmp_path / "a.mov", "yuva444p10le", frames, "prores_ks")
    alpha = read(path, "rgba", 16)[..., 3]
    assert (
        error(alpha, stack(frames, 3) * 65535 / 1023) <= 70
    )  # the codec rounds alpha to 16 bits and back
    with av.open(str(path)) as container:
        planes = [
            frame.reformat(format="yuva444p12le").planes[3] for frame in container.decode(video=0)
        ]
    decoded = np.stack([np.frombuffer(plane, np.uint16).reshape(H, -1)[:, :W] for plane in planes])
    assert error(alpha, np.rint(decoded.astype(np.float64) * 65535 / 4095)) == 0, (
        "exactly as it is decoded"
    )
    assert (read(path, "rgb").float().std((0, 1, 2)) < 2).all()


def test_a_file_without_alpha_is_opaque_and_as_rgb(tmp_path):
    path = write(tmp_path / "a.mkv", "yuv420p", random_planes("yuv420p"))
    pixels = read(path, "rgba")
    assert (pixels[..., 3] == 255).all()
    assert torch.equal(pixels[..., :3], read(path, "rgb"))
    assert torch.equal(read(path, "rgba", 16).int(), 257 * pixels.int())


@pytest.mark.parametrize(
    ("suffix", "options"), [(".png", {}), (".webp", {"lossless": True, "exact": True})]
)
def test_images_with_alpha(tmp_path, suffix, options):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(PIXELS).save(path, **options)
    assert error(read(path, "rgba", num_frames=1)[0], PIXELS) == 0
    assert error(read(path, "rgba", 16, 1)[0], 257 * PIXELS.astype(int)) == 0
    alpha = PIXELS[..., 3:] / 255
    assert (
        error(read(path, "rgb", num_frames=1)[0], PIXELS[..., :3] * alpha + 255 * (1 - alpha)) <= 1
    )
    assert read(path, "grey", num_frames=1, size=(20, 30)).shape == (1, 20, 30, 1)


def write_png(path, values, pixel_format):
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = values.shape[:2]
    encoder.pix_fmt = pixel_format
    encoder.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(values, format=pixel_format)
    path.write_bytes(b"".join(map(bytes, [*encoder.encode(frame), *encoder.encode(None)])))
    return path


def test_images_of_16_bits(tmp_path):
    rgba = write_png(tmp_path / "a.png", DEEP, "rgba64be")
    grey = write_png(tmp_path / "b.png", DEEP[..., 0].copy(), "gray16be")
    assert error(read(rgba, "rgba", 16, 1)[0], DEEP) == 0
    with pytest.raises(
        DecodeError,
        match=r"a PNG of 16 bits with alpha\. Set `clips\.channels` to rgba, or `clips\.bit_depth` to 8",
    ):
        read(rgba, "rgb", 16, 1)
    alpha = DEEP[..., 3:] / 65535
    assert (
        error(
            read(rgba, "rgb", num_frames=1)[0], (DEEP[..., :3] * alpha + 65535 * (1 - alpha)) / 257
        )
        <= 2
    )
    assert error(read(grey, "grey", 16, 1)[0, ..., 0], DEEP[..., 0]) == 0
    assert read(grey, "rgba", 16, 1, size=(20, 30)).shape == (1, 20, 30, 4)


def test_a_transparent_grey_of_16_bits(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 25700, 65535]], dtype=np.uint16)).save(path)
    content = path.read_bytes()
    transparency = b"tRNS" + struct.pack(">H", 25700)  # which Pillow before 10.4 does not write
    chunk = struct.pack(">I", 2) + transparency + struct.pack(">I", zlib.crc32(transparency))
    path.write_bytes(content[:END_OF_HEADER] + chunk + content[END_OF_HEADER:])
    greys = read(path, "rgba", num_frames=1)[0, 0]
    assert greys.tolist() == [[0, 0, 0, 255], [100, 100, 100, 0], [255, 255, 255, 255]]
    assert read(path, "grey", num_frames=1).flatten().tolist() == [0, 255, 255]


def test_resizing_keeps_the_colours_of_transparent_pixels(tmp_path):
    values = np.full((H, W, 4), (200, 40, 90, 0), dtype=np.uint8)
    values[:, : W // 2, 3] = 1
    Image.fromarray(values).save(tmp_path / "a.png")
    small = read(tmp_path / "a.png", "rgba", num_frames=1, size=(H // 2, W // 2))
    is_visible = small[..., 3] > 0
    assert small[..., :3][is_visible].unique(dim=0).tolist() == [[200, 40, 90]]
    assert small[..., 3].unique().tolist() == [0, 1]


def test_images_of_16_bits_are_not_turned(tmp_path):
    """The error names what helps: RGBA does not."""
    values = (np.arange(12 * 20, dtype=np.uint16) * 257).reshape(12, 20)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    upright = tmp_path / "upright.png"
    Image.fromarray(values).save(upright, exif=exif)
    assert error(read(upright, "grey", 16, 1)[0, ..., 0], values) == 0
    exif[ExifTags.Base.Orientation] = 6
    turned = tmp_path / "turned.png"
    Image.fromarray(values).save(turned, exif=exif)
    for channels in ("grey", "rgba"):
        with pytest.raises(
            DecodeError,
            match=r"turned by its EXIF data\. Set `clips\.bit_depth` to 8, or turn its pixels",
        ):
            read(turned, channels, 16, 1)
    info = index_video(turned)
    assert read(turned, "grey", num_frames=1).shape[1:3] == (info.height, info.width) == (20, 12)


@pytest.mark.parametrize(
    ("channels", "bit_depth", "count"), [("grey", 16, 1), ("rgba", 8, 4), ("rgba", 16, 4)]
)
def test_clips(tmp_path, channels, bit_depth, count):
    info = index_video(write(tmp_path / "a.mkv", "gbrap16le", random_planes("gbrap16le")))
    config = ClipConfig(3, 16, 16, channels=channels, bit_depth=bit_depth, scale_jitter=1.5)
    decoded = ClipDataset([whole_video(info)], config)
    cached = ClipDataset([whole_video(info)], replace(config, cache=True))
    for dataset in (decoded, cached):
        assert dataset.decode(0)[0].dtype == (torch.uint8 if bit_depth == 8 else torch.uint16)
    assert decoded[0]["video"].shape == (count, 3, 16, 16)
    difference = decoded[0]["video"] - cached[0]["video"]  # which PyTorch has resized
    assert difference.square().mean() < 0.01 * decoded[0]["video"].square().mean()


@pytest.mark.parametrize("is_image", [False, True])
def test_resizing_mixes_no_invisible_colour_in(tmp_path, is_image):
    """Red beside transparent green stays red."""
    values = np.zeros((H, W, 4), dtype=np.uint8)
    values[:, : W // 2 + 1] = (255, 0, 0, 255)
    values[:, W // 2 + 1 :] = (0, 255, 0, 0)
    if is_image:
        path = tmp_path / "a.png"
        Image.fromarray(values).save(path)
    else:
        planes = [[values[..., [2, 1, 0, 3]]]] * T
        path = write(tmp_path / "a.mkv", "bgra", planes)
    small = read(path, "rgba", num_frames=1 if is_image else T, size=(H // 2, W // 2)).int()
    assert 0 < small[..., 3].min() + small[..., 3].max() < 510
    visible = small[..., 3] > 0
    assert small[..., 1][visible].max() <= 2, "no green"
    assert small[..., 0][visible].min() >= 250
