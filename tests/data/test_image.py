"""Images are decoded as upright RGB."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from telecine.data import DecodeError, TarMember, index_video, load_spans, read_clip, tar_members
from telecine.data.image import read_image
from telecine.settings import ClipConfig, PixelFormat

from .videos import moving_frames, truncate, write_images, write_shard

PIXELS = moving_frames(1)[0]


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def filled(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (6, 4), colour)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".jpeg", ".PNG"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 95}, ".jpeg": {"quality": 95}}.get(suffix, {})
    info = index_video(save(Image.fromarray(PIXELS.numpy()), tmp_path / f"image{suffix}", **options))
    assert (info.num_frames, info.height, info.width, info.fps, info.is_image) == (1, 48, 64, 1.0, True)
    assert (list(info.pts), list(info.keyframes)) == ([0], [0])
    clip = read_clip(info, 0, 1)
    assert clip.shape == (1, 48, 64, 3)
    assert (clip[0].int() - PIXELS.int()).abs().float().mean() < (5 if "jp" in suffix else 1e-9)


def test_resizing(tmp_path: Path) -> None:
    path = save(Image.fromarray(PIXELS.numpy()), tmp_path / "image.png")
    resized = read_image(path, (24, 20)).float()
    channels_first = PIXELS.permute(2, 0, 1)[None].float()
    reference = torch.nn.functional.interpolate(channels_first, (24, 20), mode="bicubic", antialias=True)
    assert (resized - reference[0].permute(1, 2, 0)).abs().max() < 4
    assert torch.equal(read_image(path, (48, 64)), PIXELS)


COLOURS = {
    "grey": (filled("L", 100), (100, 100, 100)),
    "16 bits": (filled("I;16", 257 * 100), (100, 100, 100)),
    "two colours": (filled("1", 1), (255, 255, 255)),
    "palette": (filled("RGB", (200, 40, 90)).quantize(2), (200, 40, 90)),
    "transparent": (filled("RGBA", (200, 40, 90, 0)), (255, 255, 255)),
    "half transparent": (filled("RGBA", (200, 40, 90, 51)), (244, 212, 222)),
    "transparent grey": (filled("LA", (7, 0)), (255, 255, 255)),
}


@pytest.mark.parametrize("name", COLOURS)
def test_colours(tmp_path: Path, name: str) -> None:
    image, expected = COLOURS[name]
    pixels = read_image(save(image, tmp_path / "image.png"))
    assert pixels.shape == (4, 6, 3)
    assert (pixels.int() - torch.tensor(expected)).abs().max() <= 1


def test_grey_of_16_bits_is_rounded(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = read_image(save(Image.fromarray(values), tmp_path / "image.png"))
    assert torch.equal(pixels[..., 0], torch.from_numpy(np.round(values / 257)).to(torch.uint8))


def test_a_transparent_palette_entry(tmp_path: Path) -> None:
    image = filled("RGB", (200, 40, 90)).quantize(2)
    index = image.getpixel((0, 0))
    assert (read_image(save(image, tmp_path / "image.png", transparency=index)) == 255).all()


def test_cmyk(tmp_path: Path) -> None:
    path = save(filled("CMYK", (0, 255, 255, 0)), tmp_path / "image.jpg", quality=95)
    assert (read_image(path).int() - torch.tensor([255, 0, 0])).abs().max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(PIXELS.numpy()), tmp_path / "image.png", exif=exif)
    rotated = (
        PIXELS.transpose(0, 1)
        if orientation in (5, 7)
        else torch.rot90(PIXELS, {3: 2, 6: -1, 8: 1}.get(orientation, 0))
    )
    flipped = {2: rotated.flip(1), 4: rotated.flip(0), 7: rotated.flip(0, 1)}.get(orientation, rotated)
    info = index_video(path)
    assert (info.height, info.width) == tuple(flipped.shape[:2])
    assert torch.equal(read_image(path), flipped)


INVALID_ORIENTATIONS = {
    "0": struct.pack("<HHIHH", 0x0112, 3, 1, 0, 0),
    "9": struct.pack("<HHIHH", 0x0112, 3, 1, 9, 0),
    "text": struct.pack("<HHI4s", 0x0112, 2, 2, b"6"),
}


@pytest.mark.parametrize("name", INVALID_ORIENTATIONS)
def test_an_invalid_orientation_is_ignored(tmp_path: Path, name: str) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + INVALID_ORIENTATIONS[name] + bytes(4)
    path = save(Image.fromarray(PIXELS.numpy()), tmp_path / "image.jpg", exif=exif)
    info = index_video(path)
    assert (info.height, info.width) == read_image(path).shape[:2] == (48, 64)


ODD_TAGS = {"text": struct.pack("<HHI4s", 0x011A, 2, 2, b"6"), "bytes": struct.pack("<HHI4s", 0x0128, 7, 4, b"abcd")}


@pytest.mark.parametrize("name", ODD_TAGS)
def test_tags_of_a_wrong_type_are_ignored(tmp_path: Path, name: str) -> None:
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + turned + ODD_TAGS[name] + bytes(4)
    path = save(Image.fromarray(PIXELS.numpy()), tmp_path / "image.jpg", exif=exif)
    info = index_video(path)
    assert (info.height, info.width) == read_image(path).shape[:2] == (64, 48)


def test_errors_give_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DecodeError, match=r"text\.png: not an image that Pillow can read"):
        index_video(tmp_path / "text.png")
    with pytest.raises(DecodeError, match=r"gone\.jpg: No such file"):
        index_video(tmp_path / "gone.jpg")
    for suffix in (".png", ".jpg", ".webp"):
        noise = torch.randint(256, (48, 64, 3), dtype=torch.uint8)
        path = truncate(save(Image.fromarray(noise.numpy()), tmp_path / f"cut{suffix}"), 0.6)
        with pytest.raises(DecodeError, match=f"cut{suffix}: ."):
            read_image(path)


def test_a_size_above_the_safety_limit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_images(tmp_path, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DecodeError, match="decompression bomb"):
        read_image(path)


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 9) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + chunks + bytes(13)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((8192, 8193), r"8192 x 8193 pixels, more than the 67108864 of `clips.max_pixels`"),
        ((100_000_000, 1), r"100000000 x 1 pixels, more than"),
        ((1010, 10), r"1010 x 10 pixels, but one side may be at most 100 times the other"),
        ((10, 1010), r"10 x 1010 pixels, but one side"),
    ],
)
def test_images_of_extreme_sizes_are_refused_by_their_header(
    tmp_path: Path, size: tuple[int, int], reason: str
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png_header(*size))
    with pytest.raises(DecodeError, match=rf"^{path}: {reason}"):
        index_video(path)


def test_the_limit_is_a_setting(tmp_path: Path) -> None:
    small, large = (save(Image.new("L", (width, 100)), tmp_path / f"{width}.png") for width in (100, 101))
    assert index_video(large).width == 101
    for attempt in ("first", "from the index"):
        spans, skipped = load_spans(tmp_path, ClipConfig(max_pixels=10_000))
        assert [span.info.path for span in spans] == [small], attempt
        assert [skip.path for skip in skipped] == [large], attempt
        assert len(load_spans(tmp_path)[0]) == 2


def test_a_large_member_of_a_tar_file_is_not_read(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.touch()
    os.truncate(archive, 2**40)  # sparse
    with pytest.raises(
        DecodeError, match=r"a.tar/b.png: 536870913 bytes, more than the 536870912 of an image in a tar"
    ):
        index_video(TarMember(archive, "b.png", 512, 2**29 + 1))


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp", "moving.mp4"])
def test_animated_images_are_not_read(tmp_path: Path, name: str) -> None:
    frames = [Image.fromarray(frame.numpy()) for frame in moving_frames(3)]
    path = tmp_path / name
    kind = "GIF" if name == "moving.mp4" else None
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    with pytest.raises(DecodeError, match=f"{name}: an animated image"):
        index_video(path)


@pytest.mark.parametrize("name", ["moving.png", "moving.apng"])
@pytest.mark.parametrize("blend", [0, 1])
def test_an_animated_png_is_a_video_with_exact_alpha(tmp_path: Path, name: str, blend: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 20, 24, 4), dtype=np.uint8)
    pixels[3] = pixels[2]
    pixels[3, 5:9, 4:9] = 0
    pixels[..., 3] |= 255 * blend  # blended over the frame before, which opaque frames hide
    first, *others = map(Image.fromarray, pixels)
    first.save(tmp_path / name, "PNG", save_all=True, append_images=others, duration=[40, 80] * 3, blend=blend)
    info = index_video(tmp_path / name)
    assert (info.num_frames, info.is_image, info.fps > 0) == (6, False, True)
    for start in range(6):
        found = read_clip(info, start, 6 - start, pixels=PixelFormat("rgba")).numpy()
        assert np.array_equal(found, pixels[start:]), start
    assert load_spans(tmp_path)[0][0].num_frames == 6


def test_of_several_pictures_in_a_photo_the_first_is_read(tmp_path: Path) -> None:
    first, second = (Image.fromarray(frame.numpy()) for frame in moving_frames(2))
    first.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    assert (read_image(tmp_path / "photo.jpg").int() - PIXELS.int()).abs().float().mean() < 5


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("in_tar", [False, True])
def test_no_other_format_is_read_under_the_suffix_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, in_tar: bool
) -> None:
    """Pillow lets Ghostscript draw an EPS, which is a program."""
    path = tmp_path / name
    Image.new("RGB", (8, 8)).save(path, "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript runs"))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    source = next(tar_members(write_shard(tmp_path / "a.tar", [path]))) if in_tar else path
    with pytest.raises(DecodeError, match="not an image that Pillow can read"):
        index_video(source)
    with pytest.raises(DecodeError, match="not an image that Pillow can read"):
        read_image(source)
