"""Indexing videos, and skipping those that cannot be decoded."""

import struct
import tarfile
from array import array
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from telecine.data import (
    DataError,
    DecodeError,
    Span,
    VideoInfo,
    index,
    index_video,
    index_videos,
    read_clip,
    tar_members,
)
from telecine.data.clip_frames import ClipFrames
from telecine.data.errors import Deadline
from telecine.data.index import average_frame_rate, scan_packets
from telecine.data.span_table import SpanTable
from telecine.settings import ClipConfig

from .videos import (
    add_cover,
    damage,
    moving_frames,
    numbered_frames,
    numbers_of,
    truncate,
    write_audio,
    write_video,
)


@pytest.mark.parametrize("in_tar", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".npy", ".png"])
def test_the_digest_is_that_of_the_content(tmp_path, suffix, in_tar):
    def digest(name, number):
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".mp4":
            write_video(path, numbered_frames(5), title=f"number {number}")
        elif suffix == ".npy":
            values = np.zeros((40, 64, 64, 12), np.uint8)  # 2 MB
            values[number - 1] = 1
            np.save(path, values)
        else:
            Image.new("RGB", (64, 48), (number, 0, 0)).save(path)
        if in_tar:
            with tarfile.open(tmp_path / "a.tar", "w") as tar:
                tar.add(path, f"{name}{suffix}")
            (path,) = tar_members(tmp_path / "a.tar")
        return index_video(path, ClipConfig(channels=12 if suffix == ".npy" else 3)).digest

    first = digest("a", 1)
    assert first == digest("b", 1) != digest("a", 2)


FASTSTART = {"container_options": {"movflags": "+faststart"}, "g": "5"}


def text(path):
    path.write_text("not a video\n" * 50)
    return path


def empty(path):
    path.touch()
    return path


BAD_FILES = {
    "text.mp4": (text, "Invalid data"),
    "empty.mp4": (empty, "an empty file"),
    "truncated.mp4": (
        lambda path: truncate(write_video(path, numbered_frames(30)), 0.8),
        "Invalid data",
    ),
    "truncated_late.mp4": (
        lambda path: truncate(write_video(path, numbered_frames(30), "libx264", **FASTSTART), 0.8),
        "truncated after [0-9]+ frames",
    ),
    "damaged.mp4": (
        lambda path: damage(write_video(path, numbered_frames(30), "libx264"), 0.02, 0.6),
        "Invalid data|corrupt|no frame",
    ),
    "sound.mp4": (write_audio, "has no video stream"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_errors_give_the_reason(tmp_path, name):
    make, reason = BAD_FILES[name]
    path = make(tmp_path / name)
    with pytest.raises(DecodeError, match=f"{name}: .*({reason})"):
        index_video(path)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "no frame can be decoded"),
        ([SimpleNamespace(is_corrupt=True)], "its first frame is corrupt"),
    ],
)
def test_the_first_frame_is_decoded(tmp_path, monkeypatch, frames, reason):
    monkeypatch.setattr(index, "decode_packets", lambda packets: iter(frames))
    with pytest.raises(DecodeError, match=rf"video\.mp4: {reason}"):
        index_video(write_video(tmp_path / "video.mp4", numbered_frames(3)))


def trim(path):
    """Halve the duration in an MP4's edit list, as trimming in a video player does."""
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 12
    (duration,) = struct.unpack_from(">I", content, place)
    struct.pack_into(">I", content, place, duration // 2)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("options", [{"g": "5"}, {"g": "5", "bf": "2", "crf": "1"}])
def test_frames_left_out_by_an_edit_list_are_not_indexed(tmp_path, options):
    info = index_video(trim(write_video(tmp_path / "trimmed.mp4", numbered_frames(25), **options)))
    assert info.num_frames == 13
    assert numbers_of(read_clip(info, 0, 13)) == list(range(13))


def test_truncation_of_a_trimmed_video_is_detected(tmp_path):
    path = trim(write_video(tmp_path / "cut.mp4", moving_frames(30), "libx264", **FASTSTART))
    assert index_video(path).num_frames == 15
    with pytest.raises(DecodeError, match=r"cut\.mp4: truncated after [0-9]+ frames"):
        index_video(truncate(path, 0.6))


def test_bad_files_are_skipped(tmp_path, caplog):
    paths = [write_video(tmp_path / "good.mp4", numbered_frames(3))]
    paths += [make(tmp_path / name) for name, (make, _) in BAD_FILES.items()]
    paths += [write_video(tmp_path / "one.mp4", numbered_frames(1))]
    infos, skipped = index_videos(paths)
    assert [(info.source.name, info.num_frames) for info in infos] == [
        ("good.mp4", 3),
        ("one.mp4", 1),
    ]
    assert [skip.path.name for skip in skipped] == list(BAD_FILES)
    assert skipped[-1].reason == "has no video stream"
    (message,) = [record.message for record in caplog.records if record.name.startswith("telecine")]
    assert message.startswith(f"skipped 6 of 8 files: {tmp_path}/text.mp4 (Invalid data")
    assert "truncated.mp4" in message
    assert "truncated_late.mp4" not in message
    assert message.endswith("; and 3 more")
    reason = r"one decodable file, but got 2 that.*text\.mp4 \(Invalid.*sound\.mp4 \(has no video stream\)\. Check"
    with pytest.raises(DataError, match=reason):
        index_videos([tmp_path / "text.mp4", tmp_path / "sound.mp4"])


@pytest.mark.parametrize(
    ("name", "num_frames", "gop", "warns"),
    [
        ("a.mp4", 301, 600, True),
        ("a.mp4", 300, 600, False),
        ("a.mp4", 301, 300, False),
        ("a.h264", 301, 10, True),
    ],
)
def test_long_videos_that_cannot_be_sought_in_are_logged(
    tmp_path, caplog, name, num_frames, gop, warns
):
    """H.264 without a container has no timestamps."""
    write_video(
        tmp_path / name, numbered_frames(num_frames, 16, 16), x264_params=f"keyint={gop}:scenecut=0"
    )
    index_video(tmp_path / name)
    assert ("re-encode with a short GOP" in caplog.text) == warns


def test_the_metadata_of_a_video(tmp_path):
    info = index_video(str(write_video(tmp_path / "video.mp4", numbered_frames(12), fps=20, g="5")))
    assert (info.source, info.fps, info.height, info.width) == (tmp_path / "video.mp4", 20, 48, 64)
    assert list(info.keyframes) == [0, 5, 10]
    assert [round(pts * info.time_base * 1000) for pts in info.pts] == list(range(0, 600, 50))
    raw = index_video(
        write_video(tmp_path / "raw.h264", numbered_frames(12), g="5", container_format="h264")
    )
    assert list(raw.pts) == list(range(12))
    assert raw.time_base == 1 / raw.fps


def scan(codec, packets, size=1000):
    """Scan packets, each with its timestamp, whether it is a keyframe, and whether it is discarded."""
    read = []
    for pts, is_keyframe, is_discard in packets:
        packet = SimpleNamespace(
            pts=pts, dts=0, size=9, is_keyframe=is_keyframe, is_discard=is_discard
        )
        packet.is_corrupt = False
        read.append(packet)
    read.append(SimpleNamespace(size=0, pts=None))  # the flush packet at the end of a file
    container = SimpleNamespace(
        demux=lambda stream: read, format=SimpleNamespace(name="matroska"), size=size
    )
    decoder = SimpleNamespace(name=codec, has_b_frames=False)
    stream = SimpleNamespace(codec_context=decoder, time_base=0.001, average_rate=25)
    return scan_packets(Path("a.mkv"), container, stream, Deadline("a.mkv"))


def test_packets_are_scanned_in_display_order():
    packets = [(0, True, True), (40, True, False), (120, False, False), (80, False, False)]
    assert scan("h264", packets).frames == [(40, True), (80, False), (120, False)]
    assert scan("h264", packets).is_exact
    assert not scan("vp8", packets).is_exact, "it has frames that are not displayed"
    for pts in (None, 40):  # without a timestamp, and with that of another frame
        assert not scan("h264", [*packets, (pts, True, False)]).is_exact


def test_more_than_a_file_can_have(monkeypatch):
    packets = [(number, True, False) for number in range(40)]
    scan("h264", packets, size=100)
    with pytest.raises(DecodeError, match=r"a\.mkv: more frames than a file of 50 bytes can have"):
        scan("h264", packets, size=50)
    monkeypatch.setattr(index, "MAX_FRAMES", 39)
    with pytest.raises(DecodeError, match="more frames than a file of 1000 bytes can have"):
        scan("h264", packets)


@pytest.mark.parametrize(
    ("stream_fps", "pts", "fps"),
    [
        (30, [0, 33, 67, 100], 30),
        (240, [0, 4], 240),
        (24, [0, 50, 70, 600], 5),
        (2000, [100, 140, 180], 25),
        (20, [40, 0, 120, 80], 25),
        (24, [100], 24),
    ],
)
def test_frame_rate(stream_fps, pts, fps):
    assert average_frame_rate(pts, 0.001, stream_fps) == pytest.approx(fps)


def test_the_frame_rate_is_an_average(tmp_path):
    path = write_video(tmp_path / "screen.mkv", numbered_frames(4), pts=[0, 40, 80, 1520])
    assert index_video(path).fps == pytest.approx(3 / 1.52)


def test_large_frames_of_a_video_are_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered_frames(2))
    with pytest.raises(
        DecodeError, match=rf"^{path}: 64 x 48 pixels, more than the 3071 of `clips.max_pixels`"
    ):
        index_video(path, ClipConfig(max_pixels=64 * 48 - 1))
    assert index_video(path, ClipConfig(max_pixels=64 * 48)).width == 64


def test_videos_that_are_too_short_are_counted_and_named(caplog):
    lengths = {"a.mp4": (3, 8), "b.mp4": (3, 9), "c.mp4": (1,), "d.png": (1,)}
    spans = []
    for name, span_lengths in lengths.items():
        pts = array("q", range(99))
        info = VideoInfo(Path(name), 8, 8, 25.0, pts, array("q", [0]), is_image=name == "d.png")
        spans += [Span(info, 10, 9 + length) for length in span_lengths]
    table = SpanTable.of(spans)
    assert table.log_too_short(ClipFrames(9)) == 2
    assert caplog.messages == [
        "2 of 3 files have no clip of 9 frames, and are not used: a.mp4 (8 frames); c.mp4 (1 frames)"
    ]
    assert table.log_too_short(ClipFrames(1)) == 0
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_file_is_indexed_in_the_time_that_it_may_take(tmp_path, codec):
    path = write_video(tmp_path / "slow.avi", numbered_frames(3), codec)
    with pytest.raises(
        DataError, match=r"slow\.avi: not read within 1e-09 seconds. Remove the file, or if"
    ) as caught:
        index_video(path, ClipConfig(timeout=1e-9))
    assert not isinstance(caught.value, DecodeError), (
        "files that are skipped would make the data depend on the speed"
    )


@pytest.mark.parametrize("message", ["can't start new thread", "another error"])
def test_the_limit_of_threads_is_named(tmp_path, monkeypatch, message):
    def refuse(thread):
        raise RuntimeError(message)

    monkeypatch.setattr("threading.Thread.start", refuse)
    is_limit = message.startswith("can't")
    with pytest.raises(
        DataError if is_limit else RuntimeError,
        match="starts no more threads" if is_limit else "^another error$",
    ):
        index_videos([write_video(tmp_path / "a.mp4", numbered_frames(3))])


def test_the_picture_on_the_cover_is_not_the_video(tmp_path):
    frames = moving_frames(10)
    info = index_video(add_cover(write_video(tmp_path / "film.mp4", frames)))
    assert (info.num_frames, info.height, info.width, info.fps) == (10, 48, 64, 25)
    assert torch.equal(read_clip(info, 3, 2), frames[3:5])
    with pytest.raises(DecodeError, match="has no video stream"):
        index_video(add_cover(write_audio(tmp_path / "song.mp4")))
