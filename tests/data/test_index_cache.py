"""The index is saved, and videos are indexed again when it no longer matches."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from telecine.data import (
    DataError,
    DecodeError,
    TarMember,
    VideoInfo,
    index_cache,
    index_video,
    load_spans,
    tar_members,
)
from telecine.data.index_cache import IndexCache, index_path
from telecine.settings import ClipConfig

from .videos import numbered_frames, truncate, write_images, write_shard, write_video

ALL_FILES = ["0.png", "a.mp4", "c.mkv"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write_images(folder, 1)
    write_video(folder / "a.mp4", numbered_frames(12), g="5", pts=[40 * i + i % 3 for i in range(12)])
    write_shard(folder / "b.tar", [write_video(tmp_path / "c.mkv", numbered_frames(9), g="4")])
    return folder


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the files that are indexed."""
    names: list[str] = []

    def index(source: Path, *limits: Any) -> VideoInfo:
        names.append(source.name)
        return index_video(source)

    monkeypatch.setattr(index_cache, "index_video", index)
    return names


def load(folder: Path | str) -> list[VideoInfo]:
    return [span.info for span in load_spans(folder)[0]]


def test_nothing_is_indexed_again(folder: Path, indexed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    infos = load(folder)
    assert sorted(indexed) == ALL_FILES
    written = index_path(folder).stat().st_mtime_ns
    indexed.clear()
    monkeypatch.setattr(index_cache, "tar_members", None)  # tar files are not read again either
    assert load(folder) == infos
    assert [info.path.name for info in infos] == ALL_FILES
    assert infos[1:] == [index_video(info.path) for info in infos[1:]]
    assert indexed == []
    assert index_path(folder).stat().st_mtime_ns == written
    assert sorted(path.name for path in folder.iterdir()) == [".telecine-index", "0.png", "a.mp4", "b.tar"]


@pytest.mark.parametrize(("seconds", "saved"), [(0.0, ["a.mp4", "b.tar/c.mkv"]), (60.0, [])])
def test_the_index_is_saved_now_and_then(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, saved: list[str]
) -> None:
    monkeypatch.setattr(index_cache, "_SECONDS_BETWEEN_SAVES", seconds)
    cache = IndexCache(folder)
    (member,) = cache.members(folder / "b.tar")
    for source in (folder / "a.mp4", member):
        cache.info(source)
    archives, infos = index_cache._read(index_path(folder))
    assert list(infos) == saved, "a process that is killed now loses what it has indexed since"
    assert len(archives) == len(saved[:1])
    cache.save()
    assert len(index_cache._read(index_path(folder))[1]) == 2


def test_an_interrupt_between_tar_files_keeps_what_was_found(
    folder: Path, indexed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(folder / "c.tar", [folder / "a.mp4"])
    read = index_cache.tar_members

    def interrupt(path: Path) -> list[TarMember]:
        if path.name == "c.tar":
            raise KeyboardInterrupt
        return list(read(path))

    monkeypatch.setattr(index_cache, "tar_members", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(folder)
    archives, _ = index_cache._read(index_path(folder))
    assert list(archives) == ["b.tar"]


def test_only_changed_files_are_indexed_again(folder: Path, indexed: list[str], tmp_path: Path) -> None:
    load(folder)
    indexed.clear()
    write_video(folder / "a.mp4", numbered_frames(13))
    write_video(folder / "d.mp4", numbered_frames(3))
    assert [info.num_frames for info in load(folder)] == [1, 13, 9, 3]
    assert sorted(indexed) == ["a.mp4", "d.mp4"]
    indexed.clear()
    os.utime(folder / "a.mp4", ns=(1, 1))
    (folder / "d.mp4").unlink()
    load(folder)
    assert indexed == ["a.mp4"]
    indexed.clear()
    write_shard(folder / "b.tar", [tmp_path / "c.mkv", folder / "0.png"])
    assert [info.path.name for info in load(folder)] == ["0.png", "a.mp4", "c.mkv", "0.png"]
    assert sorted(indexed) == ["0.png", "c.mkv"]


def test_the_same_time_with_another_size_is_a_change(folder: Path, indexed: list[str]) -> None:
    load(folder)
    indexed.clear()
    time = (folder / "a.mp4").stat().st_mtime_ns
    write_video(folder / "a.mp4", numbered_frames(30))
    os.utime(folder / "a.mp4", ns=(time, time))
    load(folder)
    assert indexed == ["a.mp4"]


def test_a_moved_folder_keeps_its_index(folder: Path, indexed: list[str]) -> None:
    load(folder)
    moved = folder.rename(folder.with_name("moved"))
    indexed.clear()
    assert [str(info.path) for info in load(moved)] == [f"{moved}/0.png", f"{moved}/a.mp4", f"{moved}/b.tar/c.mkv"]
    assert indexed == []


def test_files_that_cannot_be_decoded_are_tried_again(folder: Path, indexed: list[str]) -> None:
    (folder / "z.mp4").write_text("no video")
    for _ in range(2):
        indexed.clear()
        assert [skip.path.name for skip in load_spans(folder)[1]] == ["z.mp4"]
        assert "z.mp4" in indexed
    with pytest.raises(DecodeError, match="No such file"):
        IndexCache(folder).info(folder / "y.mp4")


def _another_version(path: Path) -> None:
    with gzip.open(path) as file:
        header, rest = json.loads(file.readline()), file.read()
    with gzip.open(path, "wb") as file:
        file.write(json.dumps([0, *header[1:]]).encode() + b"\n" + rest)


def _rows(*rows: str) -> Callable[[Path], object]:
    header = json.dumps([index_cache._FORMAT_VERSION, sys.byteorder, 0, len(rows)])
    return lambda path: path.write_bytes(gzip.compress("\n".join([header, *rows]).encode()))


def _fewer_numbers(path: Path) -> None:
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:-8]))


DAMAGES = {
    "truncated": lambda path: truncate(path, 0.5),
    "not gzip": lambda path: path.write_text("index"),
    "empty": lambda path: path.write_bytes(b""),
    "no header": lambda path: path.write_bytes(gzip.compress(b"[1, 2]\n")),
    "other JSON": lambda path: path.write_bytes(gzip.compress(b"{}\n")),
    "fewer numbers": _fewer_numbers,
    "zeros at the end": lambda path: path.write_bytes(path.read_bytes()[:-30] + bytes(30)),
    "another version": _another_version,
    "nested brackets": _rows("[" * 30_000),
    "one long line": _rows("[" + "[], " * 10**6 + "1]"),
    "zeros without end": lambda path: path.write_bytes(gzip.compress(b'[4, "little", 0, 0]\n' + bytes(2**24))),
    "no frames": _rows('["a.mp4", [1, 2], {"width": 64, "height": 48, "fps": 25.0}, 0, 0]'),
    "text for a number": _rows('["a.mp4", [1, 2], {"width": "x", "height": 48, "fps": 25.0}, 1, 1]'),
    "an unknown name": _rows('["a.mp4", [1, 2], {"width": 64, "height": 48, "fps": 25.0, "length": 1}, 1, 1]'),
    "a number of thousands of digits": _rows("[" + "9" * 5000 + "]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_outdated_file_is_replaced(
    folder: Path, indexed: list[str], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    infos = load(folder)
    DAMAGES[damage](index_path(folder))
    indexed.clear()
    with caplog.at_level(logging.INFO, "telecine"):
        assert load(folder) == infos
    assert sorted(indexed) == ALL_FILES
    assert caplog.text.count("indexing the data again") == 1
    indexed.clear()
    assert load(folder) == infos
    assert indexed == []


def test_path_of_the_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\ndata/a.mp4\n")
    data = [folder, tmp_path, tmp_path / "list.csv", folder / "b.tar", folder / "{0..1}.tar", tmp_path / "*/a.mp4"]
    paths = [index_path(path) for path in data]
    assert [path.parent for path in paths] == [folder, tmp_path, tmp_path, folder, folder, tmp_path]
    assert [path.name for path in paths[:2]] == [".telecine-index"] * 2
    assert len(set(paths)) == len(paths)
    assert all(path.name.startswith(".") and path.name.endswith(".telecine-index") for path in paths)


def test_names_that_are_not_utf8(tmp_path: Path, indexed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"caf\xe9")
    video = write_video(tmp_path / name / f"{name}.mp4", numbered_frames(12))
    for data in (tmp_path / name, video, f"{tmp_path}/{name}/*.mp4"):
        indexed.clear()
        for _ in range(2):
            assert [info.path for info in load(data)] == [video]
        assert indexed == [video.name]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert [info.path for info in load(video)] == [video]


def test_a_read_only_folder(folder: Path, indexed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.W_OK and not Path(path).is_relative_to(folder))
    infos = load(folder)
    assert not (folder / ".telecine-index").exists()
    (saved,) = (tmp_path / "cache").rglob("*telecine-index")
    assert saved.parent == tmp_path / "cache" / "telecine" / "indices"
    assert index_path(folder) == saved != index_path(folder.parent / "other")
    indexed.clear()
    assert load(folder) == infos
    assert indexed == []
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert index_path(folder).parent == tmp_path / ".cache" / "telecine" / "indices"


def test_failure_to_write_is_logged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert len(load(folder)) == 3
    assert "the index cannot be saved" in caplog.text


def test_members_before_the_damage_of_a_tar_file_are_used(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(folder)
    shard = write_shard(folder / "b.tar", [write_video(tmp_path / f"{i}.mp4", numbered_frames(4)) for i in range(2)])
    _, last = tar_members(shard)
    shard.write_bytes(shard.read_bytes()[: last.offset + 99])
    (folder / "c.tar").write_text("no tar")
    assert [info.path.name for info in load(folder)] == ["0.mp4"]
    assert "b.tar: damaged after its first 2 members" in caplog.text
    assert "c.tar: damaged after its first 0 members" in caplog.text
    assert "skipped 1 of 2 files" in caplog.text


def test_a_pipe_in_place_of_the_index_is_not_waited_for(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(folder / ".telecine-index")
    load_spans(folder)
    assert "must be a regular file, but got a FIFO" in caplog.text
    assert (folder / ".telecine-index").is_file()


def test_a_sparse_index_is_not_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_spans(folder)
    os.truncate(folder / ".telecine-index", 40 * 2**30)
    load_spans(folder)
    assert "must be a file of at most 2147483648 bytes" in caplog.text
    assert (folder / ".telecine-index").stat().st_size < 2**20


def test_members_of_a_tar_file_are_listed_in_the_time_that_it_may_take(folder: Path) -> None:
    with pytest.raises(DataError, match=r"b\.tar: not read within 1e-09 seconds"):
        load_spans(folder / "b.tar", ClipConfig(timeout=1e-9))
