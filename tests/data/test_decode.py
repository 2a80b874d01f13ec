"""Clips have exactly the requested frames, for all tested containers and codecs."""

import os
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import av
import pytest
import torch
from av.video.reformatter import Colorspace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from telecine.data import DataError, DecodeError, index_video, iterate_frames, pixels, read_clip
from telecine.data.decode import decode_packets, open_video
from telecine.settings import ClipConfig, PixelFormat

from .videos import (
    damage,
    moving_frames,
    new_stream,
    numbered_frames,
    numbers_of,
    rotate_clockwise,
    set_display_matrix,
    stamp,
    truncate,
    write_exif,
    write_greys,
    write_in_decoding_order,
    write_packed,
    write_video,
)

NUM_FRAMES = 60
# Without loss there are no B-frames.
OPEN_GOP = {"crf": "1", "x264_params": "open-gop=1:keyint=10:bframes=3:b-adapt=0"}
UNEVEN_PTS = [40 * i + 9 * (i % 3) + (500 if i > 30 else 0) for i in range(NUM_FRAMES)]
LOSSLESS = {
    "b_frames.mp4": {"g": "10", "bf": "3", "crf": "1"},
    "open_gop.mp4": OPEN_GOP,
    "open_gop.mkv": OPEN_GOP,
    "single_keyframe.mp4": {"g": "600"},
    "uneven.mp4": {"g": "10", "bf": "2", "crf": "1", "pts": UNEVEN_PTS},
    "fragmented.mp4": {"g": "10", "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "no_timestamps.h264": {"g": "10", "bf": "2", "crf": "1", "container_format": "h264"},
    "b_frames.avi": {"g": "10", "bf": "2", "crf": "1"},
    "b_frames.ts": {"g": "10", "bf": "3", "crf": "1"},
}
LOSSY = {
    "packed.avi": ("mpeg4", {"g": "10", "bf": "2", "qmin": "1", "qmax": "2"}),
    "hidden_frames.webm": ("libvpx", {"g": "20", "auto_alt_ref": "1", "lag_in_frames": "16"}),
    "vp9.webm": ("libvpx-vp9", {"g": "20", "b": "1M"}),
    # Lossless H.264 has no frames on which no other depends.
    "skippable_frames.mp4": ("libx264", {"g": "10", "bf": "3"}),
    "program.mpg": ("mpeg2video", {"g": "10", "bf": "2"}),
    # What FFmpeg marks as keyframes are P-frames, after which the picture is whole some frames later.
    "intra_refresh.mp4": ("libx264", {"x264_params": "intra-refresh=1:keyint=10:bframes=0"}),
    "intra_refresh.ts": ("libx264", {"x264_params": "intra-refresh=1:keyint=10:bframes=2"}),
    "open_gop.ts": ("libx264", {"x264_params": "open-gop=1:keyint=10:bframes=2"}),
}


@pytest.fixture(scope="module")
def lossless(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lossless")
    frames = numbered_frames(NUM_FRAMES)
    return {
        name: index_video(write_video(folder / name, frames, **options))
        for name, options in LOSSLESS.items()
    }


def whole(path, size=None):
    return torch.stack(list(iterate_frames(path, size)))


def read(path, num_frames, **options):
    return read_clip(index_video(path), 0, num_frames, **options)


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_frame_is_indexed(lossless, name):
    info = lossless[name]
    assert (info.num_frames, info.height, info.width, info.fps > 0) == (NUM_FRAMES, 48, 64, True)
    assert all(a < b for a, b in pairwise(info.pts)) == (info.source.suffix != ".avi")
    assert len(set(info.pts)) == NUM_FRAMES
    assert info.keyframes[0] == 0
    assert len(info.keyframes) == (1 if "single" in name else 6)
    assert info.seekable == (info.source.suffix != ".h264")


@pytest.mark.parametrize("name", LOSSLESS)
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_clips_are_frame_exact(lossless, name, data):
    num_frames = data.draw(st.integers(1, 8))
    stride = data.draw(st.integers(1, 7))
    start = data.draw(st.integers(0, NUM_FRAMES - 1 - (num_frames - 1) * stride))
    clip = read_clip(lossless[name], start, num_frames, stride)
    assert clip.shape == (num_frames, 48, 64, 3)
    assert clip.dtype == torch.uint8
    assert numbers_of(clip) == list(range(start, start + num_frames * stride, stride))


@pytest.mark.parametrize("name", LOSSY)
def test_random_access_equals_decoding_in_order(tmp_path, name):
    codec, options = LOSSY[name]
    info = index_video(write_video(tmp_path / name, moving_frames(40), codec, **options))
    frames = whole(info.source)
    assert frames.shape == (40, 48, 64, 3)
    for start, stride in ((0, 1), (7, 3), (19, 2), (21, 1), (36, 1)):
        assert torch.equal(
            read_clip(info, start, 4, stride), frames[start : start + 3 * stride + 1 : stride]
        )


def test_a_wrong_duration_and_a_title_that_is_not_utf8_are_ignored(tmp_path):
    path = write_video(tmp_path / "lies.mkv", numbered_frames(30), g="10", title="a caf?")
    content = path.read_bytes().replace(b"caf?", b"caf\xe9")
    # EBML: the element 0x4489 is the duration, here an eight-byte float.
    position = content.index(bytes.fromhex("448988")) + 3
    path.write_bytes(
        content[:position] + bytes.fromhex("40c3880000000000") + content[position + 8 :]
    )
    info = index_video(path)
    assert info.num_frames == 30
    assert numbers_of(read_clip(info, 25, 5)) == [25, 26, 27, 28, 29]


@pytest.mark.parametrize("shape", [(48, 64), (47, 63), (1, 1)])
def test_sizes(tmp_path, shape):
    info = index_video(write_video(tmp_path / "odd.mp4", numbered_frames(5, *shape)))
    assert (info.height, info.width) == shape
    assert numbers_of(read_clip(info, 1, 3)) == [1, 2, 3]
    assert read_clip(info, 1, 3, size=(33, 21)).shape == (3, 33, 21, 3)


def test_resizing_is_close_to_an_antialiased_reference(tmp_path):
    frames = moving_frames(2, 120, 160)
    resized = read(write_video(tmp_path / "large.mp4", frames), 2, size=(30, 40)).float()
    channels_first = frames.permute(0, 3, 1, 2).float()
    reference = torch.nn.functional.interpolate(
        channels_first, (30, 40), mode="bicubic", antialias=True
    )
    assert (resized - reference.permute(0, 2, 3, 1)).abs().max() < 4


@pytest.mark.parametrize("matrix", [Colorspace.ITU709, Colorspace.ITU601])
def test_colours_follow_the_colour_matrix_of_the_file(tmp_path, matrix):
    colours = torch.tensor([200, 40, 90], dtype=torch.uint8).expand(2, 48, 64, 3).contiguous()
    path = write_video(tmp_path / "tagged.mp4", colours, "libx264", matrix=matrix, crf="1")
    assert (read(path, 2).int() - colours.int()).abs().max() <= 4


@pytest.mark.parametrize(("height", "matrix"), [(718, Colorspace.ITU601), (720, Colorspace.ITU709)])
def test_an_unspecified_colour_matrix_is_that_of_players(tmp_path, height, matrix):
    colours = torch.tensor([200, 40, 90], dtype=torch.uint8).expand(height, 64, 3).contiguous()
    with new_stream(tmp_path / "a.mp4", "libx264", "yuv420p", (height, 64)) as (container, stream):
        frame = av.VideoFrame.from_ndarray(colours.numpy(), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=matrix)
        frame.colorspace = 2
        container.mux(stream.encode(stamp(frame, 0)))
        container.mux(stream.encode())
    info = index_video(tmp_path / "a.mp4")
    assert (read_clip(info, 0, 1)[0].int() - colours.int()).abs().max() <= 4
    clip = read_clip(info, 0, 1, pixels=PixelFormat(matrix="bt601"))[0]
    is_as_before = (clip.int() - colours.int()).abs().max() <= 4
    assert is_as_before == (matrix == Colorspace.ITU601)


@pytest.mark.parametrize("size", [None, (24, 32), (46, 62), (96, 128)])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p"])
def test_greys_are_exact_for_all_chroma_formats(tmp_path, size, pixel_format):
    lumas = [16, 50, 81, 125, 126, 180, 210, 235]
    exact = (torch.tensor(lumas) - 16)[:, None, None, None] * 255 / 219
    path = write_greys(tmp_path / "a.mkv", lumas, pixel_format)
    assert (read(path, len(lumas), size=size) - exact).abs().max() < 0.51


@pytest.mark.parametrize("size", [(48, 64), (20, 30), (96, 100)])
def test_pixels_are_those_of_the_scaler_in_packed_rgb(tmp_path, size):
    path = write_video(
        tmp_path / "a.mkv", torch.randint(0, 256, (4, 48, 64, 3), dtype=torch.uint8), "libx264"
    )
    height, width = size
    with open_video(path) as (container, stream):
        frames = [
            frame.reformat(width, height, "rgb24", interpolation=pixels.INTERPOLATION).to_ndarray()
            for frame in container.decode(stream)
        ]
    expected = torch.stack([torch.from_numpy(frame) for frame in frames])
    assert torch.equal(read(path, 4, size=size), expected)
    assert torch.equal(whole(path, size), expected)


MATRICES = {
    (0, 1, -1, 0): lambda frames: torch.rot90(frames, -1, (1, 2)),
    (-1, 0, 0, 1): lambda frames: frames.flip(2),
    (1, 0, 0, -1): lambda frames: frames.flip(1),
    (0, 1, 1, 0): lambda frames: frames.transpose(1, 2),
    (0, -1, -1, 0): lambda frames: frames.transpose(1, 2).flip(1, 2),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_rotation_and_mirroring_are_applied(tmp_path, matrix):
    frames = moving_frames(4)
    info = index_video(set_display_matrix(write_video(tmp_path / "phone.mp4", frames), matrix))
    upright = MATRICES[matrix](frames)
    assert (info.height, info.width) == upright.shape[1:3]
    assert torch.equal(read_clip(info, 0, 4), upright)
    assert torch.equal(whole(info.source), upright)
    assert read_clip(info, 0, 4, size=(32, 20)).shape == (4, 32, 20, 3)


@pytest.mark.parametrize(
    ("aspect", "displayed", "turned"),
    [(Fraction(4, 3), (48, 85), (85, 48)), (Fraction(3, 4), (64, 64), (64, 64))],
)
def test_pixels_that_are_not_square(tmp_path, aspect, displayed, turned):
    path = write_video(tmp_path / "dvd.mp4", numbered_frames(3), aspect=aspect)
    info = index_video(path)
    assert (info.height, info.width) == displayed
    assert info.stored_size == (48, 64)
    assert read_clip(info, 1, 1).shape == (1, *displayed, 3)
    assert next(iterate_frames(path)).shape == (*displayed, 3)
    upright = index_video(rotate_clockwise(path))
    assert ((upright.height, upright.width), upright.stored_size) == (turned, (64, 48))


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (6, -1), (8, 1)])
def test_side_data_that_pyav_does_not_know(tmp_path, orientation, turns):
    frames = moving_frames(3)
    upright = torch.rot90(frames, turns, (1, 2)).float()
    path = write_exif(tmp_path / "camera.avi", frames, orientation)
    assert (read(path, 3).float() - upright).abs().mean() < 4


def test_other_errors_of_pyav_name_the_file(tmp_path, monkeypatch):
    def reformat(*arguments, **settings):
        raise ValueError("pixel format 999 is not known")

    info = index_video(write_video(tmp_path / "odd.mp4", numbered_frames(3)))
    monkeypatch.setattr(pixels, "VideoReformatter", lambda: SimpleNamespace(reformat=reformat))
    for read_frames in (lambda: read_clip(info, 0, 1), lambda: list(iterate_frames(info.source))):
        with pytest.raises(DecodeError, match=r"odd\.mp4: pixel format 999 is not known"):
            read_frames()
    with pytest.raises(DataError, match=r"^changed$"), open_video(info.source):
        raise DataError("changed")  # not about this file alone


def test_a_damaged_part_raises_and_the_rest_is_correct(tmp_path):
    path = write_video(tmp_path / "damaged.mp4", moving_frames(60), "libx264", g="10")
    frames = whole(path)
    info = index_video(damage(path, 0.45, 0.6))
    damaged = []
    for index in range(60):
        try:
            assert torch.equal(read_clip(info, index, 1)[0], frames[index])
        except DecodeError:
            damaged.append(index)
    assert 0 < len(damaged) < 40
    for read_frames in (lambda: read_clip(info, damaged[0], 1), lambda: whole(path)):
        with pytest.raises(DecodeError, match=r"damaged\.mp4"):
            read_frames()


def test_a_frame_with_concealed_errors_is_a_decode_error(tmp_path):
    path = write_video(tmp_path / "damaged.mkv", moving_frames(60), "libx264", g="10")
    info = index_video(damage(path, 0.45, 0.46))
    for read_frames in (lambda: read_clip(info, 0, 60), lambda: whole(path)):
        with pytest.raises(
            DecodeError, match=r"damaged\.mkv: the frame with timestamp \d+ is corrupt"
        ):
            read_frames()


@pytest.mark.parametrize(
    ("start", "num_frames", "stride"), [(-1, 1, 1), (60, 1, 1), (50, 6, 2), (0, 0, 1), (0, 1, 0)]
)
def test_clips_outside_the_video_are_rejected(lossless, start, num_frames, stride):
    with pytest.raises(ValueError, match="must be"):
        read_clip(lossless["b_frames.mp4"], start, num_frames, stride)


def test_missing_frames_are_decode_errors(tmp_path):
    info = index_video(write_video(tmp_path / "video.mkv", numbered_frames(30), g="5"))
    for index, offset in ((2, 1), (29, 1000)):
        pts = info.pts[:]
        pts[index] += offset
        with pytest.raises(DecodeError, match=rf"video\.mkv: frame {index} is missing"):
            read_clip(replace(info, pts=pts), index, 1)
    truncate(info.source, 0.4)
    with pytest.raises(DecodeError, match=r"video\.mkv: frame 20 is missing"):
        read_clip(info, 20, 1)
    info.source.unlink()
    with pytest.raises(DecodeError, match=r"video\.mkv: No such file"):
        read_clip(info, 0, 1)


def test_a_codec_without_a_decoder_is_a_decode_error(tmp_path):
    path = write_video(tmp_path / "video.mkv", numbered_frames(3))
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
    with pytest.raises(DecodeError, match=r"video\.mkv: no decoder for its codec is available"):
        index_video(path)


class Container:
    """A container that refuses seeks, or is empty after the first one."""

    def __init__(self, opened, refused):
        self.opened = opened
        self.refused = refused
        self.num_seeks = 0

    def __getattr__(self, name):
        return getattr(self.opened, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.opened.close()

    def seek(self, pts, stream):
        if self.refused:
            raise av.error.PermissionError(1, "not permitted")
        self.num_seeks += 1
        self.opened.seek(pts, stream=stream)

    def demux(self, stream):
        return iter(()) if self.num_seeks == 1 else self.opened.demux(stream)


@pytest.mark.parametrize("refused", [False, True])
def test_frames_are_exact_if_seeks_fail(lossless, monkeypatch, refused):
    open_container = av.open
    monkeypatch.setattr(
        av, "open", lambda *args, **options: Container(open_container(*args, **options), refused)
    )
    for start in (0, 10, 19, 57):
        clip = read_clip(lossless["b_frames.mp4"], start, 3)
        assert numbers_of(clip) == [start, start + 1, start + 2]


def test_a_clip_is_sought_at_the_two_keyframes_before_it(lossless, monkeypatch):
    seeks = []
    open_container = av.open

    class Noted(Container):
        def seek(self, pts, stream):
            seeks.append(pts)
            super().seek(pts, stream)

    monkeypatch.setattr(
        av, "open", lambda *args, **options: Noted(open_container(*args, **options), refused=True)
    )
    info = lossless["b_frames.mp4"]
    assert numbers_of(read_clip(info, 35, 3)) == [35, 36, 37]
    assert seeks == [info.pts[30], info.pts[20]]


def test_frames_that_are_not_needed_are_not_decoded(tmp_path):
    info = index_video(
        write_video(tmp_path / "video.mp4", moving_frames(40), "libx264", g="40", bf="3")
    )
    with open_video(info.source) as (container, stream):
        frames = [
            frame.pts
            for frame in decode_packets(container.demux(stream), needed=set(info.pts[17:20]))
        ]
    assert set(info.pts[17:20]) < set(frames)
    assert len(frames) < 35


def test_a_divx_file_whose_packets_hold_two_frames(tmp_path):
    frames = moving_frames(11)
    info = index_video(write_packed(tmp_path / "packed.avi", frames))
    assert (info.num_frames, info.seekable) == (11, False)
    for index in (0, 3, 4, 9):
        decoded = read_clip(info, start=index, num_frames=1)[0].float()
        errors = [(decoded - frame.float()).abs().mean() for frame in frames]
        assert errors.index(min(errors)) == index


def test_an_avi_that_repeats_a_frame_has_timestamps_in_decoding_order(tmp_path):
    pts = [40 * number + 200 * (number > 9) for number in range(20)]
    options = {"crf": "1", "bf": "2", "g": "10", "pts": pts}
    info = index_video(write_video(tmp_path / "a.avi", numbered_frames(20), **options))
    assert numbers_of(read_clip(info, 3, 9)) == list(range(3, 12))


def test_timestamps_in_decoding_order_only_tell_frames_apart(tmp_path):
    info = index_video(write_in_decoding_order(tmp_path / "vlc.mp4", numbered_frames(40), g="20"))
    assert (info.num_frames, info.seekable, list(info.keyframes)) == (40, True, [0, 20])
    assert list(info.pts) != sorted(info.pts)
    assert numbers_of(whole(info.source)) == list(range(40))
    for start, num_frames, stride in ((0, 40, 1), (1, 9, 1), (17, 3, 2), (25, 8, 1), (39, 1, 1)):
        expected = list(range(start, start + num_frames * stride, stride))
        assert numbers_of(read_clip(info, start, num_frames, stride)) == expected
    assert [info.frame_at(seconds) for seconds in (0.0, 0.4, 0.41, 1.56, 9.0)] == [
        0,
        10,
        11,
        39,
        40,
    ]


@pytest.mark.parametrize(
    "text", ["ffconcat version 1.0\nfile a.mp4\n", "#EXTM3U\n#EXTINF:1,\na.mp4\n", "v=0\ns=-\n"]
)
def test_formats_that_name_other_files_are_refused(tmp_path, text):
    write_video(tmp_path / "a.mp4", numbered_frames(3))
    (tmp_path / "b.mp4").write_text(text)
    with pytest.raises(
        DecodeError, match=r"b\.mp4: (not one of the formats that are read|Invalid data)"
    ):
        index_video(tmp_path / "b.mp4")


def test_frames_that_grow_within_a_stream_keep_to_the_limit(tmp_path):
    small = write_video(
        tmp_path / "small.h264", moving_frames(4), "libx264", container_format="h264"
    )
    large = write_video(
        tmp_path / "large.h264", moving_frames(4, 480, 640), "libx264", container_format="h264"
    )
    path = tmp_path / "both.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    info = index_video(path)
    assert read_clip(info, 3, 4).shape == (4, 48, 64, 3)
    with pytest.raises(DecodeError, match=r"both\.h264: "):
        read_clip(info, 3, 4, max_pixels=100 * 100)
    with pytest.raises(DecodeError, match=r"both\.h264: "):
        index_video(path, ClipConfig(max_pixels=100 * 100))


@pytest.mark.parametrize("suffix", ["mp4", "h264"])  # with timestamps, and without
def test_a_video_with_a_missing_frame_is_not_read_in_order(tmp_path, suffix):
    frames = numbered_frames(12)
    info = index_video(write_video(tmp_path / f"whole.{suffix}", frames, g="4"))
    kept = [number for number in range(12) if number != 6]
    path = tmp_path / f"damaged.{suffix}"
    write_video(path, frames[kept], g="4", pts=[40 * number for number in kept])
    read = []
    with pytest.raises(DecodeError, match=rf"damaged.{suffix}: frame \d+ is missing"):
        read.extend(iterate_frames(replace(info, source=path)))
    assert numbers_of(torch.stack(read)) == kept[: 6 if info.seekable else 11]


@pytest.mark.slow
def test_frames_that_the_settings_of_an_index_allow_are_decoded_in_order(tmp_path):
    path = tmp_path / "large.mkv"
    with new_stream(path, "rawvideo", "gray", (8200, 8192)) as (container, stream):
        container.mux(stream.encode(stamp(av.VideoFrame(8192, 8200, "gray"), 0)))
        container.mux(stream.encode())
    info = index_video(path, ClipConfig(max_pixels=100_000_000))
    assert len(list(iterate_frames(info, (24, 32)))) == 1


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(
        DecodeError, match=rf"{name}` must be a regular file, but got a (FIFO|device)"
    ):
        index_video(tmp_path / name)
