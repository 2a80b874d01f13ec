"""Images are decoded as upright RGB."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from telecine.data import DecodeError, TarMember, index_video, load_spans, read_clip, tar_members
from telecine.data.image import read_image
from telecine.settings import ClipConfig, PixelFormat

from .videos import moving_frames, truncate, write_images, write_shard

PIXELS = moving_frames(1)[0]
IMAGE = Image.fromarray(PIXELS.numpy())


def save(image, path, **options):
    image.save(path, **options)
    return path


def filled(mode, colour):
    return Image.new(mode, (6, 4), colour)


def difference(pixels, expected):
    return (pixels.int() - torch.as_tensor(expected).int()).abs().float()


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".jpeg", ".PNG"])
def test_formats(tmp_path, suffix):
    is_lossy = suffix.startswith(".j")
    options = {".webp": {"lossless": True}, ".png": {}, ".PNG": {}}.get(suffix, {"quality": 95})
    info = index_video(save(IMAGE, tmp_path / f"image{suffix}", **options))
    assert (info.num_frames, info.height, info.width, info.fps, info.is_image) == (
        1,
        48,
        64,
        1.0,
        True,
    )
    assert (list(info.pts), list(info.keyframes)) == ([0], [0])
    clip = read_clip(info, 0, 1)
    assert clip.shape == (1, 48, 64, 3)
    assert difference(clip[0], PIXELS).mean() < (5 if is_lossy else 1e-9)


def test_resizing(tmp_path):
    path = save(IMAGE, tmp_path / "image.png")
    channels_first = PIXELS.permute(2, 0, 1)[None].float()
    reference = torch.nn.functional.interpolate(
        channels_first, (24, 20), mode="bicubic", antialias=True
    )
    assert difference(read_image(path, (24, 20)), reference[0].permute(1, 2, 0)).max() < 5
    assert torch.equal(read_image(path, (48, 64)), PIXELS)


PALETTE = filled("RGB", (200, 40, 90)).quantize(2)
COLOURS = {
    "grey": (filled("L", 100), {}, (100, 100, 100)),
    "16 bits": (filled("I;16", 257 * 100), {}, (100, 100, 100)),
    "two colours": (filled("1", 1), {}, (255, 255, 255)),
    "palette": (PALETTE, {}, (200, 40, 90)),
    "transparent palette": (PALETTE, {"transparency": PALETTE.getpixel((0, 0))}, (255, 255, 255)),
    "transparent": (filled("RGBA", (200, 40, 90, 0)), {}, (255, 255, 255)),
    "half transparent": (filled("RGBA", (200, 40, 90, 51)), {}, (244, 212, 222)),
    "transparent grey": (filled("LA", (7, 0)), {}, (255, 255, 255)),
}


@pytest.mark.parametrize("name", COLOURS)
def test_colours(tmp_path, name):
    image, options, expected = COLOURS[name]
    pixels = read_image(save(image, tmp_path / "image.png", **options))
    assert pixels.shape == (4, 6, 3)
    assert difference(pixels, expected).max() <= 1


def test_cmyk(tmp_path):
    path = save(filled("CMYK", (0, 255, 255, 0)), tmp_path / "image.jpg", quality=95)
    assert difference(read_image(path), [255, 0, 0]).max() < 12


def test_grey_of_16_bits_is_rounded(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = read_image(save(Image.fromarray(values), tmp_path / "image.png"))
    assert torch.equal(pixels[..., 0], torch.from_numpy(np.round(values / 257)).to(torch.uint8))


UPRIGHT = {
    1: PIXELS,
    2: PIXELS.flip(1),
    3: PIXELS.flip(0, 1),
    4: PIXELS.flip(0),
    5: PIXELS.transpose(0, 1),
    6: torch.rot90(PIXELS, -1),
    7: PIXELS.transpose(0, 1).flip(0, 1),
    8: torch.rot90(PIXELS, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(IMAGE, tmp_path / "image.png", exif=exif)
    info = index_video(path)
    assert (info.height, info.width) == UPRIGHT[orientation].shape[:2]
    assert torch.equal(read_image(path), UPRIGHT[orientation])


TURNED = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
ODD_TAGS = {
    "orientation 0": ([struct.pack("<HHIHH", 0x0112, 3, 1, 0, 0)], (48, 64)),
    "orientation 9": ([struct.pack("<HHIHH", 0x0112, 3, 1, 9, 0)], (48, 64)),
    "orientation as text": ([struct.pack("<HHI4s", 0x0112, 2, 2, b"6")], (48, 64)),
    "text for a number": ([TURNED, struct.pack("<HHI4s", 0x011A, 2, 2, b"6")], (64, 48)),
    "bytes for a number": ([TURNED, struct.pack("<HHI4s", 0x0128, 7, 4, b"abcd")], (64, 48)),
}


@pytest.mark.parametrize("name", ODD_TAGS)
def test_tags_that_are_wrong_are_ignored(tmp_path, name):
    tags, size = ODD_TAGS[name]
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)
    path = save(IMAGE, tmp_path / "image.jpg", exif=exif)
    info = index_video(path)
    assert (info.height, info.width) == read_image(path).shape[:2] == size


def test_errors_give_the_reason(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DecodeError, match=r"text\.png: not an image that Pillow can read"):
        index_video(tmp_path / "text.png")
    with pytest.raises(DecodeError, match=r"gone\.jpg: No such file"):
        index_video(tmp_path / "gone.jpg")
    noise = Image.fromarray(torch.randint(256, (48, 64, 3), dtype=torch.uint8).numpy())
    for suffix in (".png", ".jpg", ".webp"):
        path = truncate(save(noise, tmp_path / f"cut{suffix}"), 0.6)
        with pytest.raises(DecodeError, match=f"cut{suffix}: ."):
            read_image(path)


def test_a_size_above_the_safety_limit_is_an_error(tmp_path, monkeypatch):
    (path,) = write_images(tmp_path, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DecodeError, match="decompression bomb"):
        read_image(path)


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
def test_images_of_extreme_sizes_are_refused_by_their_header(tmp_path, size, reason):
    path = tmp_path / "image.png"
    header = b"IHDR" + struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + checksum + b"\0\0\0\tIDAT" + bytes(13))
    with pytest.raises(DecodeError, match=rf"^{path}: {reason}"):
        index_video(path)


def test_the_limit_is_a_setting(tmp_path):
    small = save(Image.new("L", (100, 100)), tmp_path / "100.png")
    large = save(Image.new("L", (101, 100)), tmp_path / "101.png")
    for attempt in ("first", "from the index"):
        spans, skipped = load_spans(tmp_path, ClipConfig(max_pixels=10_000))
        assert [span.info.source for span in spans] == [small], attempt
        assert [skip.path for skip in skipped] == [large], attempt
        assert len(load_spans(tmp_path)[0]) == 2


def test_a_large_member_of_a_tar_file_is_not_read(tmp_path):
    archive = tmp_path / "a.tar"
    archive.touch()
    os.truncate(archive, 2**40)  # sparse
    message = r"a.tar/b.png: 536870913 bytes, more than the 536870912 of an image in a tar"
    with pytest.raises(DecodeError, match=message):
        index_video(TarMember(archive, "b.png", 512, 2**29 + 1))


@pytest.mark.parametrize(
    ("name", "kind"), [("moving.gif", None), ("moving.webp", None), ("moving.mp4", "GIF")]
)
def test_animated_images_are_not_read(tmp_path, name, kind):
    first, *others = (Image.fromarray(frame.numpy()) for frame in moving_frames(3))
    first.save(tmp_path / name, kind, save_all=True, append_images=others)
    with pytest.raises(DecodeError, match=f"{name}: an animated image"):
        index_video(tmp_path / name)


@pytest.mark.parametrize("name", ["moving.png", "moving.apng"])
@pytest.mark.parametrize("blend", [0, 1])
def test_an_animated_png_is_a_video_with_exact_alpha(tmp_path, name, blend):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 20, 24, 4), dtype=np.uint8)
    pixels[3] = pixels[2]
    pixels[3, 5:9, 4:9] = 0
    pixels[..., 3] |= 255 * blend  # blended over the frame before, which opaque frames hide
    first, *others = map(Image.fromarray, pixels)
    first.save(
        tmp_path / name,
        "PNG",
        save_all=True,
        append_images=others,
        duration=[40, 80] * 3,
        blend=blend,
    )
    info = index_video(tmp_path / name)
    assert (info.num_frames, info.is_image, info.fps > 0) == (6, False, True)
    for start in range(6):
        clip = read_clip(info, start, 6 - start, pixels=PixelFormat("rgba"))
        assert np.array_equal(clip.numpy(), pixels[start:]), start
    assert load_spans(tmp_path)[0][0].num_frames == 6


def test_of_several_pictures_in_a_photo_the_first_is_read(tmp_path):
    second = Image.fromarray(moving_frames(2)[1].numpy())
    IMAGE.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    assert difference(read_image(tmp_path / "photo.jpg"), PIXELS).mean() < 5


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("in_tar", [False, True])
def test_no_other_format_is_read_under_the_suffix_of_an_image(tmp_path, monkeypatch, name, in_tar):
    """Pillow lets Ghostscript draw an EPS, which is a program."""
    source = save(Image.new("RGB", (8, 8)), tmp_path / name, format="EPS")
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript runs")
    )
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    if in_tar:
        (source,) = tar_members(write_shard(tmp_path / "a.tar", [source]))
    for read in (index_video, read_image):
        with pytest.raises(DecodeError, match="not an image that Pillow can read"):
            read(source)
