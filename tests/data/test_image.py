"""Images of every kind are decoded upright, as RGB."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from PIL import Image

from telecine.data import (
    Bucket,
    ClipConfig,
    ClipDataset,
    DataError,
    DecodeError,
    Span,
    index_image,
    index_video,
    read_clip,
    read_image,
    video_from_bytes,
    whole_video,
)

from .videos import moving_frames, truncate, write_images

PIXELS = moving_frames(1)[0]
CONFIG = ClipConfig(num_frames=5, height=32, width=40, num_workers=0)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def of_colour(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (6, 4), colour)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".jpeg", ".PNG"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 95}, ".jpeg": {"quality": 95}}.get(suffix, {})
    info = index_video(save(Image.fromarray(PIXELS.numpy()), tmp_path / f"image{suffix}", **options))
    assert (info.num_frames, info.height, info.width, info.is_image) == (1, 48, 64, True)
    clip = read_clip(info, 0, 1)
    assert clip.shape == (1, 48, 64, 3)
    assert (clip[0].int() - PIXELS.int()).abs().float().mean() < (5 if "jp" in suffix else 1e-9)
    assert read_clip(info, 0, 1, size=(24, 20)).shape == (1, 24, 20, 3)


COLOURS = {
    "grey": (of_colour("L", 100), (100, 100, 100)),
    "16 bits": (of_colour("I;16", 257 * 100), (100, 100, 100)),
    "two colours": (of_colour("1", 1), (255, 255, 255)),
    "palette": (of_colour("RGB", (200, 40, 90)).quantize(2), (200, 40, 90)),
    "transparent": (of_colour("RGBA", (200, 40, 90, 0)), (255, 255, 255)),
    "half transparent": (of_colour("RGBA", (200, 40, 90, 51)), (244, 212, 222)),
    "transparent grey": (of_colour("LA", (7, 0)), (255, 255, 255)),
}


@pytest.mark.parametrize("name", COLOURS)
def test_colours(tmp_path: Path, name: str) -> None:
    image, expected = COLOURS[name]
    read = read_image(save(image, tmp_path / "image.png"))
    assert read.shape == (4, 6, 3)
    assert (read.int() - torch.tensor(expected)).abs().max() <= 1


def test_a_transparent_entry_of_a_palette(tmp_path: Path) -> None:
    image = of_colour("RGB", (200, 40, 90)).quantize(2)
    index = image.getpixel((0, 0))
    assert (read_image(save(image, tmp_path / "image.png", transparency=index)) == 255).all()


def test_cmyk(tmp_path: Path) -> None:
    path = save(of_colour("CMYK", (0, 255, 255, 0)), tmp_path / "image.jpg", quality=95)
    assert (read_image(path).int() - torch.tensor([255, 0, 0])).abs().max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(PIXELS.numpy()), tmp_path / "image.png", exif=exif)
    turned = (
        PIXELS.transpose(0, 1)
        if orientation in (5, 7)
        else torch.rot90(PIXELS, {3: 2, 6: -1, 8: 1}.get(orientation, 0))
    )
    flipped = {2: turned.flip(1), 4: turned.flip(0), 7: turned.flip(0, 1)}.get(orientation, turned)
    info = index_image(path)
    assert (info.height, info.width) == tuple(flipped.shape[:2])
    assert torch.equal(read_image(path), flipped)


ODD_ORIENTATIONS = {
    "0": struct.pack("<HHIHH", 0x0112, 3, 1, 0, 0),
    "9": struct.pack("<HHIHH", 0x0112, 3, 1, 9, 0),
    "text": struct.pack("<HHI4s", 0x0112, 2, 2, b"6"),
}


@pytest.mark.parametrize("name", ODD_ORIENTATIONS)
def test_an_orientation_that_is_none_turns_nothing(tmp_path: Path, name: str) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + ODD_ORIENTATIONS[name] + bytes(4)
    path = save(Image.fromarray(PIXELS.numpy()), tmp_path / "image.jpg", exif=exif)
    info = index_image(path)
    assert (info.height, info.width) == read_image(path).shape[:2] == (48, 64)


def test_broken_images_say_why(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DecodeError, match=r"text\.png: is no image that Pillow can read"):
        index_image(tmp_path / "text.png")
    with pytest.raises(DecodeError, match=r"gone\.jpg: No such file"):
        index_image(tmp_path / "gone.jpg")
    for suffix in (".png", ".jpg", ".webp"):
        noise = torch.randint(256, (48, 64, 3), dtype=torch.uint8)
        path = truncate(save(Image.fromarray(noise.numpy()), tmp_path / f"cut{suffix}"), 0.6)
        with pytest.raises(DecodeError, match=f"cut{suffix}: ."):
            read_image(path)


def test_an_image_too_large_to_be_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_images(tmp_path, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DecodeError, match="decompression bomb"):
        read_image(path)


@pytest.fixture
def images(tmp_path: Path) -> list[Span]:
    return [whole_video(index_image(path)) for path in write_images(tmp_path / "images", 4)]


@pytest.mark.parametrize("cache", [False, True])
def test_images_alone_are_clips_of_one_frame(images: list[Span], cache: bool) -> None:
    config = ClipConfig(num_frames=17, height=48, width=64, num_workers=0, random_flip=False, cache=cache)
    dataset = ClipDataset(images, config)
    assert dataset.bucket_of(0) == Bucket(1, 48, 64)
    clips = [dataset[i] for i in range(24)]
    assert {Path(clip["source"]).name for clip in clips} == {f"{number}.png" for number in range(4)}
    assert torch.equal(clips[0]["video"], video_from_bytes(read_image(Path(clips[0]["source"]))[None]))


@pytest.mark.parametrize("ratio", [0.25, 1.0])
def test_a_share_of_the_steps_has_images(images: list[Span], spans: list[Span], ratio: float) -> None:
    config = ClipConfig(
        num_frames=5,
        height=32,
        width=40,
        num_workers=0,
        image_ratio=ratio,
        buckets=(Bucket(5, 32, 40), Bucket(9, 16, 16)),
    )
    dataset = ClipDataset(spans + images, config)
    shapes = [dataset.bucket_of(step) for step in range(1000)]
    assert ratio - 0.05 < sum(shape.num_frames == 1 for shape in shapes) / 1000 < ratio + 0.05
    assert {shape.shape for shape in shapes if shape.num_frames == 1} == {(1, 32, 40), (1, 16, 16)}
    for step in range(12):
        assert (Path(dataset[step]["source"]).suffix == ".png") == (shapes[step].num_frames == 1)


def test_images_without_a_share_are_said_to_be_left_out(
    images: list[Span], spans: list[Span], caplog: pytest.LogCaptureFixture
) -> None:
    dataset = ClipDataset(images + spans, CONFIG)
    assert dataset.spans == spans
    assert "4 images are not trained on, because `image_ratio` is 0" in caplog.text
    with pytest.raises(DataError, match=r"`image_ratio` must be 0 for data without images, but got 0\.5"):
        ClipDataset(spans, ClipConfig(num_frames=5, height=32, width=40, image_ratio=0.5))


def test_a_broken_image_is_replaced_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = write_images(tmp_path, 2)
    noise = torch.randint(256, (48, 64, 3), dtype=torch.uint8)
    paths.append(truncate(save(Image.fromarray(noise.numpy()), tmp_path / "cut.jpg"), 0.6))
    dataset = ClipDataset([whole_video(index_image(path)) for path in paths], CONFIG)
    assert {Path(dataset[i]["source"]).name for i in range(20)} == {"0.png", "1.png"}
    assert caplog.text.count("cut.jpg") == 1
