"""What indexing found out is kept, and made anew where it no longer holds."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from telecine.data import (
    DecodeError,
    RememberedIndex,
    VideoInfo,
    index_path,
    index_video,
    load_spans,
    members_of,
    remembered,
)

from .videos import numbered_frames, truncate, write_images, write_shard, write_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write_images(folder, 1)
    write_video(folder / "a.mp4", numbered_frames(12), g="5", pts=[40 * i + i % 3 for i in range(12)])
    write_shard(folder / "b.tar", [write_video(tmp_path / "c.mkv", numbered_frames(9), g="4")])
    return folder


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which files are really indexed."""
    names: list[str] = []

    def index(source: Path) -> VideoInfo:
        names.append(source.name)
        return index_video(source)

    monkeypatch.setattr(remembered, "index_video", index)
    return names


def start(folder: Path) -> list[VideoInfo]:
    return [span.info for span in load_spans(folder)[0]]


ALL = ["0.png", "a.mp4", "c.mkv"]


def test_the_second_start_indexes_nothing(folder: Path, indexed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    infos = start(folder)
    assert sorted(indexed) == ALL
    written = index_path(folder).stat().st_mtime_ns
    indexed.clear()
    monkeypatch.setattr(remembered, "members_of", None)  # nor is a tar file read again
    assert start(folder) == infos
    assert [info.path.name for info in infos] == ALL
    assert infos[1:] == [index_video(info.path) for info in infos[1:]]
    assert indexed == []
    assert index_path(folder) == folder / ".telecine-index"
    assert index_path(folder).stat().st_mtime_ns == written
    assert sorted(path.name for path in folder.iterdir()) == [".telecine-index", "0.png", "a.mp4", "b.tar"]


def test_only_what_changed_is_indexed_again(folder: Path, indexed: list[str], tmp_path: Path) -> None:
    start(folder)
    indexed.clear()
    write_video(folder / "a.mp4", numbered_frames(13))
    write_video(folder / "d.mp4", numbered_frames(3))
    assert [info.num_frames for info in start(folder)] == [1, 13, 9, 3]
    assert sorted(indexed) == ["a.mp4", "d.mp4"]
    indexed.clear()
    os.utime(folder / "a.mp4", ns=(1, 1))
    (folder / "d.mp4").unlink()
    start(folder)
    assert indexed == ["a.mp4"]
    indexed.clear()
    write_shard(folder / "b.tar", [tmp_path / "c.mkv", folder / "0.png"])
    assert [info.path.name for info in start(folder)] == ["0.png", "a.mp4", "c.mkv", "0.png"]
    assert sorted(indexed) == ["0.png", "c.mkv"]


def test_a_folder_that_moves_keeps_its_index(folder: Path, indexed: list[str]) -> None:
    start(folder)
    moved = folder.rename(folder.with_name("moved"))
    indexed.clear()
    assert [str(info.path) for info in start(moved)] == [f"{moved}/0.png", f"{moved}/a.mp4", f"{moved}/b.tar/c.mkv"]
    assert indexed == []


def test_files_that_cannot_be_decoded_are_tried_again(folder: Path, indexed: list[str]) -> None:
    (folder / "z.mp4").write_text("no video")
    for _ in range(2):
        indexed.clear()
        assert [skip.path.name for skip in load_spans(folder)[1]] == ["z.mp4"]
        assert "z.mp4" in indexed
    with pytest.raises(DecodeError, match="No such file"):
        RememberedIndex(folder).info(folder / "y.mp4")


def _another_version(path: Path) -> None:
    with gzip.open(path) as file:
        header, rest = json.loads(file.readline()), file.read()
    with gzip.open(path, "wb") as file:
        file.write(json.dumps({**header, "format": [0, "little"]}).encode() + b"\n" + rest)


def _short(path: Path) -> None:
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:-8]))


DAMAGES = {
    "cut off": lambda path: truncate(path, 0.5),
    "no gzip": lambda path: path.write_text("index"),
    "empty": lambda path: path.write_bytes(b""),
    "no header": lambda path: path.write_bytes(gzip.compress(b"[1, 2]\n")),
    "other JSON": lambda path: path.write_bytes(gzip.compress(b"{}\n")),
    "fewer stamps": _short,
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-30] + bytes(30)),
    "another version": _another_version,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_outdated_file_is_made_anew(
    folder: Path, indexed: list[str], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    infos = start(folder)
    DAMAGES[damage](index_path(folder))
    indexed.clear()
    with caplog.at_level(logging.INFO, "telecine"):
        assert start(folder) == infos
    assert sorted(indexed) == ALL
    assert caplog.text.count("indexed anew") == 1
    indexed.clear()
    assert start(folder) == infos
    assert indexed == []


def test_places(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\ndata/a.mp4\n")
    places = [folder, tmp_path, tmp_path / "list.csv", folder / "b.tar", folder / "{0..1}.tar", tmp_path / "*/a.mp4"]
    paths = [index_path(place) for place in places]
    assert [path.parent for path in paths] == [folder, tmp_path, tmp_path, folder, folder, tmp_path]
    assert len(set(paths)) == len(paths)
    assert all(path.name.startswith(".") and path.name.endswith("telecine-index") for path in paths)


def test_a_folder_that_cannot_be_written_to(
    folder: Path, indexed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(folder))
    infos = start(folder)
    assert not (folder / ".telecine-index").exists()
    assert [path.parent for path in (tmp_path / "cache").rglob("*telecine-index")] == [
        tmp_path / "cache" / "telecine" / "indices"
    ]
    indexed.clear()
    assert start(folder) == infos
    assert indexed == []


def test_nowhere_to_write_is_said_and_survived(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert len(start(folder)) == 3
    assert "the index of the data is not kept" in caplog.text


def test_a_broken_tar_file_gives_what_comes_before(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(folder)
    shard = write_shard(folder / "b.tar", [write_video(tmp_path / f"{i}.mp4", numbered_frames(4)) for i in range(2)])
    _, last = members_of(shard)
    shard.write_bytes(shard.read_bytes()[: last.offset + 99])
    (folder / "c.tar").write_text("no tar")
    assert [info.path.name for info in start(folder)] == ["0.mp4"]
    assert "b.tar: is broken after its first 2 videos and images" in caplog.text
    assert "c.tar: is broken after its first 0 videos and images" in caplog.text
    assert "skipped 1 of 2 videos" in caplog.text
