"""From a place with data to the frames to train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from telecine.data import DataError, load_spans

from .videos import numbered_frames, write_images, write_shard, write_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path, 1)
    write_video(tmp_path / "a.mp4", numbered_frames(50), g="10")
    write_shard(tmp_path / "shards" / "0.tar", [write_video(tmp_path / "b.mp4", numbered_frames(20))])
    return tmp_path


def places(path: Path | str) -> list[tuple[str, int, int]]:
    return [(span.info.path.name, span.first_frame, span.last_frame) for span in load_spans(path)[0]]


def test_places(folder: Path) -> None:
    assert places(folder / "a.mp4") == [("a.mp4", 0, 49)]
    assert places(folder) == [("0.png", 0, 0), ("a.mp4", 0, 49), ("b.mp4", 0, 19), ("b.mp4", 0, 19)]
    assert places(folder / "shards") == places(f"{folder}/shards/{{0..0}}.tar") == [("b.mp4", 0, 19)]


def test_a_list_with_stretches(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "list.csv").write_text(
        "path,start,end\na.mp4,0,0.4\nb.mp4,,\na.mp4,1,99\n0.png,,\ngone.mp4,,\na.mp4,2,3\n"
    )
    spans, skipped = load_spans(folder / "list.csv")
    found = [(span.info.path.name, span.first_frame, span.last_frame) for span in spans]
    assert found == [("a.mp4", 0, 9), ("b.mp4", 0, 19), ("a.mp4", 25, 49), ("0.png", 0, 0)]
    assert [skip.path.name for skip in skipped] == ["gone.mp4", "a.mp4"]
    assert "skipped 1 of 4 videos" in caplog.text
    assert "skipped 1 of 5 stretches" in caplog.text
    assert "a.mp4 (begins at 2.0 s, after the end of the video)" in caplog.text


def test_a_stretch_between_two_frames_is_said_to_hold_none(folder: Path) -> None:
    (folder / "list.csv").write_text(
        "path,start,end,start_frame,end_frame\na.mp4,0.01,0.02,,\na.mp4,1,,,20\na.mp4,,0.4,30,\na.mp4,,,60,70\na.mp4,,,,\n"
    )
    spans, skipped = load_spans(folder / "list.csv")
    assert [(span.first_frame, span.last_frame) for span in spans] == [(0, 49)]
    assert [skip.reason for skip in skipped] == [
        "holds no frame from 0.01 s to 0.02 s",
        "holds no frame from 1.0 s to frame 20",
        "holds no frame from frame 30 to 0.4 s",
        "begins at frame 60, after the end of the video",
    ]


def test_a_list_of_stretches_that_are_all_too_late(folder: Path) -> None:
    (folder / "list.jsonl").write_text('{"path": "a.mp4", "start_frame": 50}')
    with pytest.raises(
        DataError, match=r"`val_data` must be .* inside their videos, but got .*a\.mp4 \(begins at frame 50"
    ):
        load_spans(folder / "list.jsonl", name="val_data")
