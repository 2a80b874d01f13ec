"""Videos are indexed; what is no video is named and passed over."""

from __future__ import annotations

import logging
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from telecine.data import DataError, DecodeError, index_video, index_videos, read_clip

from .videos import damage, moving_frames, numbered_frames, numbers_of, truncate, write_audio, write_video


def _text(path: Path) -> Path:
    path.write_text("not a video\n" * 50)
    return path


def _empty(path: Path) -> Path:
    path.touch()
    return path


def _without_index(path: Path) -> Path:
    return truncate(write_video(path, numbered_frames(30)), 0.8)


def _index_in_front(path: Path) -> Path:
    options = {"movflags": "+faststart"}
    return truncate(write_video(path, numbered_frames(30), "libx264", container_options=options, g="5"), 0.8)


def _broken_stream(path: Path) -> Path:
    return damage(write_video(path, numbered_frames(30), "libx264"), 0.02, 0.6)


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "text.mp4": (_text, "Invalid data"),
    "empty.mp4": (_empty, "Invalid data|End of file"),
    "truncated.mp4": (_without_index, "Invalid data"),
    "truncated_late.mp4": (_index_in_front, "ends early, after [0-9]+ frames"),
    "broken.mp4": (_broken_stream, "Invalid data|broken|no frame"),
    "sound.mp4": (write_audio, "holds no video stream"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_say_why(tmp_path: Path, name: str) -> None:
    make, reason = BAD_FILES[name]
    path = make(tmp_path / name)
    with pytest.raises(DecodeError, match=f"{name}: .*({reason})"):
        index_video(path)


def _trim(path: Path) -> Path:
    """Let an MP4's edit list end after half of the frames, as a player's trimming does."""
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 12
    (duration,) = struct.unpack_from(">I", content, place)
    struct.pack_into(">I", content, place, duration // 2)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("options", [{"g": "5"}, {"g": "5", "bf": "2"}])
def test_an_edit_list_may_end_a_video_before_its_last_frame(tmp_path: Path, options: dict[str, str]) -> None:
    info = index_video(_trim(write_video(tmp_path / "trimmed.mp4", numbered_frames(25), **options)))
    assert info.num_frames == 13
    assert numbers_of(read_clip(info, 0, 13)) == list(range(13))


def test_a_trimmed_video_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    options = {"movflags": "+faststart"}
    path = write_video(tmp_path / "cut.mp4", moving_frames(30), "libx264", container_options=options, g="5")
    assert index_video(_trim(path)).num_frames == 15
    with pytest.raises(DecodeError, match=r"cut\.mp4: ends early, after [0-9]+ frames"):
        index_video(truncate(path, 0.6))


def test_bad_files_among_good_ones_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [write_video(tmp_path / "good.mp4", numbered_frames(3))]
    paths += [make(tmp_path / name) for name, (make, _) in BAD_FILES.items()]
    paths += [write_video(tmp_path / "one.mp4", numbered_frames(1))]
    infos, skipped = index_videos(paths)
    assert [(info.path.name, info.num_frames) for info in infos] == [("good.mp4", 3), ("one.mp4", 1)]
    assert [skip.path.name for skip in skipped] == list(BAD_FILES)
    assert "skipped 6 of 8 videos" in caplog.text
    assert "text.mp4 (Invalid data" in caplog.text
    assert "and 3 more" in caplog.text


def test_nothing_decodable(tmp_path: Path) -> None:
    paths = [_text(tmp_path / "a.mp4"), write_audio(tmp_path / "b.mp4")]
    with pytest.raises(DataError, match=r"at least one decodable video.*a\.mp4 \(Invalid.*b\.mp4 \(holds no video"):
        index_videos(paths)


@pytest.mark.parametrize(("num_frames", "gop", "warns"), [(301, 600, True), (300, 600, False), (301, 100, False)])
def test_long_video_with_one_keyframe_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, num_frames: int, gop: int, warns: bool
) -> None:
    frames = numbered_frames(num_frames, 16, 16)
    with caplog.at_level(logging.WARNING):
        index_video(write_video(tmp_path / "long.mp4", frames, x264_params=f"keyint={gop}:scenecut=0"))
    assert ("re-encode with a short GOP" in caplog.text) == warns


def test_info_is_a_value(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mp4", numbered_frames(12), g="5")
    info = index_video(path)
    assert info == index_video(path) == pickle.loads(pickle.dumps(info))
    assert hash(info) == hash(index_video(path))
    assert list(info.keyframes) == [0, 5, 10]
