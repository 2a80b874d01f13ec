"""Grey, alpha, and more than 8 bits: exact pixels of real files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image
from torch import Tensor

from telecine.data import (
    ClipDataset,
    DecodeError,
    bytes_from_video,
    index_video,
    read_clip,
    video_from_bytes,
    whole_video,
)
from telecine.settings import ClipConfig, PixelFormat

T, H, W = 5, 48, 64
LUMA = {Colorspace.ITU709: (0.2126, 0.0722), Colorspace.ITU601: (0.299, 0.114)}


def random_planes(pixel_format: str, seed: int = 0) -> list[np.ndarray]:
    """Return `T` frames of smooth random values in all bits of a planar format, as bytes of each plane."""
    generator = np.random.default_rng(seed)
    frame = av.VideoFrame(W, H, pixel_format)
    frames = []
    for _ in range(T):
        planes = []
        for plane, component in zip(frame.planes, frame.format.components, strict=False):
            bits, dtype = component.bits, np.uint16 if component.bits > 8 else np.uint8
            is_luma = component.index == 0 and not frame.format.is_rgb and len(frame.format.components) > 2
            low, high = (16 << bits - 8, 235 << bits - 8) if is_luma else (0, (1 << bits) - 1)
            shape = plane.height, plane.line_size // np.dtype(dtype).itemsize
            planes.append(generator.integers(low, high + 1, shape, dtype=dtype))
        frames.append(planes)
    return frames


def write(
    path: Path, pixel_format: str, frames: list, codec: str = "ffv1", colorspace: Colorspace | None = None
) -> Path:
    options = {"libvpx-vp9": {"lossless": "1"}, "libvpx": {"crf": "4", "b": "8M", "auto-alt-ref": "0"}}.get(codec, {})
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = H, W, pixel_format
        stream.codec_context.thread_count = 1
        if colorspace is not None:
            stream.codec_context.colorspace = int(colorspace)
            stream.codec_context.color_range = int(ColorRange.MPEG)
        for number, planes in enumerate(frames):
            frame = av.VideoFrame(W, H, pixel_format)
            for plane, values in zip(frame.planes, planes, strict=True):
                plane.update(values.tobytes())
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read(path: Path, channels: str, bit_depth: int = 8, **options: object) -> Tensor:
    info = index_video(path)
    assert info.num_frames == T
    return read_clip(info, 0, T, pixels=PixelFormat(channels, bit_depth), **options)


def cropped(planes: np.ndarray) -> np.ndarray:
    return planes[:, :W].astype(np.float64)


def test_grey_of_16_bits_is_exact(tmp_path: Path) -> None:
    frames = random_planes("gray16le")
    path = write(tmp_path / "a.mkv", "gray16le", frames)
    expected = torch.from_numpy(np.stack([planes[0][:, :W] for planes in frames]))[..., None]
    for channels, repeats in (("grey", 1), ("rgb", 3)):
        assert torch.equal(read(path, channels, 16), expected.expand(-1, -1, -1, repeats))
    assert (read(path, "rgba", 16)[..., 3] == 65535).all()
    eight = read(path, "grey")
    assert eight.dtype == torch.uint8
    assert ((eight.int() - expected.int() // 257).abs() <= 1).all()


def test_rgb_with_alpha_of_8_bits_is_exact(tmp_path: Path) -> None:
    frames = random_planes("bgra")
    path = write(tmp_path / "a.mkv", "bgra", frames)
    stored = torch.from_numpy(np.stack([planes[0].reshape(H, -1, 4)[:, :W] for planes in frames]))[..., [2, 1, 0, 3]]
    assert torch.equal(read(path, "rgba"), stored)
    assert torch.equal(read(path, "rgba", 16).int(), 257 * stored.int())
    assert torch.equal(read(path, "rgb"), stored[..., :3])


@pytest.mark.parametrize(("pixel_format", "bits"), [("gbrap10le", 10), ("gbrap12le", 12), ("gbrap16le", 16)])
def test_rgb_with_alpha_is_exact(tmp_path: Path, pixel_format: str, bits: int) -> None:
    frames = random_planes(pixel_format)
    path = write(tmp_path / "a.mkv", pixel_format, frames)
    order = (2, 0, 1, 3)  # of planes G, B, R, A
    stored = np.stack([np.stack([cropped(planes[i]) for i in order], -1) for planes in frames])
    expected = np.rint(stored * 65535 / (2**bits - 1))
    found = read(path, "rgba", 16)
    assert found.dtype == torch.uint16
    assert np.abs(found.numpy().astype(int) - expected).max() <= (0 if bits == 16 else 1)
    assert torch.equal(read(path, "rgb", 16), found[..., :3])


@pytest.mark.parametrize("colorspace", [Colorspace.ITU709, Colorspace.ITU601])
@pytest.mark.parametrize("pixel_format", ["yuv444p10le", "yuv444p12le", "yuva444p10le"])
def test_yuv_of_many_bits_is_within_two_levels_of_the_formula(
    tmp_path: Path, pixel_format: str, colorspace: Colorspace
) -> None:
    """FFmpeg's own conversion has its white at 65283 of 65535."""
    frames = random_planes(pixel_format)
    for planes in frames:
        middle = 1 << (10 if "10" in pixel_format else 12) - 1
        planes[1][:], planes[2][:] = middle + planes[1] // 64, middle - planes[2] // 64
    path = write(tmp_path / "a.mkv", pixel_format, frames, colorspace=colorspace)
    found = read(path, "rgba", 16).numpy().astype(float)
    bits = 10 if "10" in pixel_format else 12
    unit = 2 ** (bits - 8)
    kr, kb = LUMA[colorspace]
    for pixels, planes in zip(found, frames, strict=True):
        y, cb, cr = (cropped(plane) for plane in planes[:3])
        y, cb, cr = (y / unit - 16) / 219, (cb / unit - 128) / 224, (cr / unit - 128) / 224
        red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
        green = (y - kr * red - kb * blue) / (1 - kr - kb)
        expected = np.clip(65535 * np.stack([red, green, blue], -1), 0, 65535)
        assert np.abs(pixels[..., :3] - expected).max() <= 2
        alpha = cropped(planes[3]) * 65535 / (2**bits - 1) if len(planes) == 4 else 65535
        assert np.abs(pixels[..., 3] - alpha).max() <= 1
    luma = np.stack([(cropped(planes[0]) / unit - 16) / 219 for planes in frames]) * 65535
    assert np.abs(read(path, "grey", 16).numpy()[..., 0] - luma).max() <= 1


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_alpha_of_webm_is_read_at_any_position(tmp_path: Path, codec: str) -> None:
    frames = random_planes("yuva420p")
    for number, planes in enumerate(frames):
        planes[3][:] = 40 * number + 20
        planes[3][:, : W // 2] = 255 - 40 * number
    path = write(tmp_path / "a.webm", "yuva420p", frames, codec)
    stored = np.stack([cropped(planes[3]) for planes in frames])
    found = read(path, "rgba")
    most = 0 if codec == "libvpx-vp9" else 12
    assert np.abs(found[..., 3].numpy() - stored).max() <= most
    info = index_video(path)
    later = read_clip(info, 2, 2, 2, pixels=PixelFormat("rgba"))
    assert torch.equal(later, found[2::2])
    assert torch.equal(read_clip(info, 0, T), read(path, "rgb")), "the default"
    if codec == "libvpx-vp9":
        assert torch.equal(found[..., :3], read(path, "rgb"))


def test_alpha_of_prores(tmp_path: Path) -> None:
    frames = random_planes("yuva444p10le")
    for planes in frames:
        planes[0][:], planes[1][:], planes[2][:] = 500, 512, 512
    path = write(tmp_path / "a.mov", "yuva444p10le", frames, "prores_ks")
    found = read(path, "rgba", 16)[..., 3].numpy()
    stored = np.stack([cropped(planes[3]) for planes in frames]) * 65535 / 1023
    assert np.abs(found - stored).max() <= 70  # the codec rounds alpha to 16 bits and back
    with av.open(str(path)) as container:
        decoded = [frame.reformat(format="yuva444p12le").planes[3] for frame in container.decode(video=0)]
    alpha = np.stack([np.frombuffer(plane, np.uint16).reshape(H, -1)[:, :W] for plane in decoded])
    assert np.array_equal(found, np.rint(alpha.astype(np.float64) * 65535 / 4095)), "exactly as it is decoded"
    assert (read(path, "rgb").float().std((0, 1, 2)) < 2).all()


def test_a_file_without_alpha_is_opaque_and_as_rgb(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", "yuv420p", random_planes("yuv420p"))
    found = read(path, "rgba")
    assert (found[..., 3] == 255).all()
    assert torch.equal(found[..., :3], read(path, "rgb"))
    deep = read(path, "rgba", 16).int()
    assert torch.equal(deep, 257 * found.int())


PIXELS = np.random.default_rng(0).integers(0, 256, (H, W, 4), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_images_with_alpha(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(PIXELS).save(
        path := tmp_path / f"a{suffix}", **({"lossless": True, "exact": True} if "w" in suffix else {})
    )
    info = index_video(path)
    assert np.array_equal(read_clip(info, 0, 1, pixels=PixelFormat("rgba"))[0], PIXELS)
    alpha = PIXELS[..., 3:] / 255
    white = PIXELS[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(read_clip(info, 0, 1)[0].numpy() - white).max() <= 1
    assert read_clip(info, 0, 1, size=(20, 30), pixels=PixelFormat("grey")).shape == (1, 20, 30, 1)


def write_png(path: Path, values: np.ndarray, pixel_format: str) -> Path:
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = *values.shape[:2], pixel_format, Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(values, format=pixel_format)
    path.write_bytes(b"".join(map(bytes, [*encoder.encode(frame), *encoder.encode(None)])))
    return path


DEEP = np.random.default_rng(0).integers(0, 65536, (H, W, 4), dtype=np.uint16)


def test_images_of_16_bits(tmp_path: Path) -> None:
    rgba = index_video(write_png(tmp_path / "a.png", DEEP, "rgba64be"))
    grey = index_video(write_png(tmp_path / "b.png", DEEP[..., 0].copy(), "gray16be"))
    found = read_clip(rgba, 0, 1, pixels=PixelFormat("rgba", 16))[0]
    assert np.array_equal(found, DEEP)
    white = DEEP[..., :3] * (alpha := DEEP[..., 3:] / 65535) + 65535 * (1 - alpha)
    with pytest.raises(DecodeError, match="a PNG of 16 bits with a turn or with alpha"):
        read_clip(rgba, 0, 1, pixels=PixelFormat("rgb", 16))
    assert np.abs(read_clip(rgba, 0, 1)[0].numpy() - white / 257).max() <= 2
    assert np.array_equal(read_clip(grey, 0, 1, pixels=PixelFormat("grey", 16))[0, ..., 0], DEEP[..., 0])
    assert read_clip(grey, 0, 1, size=(20, 30), pixels=PixelFormat("rgba", 16)).shape == (1, 20, 30, 4)


def test_a_transparent_grey_of_16_bits(tmp_path: Path) -> None:
    values = np.array([[0, 25700, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(path := tmp_path / "a.png", transparency=25700)
    info = index_video(path)
    assert read_clip(info, 0, 1, pixels=PixelFormat("rgba"))[0, 0].tolist() == [
        [0] * 3 + [255],
        [100] * 3 + [0],
        [255] * 4,
    ]
    assert read_clip(info, 0, 1, pixels=PixelFormat("grey"))[0, 0, :, 0].tolist() == [0, 255, 255]


def test_resizing_keeps_the_colours_of_transparent_pixels(tmp_path: Path) -> None:
    values = PIXELS.copy()
    values[..., :3] = 200, 40, 90
    values[..., 3] = np.arange(W) < W // 2
    Image.fromarray(values).save(path := tmp_path / "a.png")
    small = read_clip(index_video(path), 0, 1, size=(H // 2, W // 2), pixels=PixelFormat("rgba"))
    assert small[..., :3].reshape(-1, 3).unique(dim=0).tolist() == [[200, 40, 90]]
    assert small[..., 3].unique().tolist() == [0, 1]


@pytest.mark.parametrize("orientation", [1, 6])
def test_images_of_16_bits_are_upright_or_named(tmp_path: Path, orientation: int) -> None:
    values = (np.arange(12 * 20, dtype=np.uint16) * 257).reshape(12, 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(path := tmp_path / "a.png", exif=exif)
    Image.fromarray((values // 257).astype(np.uint8)).save(small := tmp_path / "b.png", exif=exif)
    info = index_video(path)
    if orientation > 1:
        with pytest.raises(DecodeError, match="a PNG of 16 bits with a turn"):
            read_clip(info, 0, 1, pixels=PixelFormat("grey", 16))
    else:
        deep = read_clip(info, 0, 1, pixels=PixelFormat("grey", 16))
        assert torch.equal(deep.int(), 257 * read_clip(index_video(small), 0, 1, pixels=PixelFormat("grey")).int())
    assert read_clip(info, 0, 1).shape[1:3] == (info.height, info.width)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(("channels", "bit_depth", "count"), [("grey", 16, 1), ("rgba", 8, 4), ("rgba", 16, 4)])
def test_clips(tmp_path: Path, channels: str, bit_depth: int, count: int, cache: bool) -> None:
    frames = random_planes("gbrap16le")
    info = index_video(write(tmp_path / "a.mkv", "gbrap16le", frames))
    config = ClipConfig(3, 16, 16, channels=channels, bit_depth=bit_depth, cache=cache, scale_jitter=1.5)
    dataset = ClipDataset([whole_video(info)], config)
    decoded = dataset.decode(0)[0]
    assert decoded.dtype == (torch.uint8 if bit_depth == 8 else torch.uint16)
    video = dataset[0]["video"]
    assert video.shape == (count, 3, 16, 16)
    assert torch.equal(
        video, ClipDataset([whole_video(info)], ClipConfig(**{**vars(config), "cache": False}))[0]["video"]
    )


def test_16_bits_and_video_are_converted_exactly() -> None:
    frames = torch.arange(65536).to(torch.uint16).reshape(1, 256, 256, 1)
    video = video_from_bytes(frames)
    assert (video.min(), video.max()) == (-1, 1)
    assert torch.equal(bytes_from_video(video, 16), frames)
