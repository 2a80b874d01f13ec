"""Arrays of any number of channels are clips: found, indexed by their header, read in their range, and refused."""

import io
import struct
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from telecine.data import (
    ClipDataset,
    DataError,
    DecodeError,
    bytes_from_video,
    index_video,
    iterate_frames,
    load_spans,
    read_clip,
    video_from_bytes,
)
from telecine.data.arrays import write_array
from telecine.settings import ClipConfig

from .indexed import split_videos
from .videos import numbered_frames, write_shard, write_video

T = 7
H = 20
W = 24
BYTES = np.random.default_rng(0).integers(0, 256, (T, H, W, 2), dtype=np.uint8)
TWO = ClipConfig(3, 16, 16, channels=2)


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        np.savez_compressed(path, clip=values)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    ("layout", "dtype", "limits"),
    [
        (None, np.uint8, ()),
        ("C T H W", np.dtype(">u2"), ()),
        ("T C H W", np.float16, (-1.0, 3.0)),
        ("T H W C", np.dtype(">f8"), (1e6, 1e6 + 1)),
        ("W H C T", np.float32, (-0.1, 0.1)),  # closer to 0 than its nearest float32
    ],
)
def test_values_are_mapped_from_their_range(tmp_path, suffix, layout, dtype, limits):
    low, high = limits or (0, np.iinfo(dtype).max)
    values = (low + BYTES.astype(np.float64) / 255 * (high - low)).astype(dtype)
    axes = (layout or "T H W C").split()
    stored = values.transpose(["THWC".index(axis) for axis in axes])
    if layout == "C T H W":
        stored = np.asfortranarray(stored)
    info = index_video(
        save(tmp_path / f"a{suffix}", stored), replace(TWO, layout=layout, range=limits)
    )
    assert (info.num_frames, info.height, info.width, info.is_image) == (T, H, W, False)
    frames = read_clip(info, 1, 3, 2)
    expected = (values[1:6:2].astype(np.float64) - low) / (high - low) * 2 - 1
    assert frames.dtype == torch.float32
    assert np.abs(frames.numpy() - expected).max() < 1e-6
    assert frames.abs().max() <= 1
    assert torch.equal(torch.stack([*iterate_frames(info)])[1:6:2], frames)
    write_array(tmp_path / "copy.npy", info, read_clip(info, 0, T).movedim(-1, 1).split(3))
    copy = np.load(tmp_path / "copy.npy")
    assert copy.dtype == stored.dtype.newbyteorder("=")
    assert np.abs(copy.astype(np.float64) - stored).max() <= (
        0 if copy.dtype.kind == "u" else 1e-3 * (high - low)
    )


def test_bytes_are_those_of_a_video_to_the_bit(tmp_path):
    info = index_video(save(tmp_path / "a.npy", BYTES), TWO)
    video = video_from_bytes(read_clip(info, 0, T))
    assert torch.equal(video, video_from_bytes(torch.from_numpy(BYTES)))
    assert torch.equal(bytes_from_video(video), torch.from_numpy(BYTES))
    assert read_clip(info, 0, 2, size=(9, 10)).abs().max() <= 1


def test_an_array_without_time_is_an_image_and_one_of_three_axes_is_grey(tmp_path):
    image = index_video(save(tmp_path / "a.npy", BYTES[0]), replace(TWO, layout="H W C"))
    assert (image.num_frames, image.is_image, image.fps) == (1, True, 1.0)
    assert torch.equal(torch.stack([*iterate_frames(image)]), read_clip(image, 0, 1))
    grey = index_video(save(tmp_path / "b.npy", BYTES[..., 0]), ClipConfig(channels=1))
    assert ClipConfig(channels=1).channels == "grey"
    assert read_clip(grey, 0, T).shape == (T, H, W, 1)


REFUSED = {
    "channels": (BYTES, {"channels": 3}, "2 channels, but `clips.channels` has 3"),
    "axes": (BYTES[0, 0], {}, r"shape \(24, 2\), but not the axes T H W C; set `clips.layout`"),
    "floats without a range": (
        BYTES.astype(np.float32),
        {},
        "float32, for which `clips.range` must say",
    ),
    "signed": (
        BYTES.astype(np.int16),
        {"range": (0, 255)},
        "int16, which are not uint8, uint16, float16",
    ),
    "objects": (np.array([None]), {}, "Array can.t be memory-mapped: Python objects"),
    "empty": (BYTES[:0], {}, "an empty array|empty file"),
    "large": (
        np.zeros((1, 90, 90, 2), np.uint8),
        {"max_pixels": 8000},
        "90 x 90 pixels, more than the 8000",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_it_is_read(tmp_path, case):
    values, settings, message = REFUSED[case]
    save(tmp_path / "a.npy", values)
    with pytest.raises(DataError, match=message):
        load_spans(tmp_path, replace(TWO, **settings))


def header(shape):
    """Return the head of an array of bytes of this shape."""
    file = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def zipped(content):
    """Return an `.npz` whose only array has this content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", content)
    return file.getvalue()


def test_an_array_in_a_zip_is_indexed_without_being_unpacked(tmp_path):
    path = tmp_path / "long.npz"
    shape = (2**20, 20, 24, 2)
    path.write_bytes(zipped(header(shape) + bytes(64)))
    info = index_video(path, replace(TWO, layout="T H W C"))
    assert info.num_frames == 2**20
    with pytest.raises(DecodeError, match="long"):
        read_clip(info, 0, 1)


def test_damaged_files_are_refused(tmp_path):
    content = save(tmp_path / "a.npy", BYTES).read_bytes()
    np.savez(tmp_path / "two.npz", a=BYTES, b=BYTES)
    np.savez(tmp_path / "code.npz", np.array([print], dtype=object))
    damaged = {
        "short.npy": content[:-1],
        "claims.npy": content.replace(b"(7, 20, 24, 2)", b"(9999999999, )"),
        "head.npy": content[:20],
        "text.npy": b"text",
        "text.npz": b"PK\3\4text",
        "shape.npz": zipped(header((10**30, 24, 2))),
        "bomb.npz": zipped(header((10**8, 20, 24, 2)) + bytes(2**20)),
        "brackets.npz": zipped(b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"(" * 9000),
    }
    for name, damaged_content in damaged.items():
        (tmp_path / name).write_bytes(damaged_content)
    for name in (*damaged, "two.npz", "code.npz"):
        with pytest.raises(DecodeError, match=name):
            index_video(tmp_path / name, TWO)


def test_of_an_array_in_a_tar_file_only_the_frames_of_a_clip_are_read(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (2000, H, W, 2), dtype=np.uint8)
    files = [
        save(tmp_path / "a.npy", values),
        save(tmp_path / "b.npy", np.asfortranarray(values[:9])),
    ]
    spans, _ = load_spans(write_shard(tmp_path / "shard.tar", files), TWO)
    tracemalloc.start()
    try:
        frames = read_clip(spans[0].info, 1500, 3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < values.nbytes / 10
    assert torch.equal(
        bytes_from_video(video_from_bytes(frames)), torch.from_numpy(values[1500:1503])
    )
    frames = read_clip(spans[1].info, 2, 7)
    assert torch.equal(bytes_from_video(video_from_bytes(frames)), torch.from_numpy(values[2:9]))


def test_damaged_arrays_in_a_tar_file_are_refused(tmp_path):
    content = save(tmp_path / "good.npy", BYTES).read_bytes()
    np.save(tmp_path / "code.npy", np.array([print], dtype=object))
    (tmp_path / "short.npy").write_bytes(content[:-1])
    (tmp_path / "claims.npy").write_bytes(content.replace(b"(7, 20, 24, 2)", b"(9999999999, )"))
    (tmp_path / "empty.npy").write_bytes(content.replace(b"(7, 20, 24, 2)", b"(0, 20, 24, 2)"))
    (tmp_path / "text.npy").write_bytes(b"text")
    np.savez(tmp_path / "zip.npz", BYTES)
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    files = sorted(tmp_path.glob("*.npy"))
    spans, skipped = load_spans(write_shard(tmp_path / "shard.tar", files), TWO)
    assert [span.source.name for span in spans] == ["good.npy", "zip.npy"]
    assert len(skipped) == 5


@pytest.mark.parametrize("value", [256.0, -0.5, np.nan])
def test_values_outside_of_the_range_end_reading(tmp_path, value):
    values = BYTES.astype(np.float32)
    values[4, 2, 3, 1] = value
    info = index_video(save(tmp_path / "a.npy", values), replace(TWO, range=(0, 255)))
    read_clip(info, 0, 4)
    with pytest.raises(
        DataError,
        match=r"a\.npy: values from .* in frames 2 to 4, outside of `clips\.range`, \[0, 25",
    ):
        read_clip(info, 2, 3)


@pytest.mark.parametrize("cache", [False, True])
def test_arrays_are_found_split_and_drawn_as_videos(tmp_path, cache):
    for number in range(3):
        save(tmp_path / "in" / f"{number}.npy", np.roll(BYTES, number))
    write_video(tmp_path / "in" / "v.mp4", numbered_frames(8))
    write_shard(
        tmp_path / "in" / "b.tar",
        [save(tmp_path / "c.npy", BYTES), save(tmp_path / "d.npz", BYTES)],
    )
    config = replace(TWO, cache=cache, random_flip=True, scale_jitter=1.2)
    for _ in range(2):
        spans, skipped = load_spans(tmp_path / "in", config)
        assert [span.info.source.name for span in spans] == [
            "0.npy",
            "1.npy",
            "2.npy",
            "c.npy",
            "d.npz",
        ]
        (skip,) = skipped
        assert (skip.path.name, skip.reason) == (
            "v.mp4",
            "not an array; only arrays can have 2 channels",
        )
    train, held_out = split_videos(spans, ClipConfig(3, val_fraction=0.4))
    assert (len(train), len(held_out)) == (3, 2)
    first, again, second = (ClipDataset(train, config)[index]["video"] for index in (3, 3, 4))
    assert first.shape == (2, 3, 16, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    (tmp_path / "list.csv").write_text("path,start_frame,end_frame\nin/0.npy,2,5\n")
    (span,) = load_spans(tmp_path / "list.csv", config)[0]
    assert (span.first_frame, span.last_frame) == (2, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "T H"}, "layout"),
        ({"layout": "T H W H"}, "layout"),
        ({"range": (1, 0)}, "range"),
        ({"range": (0, float("inf"))}, "range"),
        ({"channels": 0}, "channels"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        ClipConfig(**settings)


def test_defaults_leave_the_identity_of_clips_as_it_was():
    assert {"layout", "range"}.isdisjoint(ClipConfig().identity())
    assert ClipConfig(range=(0, 1)).identity()["range"] == (0, 1)
