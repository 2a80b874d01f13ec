"""Indexing videos, and skipping those that cannot be decoded."""

from __future__ import annotations

import logging
import struct
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from telecine.data import DataError, DecodeError, Span, VideoInfo, index, index_video, index_videos, read_clip
from telecine.data.errors import Deadline
from telecine.data.index import average_frame_rate, log_too_short, scan_packets
from telecine.settings import ClipConfig

from .videos import add_cover, damage, moving_frames, numbered_frames, numbers_of, truncate, write_audio, write_video


def _text(path: Path) -> Path:
    path.write_text("not a video\n" * 50)
    return path


def _empty(path: Path) -> Path:
    path.touch()
    return path


def _without_table(path: Path) -> Path:
    return truncate(write_video(path, numbered_frames(30)), 0.8)


def _with_table_in_front(path: Path) -> Path:
    options = {"movflags": "+faststart"}
    return truncate(write_video(path, numbered_frames(30), "libx264", container_options=options, g="5"), 0.8)


def _damaged_start(path: Path) -> Path:
    return damage(write_video(path, numbered_frames(30), "libx264"), 0.02, 0.6)


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "text.mp4": (_text, "Invalid data"),
    "empty.mp4": (_empty, "Invalid data|End of file"),
    "truncated.mp4": (_without_table, "Invalid data"),
    "truncated_late.mp4": (_with_table_in_front, "truncated after [0-9]+ frames"),
    "damaged.mp4": (_damaged_start, "Invalid data|corrupt|no frame"),
    "sound.mp4": (write_audio, "has no video stream"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_errors_give_the_reason(tmp_path: Path, name: str) -> None:
    make, reason = BAD_FILES[name]
    path = make(tmp_path / name)
    with pytest.raises(DecodeError, match=f"{name}: .*({reason})"):
        index_video(path)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [([], "no frame can be decoded"), ([SimpleNamespace(is_corrupt=True)], "its first frame is corrupt")],
)
def test_the_first_frame_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: list[Any], reason: str
) -> None:
    monkeypatch.setattr(index, "decoded_frames", lambda packets: iter(frames))
    with pytest.raises(DecodeError, match=rf"video\.mp4: {reason}"):
        index_video(write_video(tmp_path / "video.mp4", numbered_frames(3)))


def _trim(path: Path) -> Path:
    """Halve the duration in an MP4's edit list, as trimming in a video player does."""
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 12
    (duration,) = struct.unpack_from(">I", content, place)
    struct.pack_into(">I", content, place, duration // 2)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("options", [{"g": "5"}, {"g": "5", "bf": "2", "crf": "1"}])
def test_frames_left_out_by_an_edit_list_are_not_indexed(tmp_path: Path, options: dict[str, str]) -> None:
    info = index_video(_trim(write_video(tmp_path / "trimmed.mp4", numbered_frames(25), **options)))
    assert info.num_frames == 13
    assert numbers_of(read_clip(info, 0, 13)) == list(range(13))


def test_truncation_of_a_trimmed_video_is_detected(tmp_path: Path) -> None:
    options = {"movflags": "+faststart"}
    path = write_video(tmp_path / "cut.mp4", moving_frames(30), "libx264", container_options=options, g="5")
    assert index_video(_trim(path)).num_frames == 15
    with pytest.raises(DecodeError, match=r"cut\.mp4: truncated after [0-9]+ frames"):
        index_video(truncate(path, 0.6))


def test_bad_files_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [write_video(tmp_path / "good.mp4", numbered_frames(3))]
    paths += [make(tmp_path / name) for name, (make, _) in BAD_FILES.items()]
    paths += [write_video(tmp_path / "one.mp4", numbered_frames(1))]
    infos, skipped = index_videos(paths)
    assert [(info.path.name, info.num_frames) for info in infos] == [("good.mp4", 3), ("one.mp4", 1)]
    assert [skip.path.name for skip in skipped] == list(BAD_FILES)
    assert skipped[-1].reason == "has no video stream"
    assert "skipped 6 of 8 files" in caplog.text
    assert "text.mp4 (Invalid data" in caplog.text
    assert "truncated.mp4" in caplog.text
    assert "and 3 more" in caplog.text
    assert "truncated_late.mp4" not in caplog.text


def test_nothing_decodable(tmp_path: Path) -> None:
    paths = [_text(tmp_path / f"{name}.mp4") for name in "ab"] + [write_audio(tmp_path / "c.mp4")]
    message = r"one decodable file, but got 3 that.*a\.mp4 \(Invalid.*c\.mp4 \(has no video stream\)\. Check"
    with pytest.raises(DataError, match=message):
        index_videos(paths)


@pytest.mark.parametrize(("num_frames", "gop", "warns"), [(301, 600, True), (300, 600, False), (301, 300, False)])
def test_a_long_video_with_one_keyframe_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, num_frames: int, gop: int, warns: bool
) -> None:
    frames = numbered_frames(num_frames, 16, 16)
    with caplog.at_level(logging.WARNING):
        index_video(write_video(tmp_path / "long.mp4", frames, x264_params=f"keyint={gop}:scenecut=0"))
    assert ("re-encode with a short GOP" in caplog.text) == warns


def test_a_long_video_without_timestamps_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "a.h264", numbered_frames(301, 16, 16), g="10", container_format="h264")
    assert len(index_video(path).keyframes) > 1
    assert "re-encode with a short GOP" in caplog.text


def test_facts_about_a_video(tmp_path: Path) -> None:
    info = index_video(str(write_video(tmp_path / "video.mp4", numbered_frames(12), fps=20, g="5")))
    assert (info.path, info.fps, info.height, info.width) == (tmp_path / "video.mp4", 20, 48, 64)
    assert list(info.keyframes) == [0, 5, 10]
    assert [round(pts * info.time_base * 1000) for pts in info.pts] == list(range(0, 600, 50))
    raw = index_video(write_video(tmp_path / "raw.h264", numbered_frames(12), g="5", container_format="h264"))
    assert list(raw.pts) == list(range(12))
    assert raw.time_base == 1 / raw.fps


def _scan(
    monkeypatch: pytest.MonkeyPatch, codec: str, packets: list[tuple[int | None, bool, bool]], size: int = 1000
) -> Any:
    """Scan packets, each given by its timestamp, whether it is a keyframe, and whether it is discarded."""
    names = ("pts", "is_keyframe", "is_discard")
    fixed = {"size": 9, "is_corrupt": False, "dts": 0, "decode": lambda: [SimpleNamespace(key_frame=True)]}
    read = [SimpleNamespace(**fixed, **dict(zip(names, packet, strict=True))) for packet in packets]
    read.append(SimpleNamespace(size=0, pts=None))  # the flush packet at the end of a file
    container = SimpleNamespace(demux=lambda stream: read, format=SimpleNamespace(name="matroska"), size=size)
    decoder = SimpleNamespace(name=codec, has_b_frames=False)
    stream = SimpleNamespace(codec_context=decoder, time_base=0.001, average_rate=25)
    return scan_packets(Path("a.mkv"), container, stream, Deadline("a.mkv"))


def test_packets_are_scanned_in_display_order(monkeypatch: pytest.MonkeyPatch) -> None:
    packets = [(0, True, True), (40, True, False), (120, False, False), (80, False, False)]
    stamps, *_, is_complete = _scan(monkeypatch, "h264", packets)
    assert stamps == [(40, True), (80, False), (120, False)]
    assert is_complete
    assert not _scan(monkeypatch, "vp8", packets)[-1]


@pytest.mark.parametrize("pts", [None, 0])
def test_missing_and_repeated_timestamps_are_detected(monkeypatch: pytest.MonkeyPatch, pts: int | None) -> None:
    assert not _scan(monkeypatch, "h264", [(0, True, False), (pts, True, False), (40, False, False)])[-1]


@pytest.mark.parametrize(
    ("of_stream", "pts", "fps"),
    [
        (30, [0, 33, 67, 100], 30),
        (240, [0, 4], 240),
        (24, [0, 50, 70, 600], 5),
        (2000, [100, 140, 180], 25),
        (20, [40, 0, 120, 80], 25),
        (24, [100], 24),
    ],
)
def test_frame_rate(of_stream: float, pts: list[int], fps: float) -> None:
    assert average_frame_rate(pts, 0.001, of_stream) == pytest.approx(fps)


def test_the_frame_rate_is_an_average(tmp_path: Path) -> None:
    path = write_video(tmp_path / "screen.mkv", numbered_frames(4), pts=[0, 40, 80, 1520])
    assert index_video(path).fps == pytest.approx(3 / 1.52)


def test_large_frames_of_a_video_are_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(2))
    with pytest.raises(DecodeError, match=rf"^{path}: 64 x 48 pixels, more than the 3071 of `clips.max_pixels`"):
        index_video(path, ClipConfig(max_pixels=64 * 48 - 1))
    assert index_video(path, ClipConfig(max_pixels=64 * 48)).width == 64


def test_videos_that_are_too_short_are_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    def spans(name: str, *lengths: int, **facts: Any) -> list[Span]:
        info = VideoInfo(Path(name), 8, 8, 25.0, array("q", range(99)), array("q", [0]), **facts)
        return [Span(info, 10, 9 + length) for length in lengths]

    parts = [*spans("a.mp4", 3, 8), *spans("b.mp4", 3, 9), *spans("c.mp4", 1), *spans("d.png", 1, is_image=True)]
    assert log_too_short(parts, 9) == 2
    assert "2 of 3 files are shorter than 9 frames, and not used: a.mp4 (8 frames); c.mp4 (1 frames)" in caplog.text
    caplog.clear()
    assert log_too_short(parts, 1) == 0
    assert not caplog.text


def test_more_bytes_than_a_file_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    packets = [(number, True, False) for number in range(40)]
    _scan(monkeypatch, "h264", packets, size=100)
    with pytest.raises(DecodeError, match=r"a\.mkv: more frames than a file of 50 bytes can have"):
        _scan(monkeypatch, "h264", packets, size=50)


def test_more_frames_than_a_file_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MAX_FRAMES", 39)
    with pytest.raises(DecodeError, match="more frames than a file of 1000 bytes can have"):
        _scan(monkeypatch, "h264", [(number, True, False) for number in range(40)])


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_file_is_indexed_in_the_time_that_it_may_take(tmp_path: Path, codec: str) -> None:
    path = write_video(tmp_path / "slow.avi", numbered_frames(3), codec)
    with pytest.raises(DataError, match=r"slow\.avi: not read within 1e-09 seconds. Remove the file, or if") as caught:
        index_video(path, ClipConfig(timeout=1e-9))
    assert not isinstance(caught.value, DecodeError), "files that are skipped would make the data depend on the speed"


def test_the_limit_of_threads_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    with pytest.raises(DataError, match="The system starts no more threads"):
        index_videos([write_video(tmp_path / "a.mp4", numbered_frames(3))])


def test_the_picture_on_the_cover_is_not_the_video(tmp_path: Path) -> None:
    frames = moving_frames(10, height=48, width=64)
    info = index_video(add_cover(write_video(tmp_path / "film.mp4", frames)))
    assert (info.num_frames, info.height, info.width, info.fps) == (10, 48, 64, 25)
    assert torch.equal(read_clip(info, 3, 2), frames[3:5])
    with pytest.raises(DecodeError, match="has no video stream"):
        index_video(add_cover(write_audio(tmp_path / "song.mp4")))
