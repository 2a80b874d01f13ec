"""The index is saved, and videos are indexed again when it no longer matches."""

import math
import os
import shutil
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from errno import EIO

import pytest
from safetensors.numpy import load_file

from telecine.data import (
    DataError,
    ahead_index,
    index_video,
    load_spans,
    tar_files,
    tar_members,
)
from telecine.data.ahead_index import index_ahead
from telecine.data.fingerprint import num_bytes
from telecine.data.index_paths import index_folders, single_index
from telecine.data.lazy import saved_index as saved_module
from telecine.data.lazy import shards
from telecine.data.lazy.index_file import save_tensors
from telecine.data.lazy.load_table import load_table
from telecine.data.lazy.saved_index import SavedIndex
from telecine.settings import ClipConfig
from telecine.tools.index.write_index import write_index

from .videos import numbered_frames, truncate, write_images, write_shard, write_video

ALL_FILES = ["0.png", "a.mp4", "c.mkv"]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    write_images(folder, 1)
    write_video(
        folder / "a.mp4", numbered_frames(12), g="5", pts=[40 * i + i % 3 for i in range(12)]
    )
    write_shard(folder / "b.tar", [write_video(tmp_path / "c.mkv", numbered_frames(9), g="4")])
    return folder


@pytest.fixture
def indexed(monkeypatch):
    """Record the names of the files and of the archives that are read."""
    names = []

    def index(source, *limits):
        names.append(source.name)
        return index_video(source, *limits)

    def members(path, opened):
        names.append(path.name)
        return tar_members(path, opened)

    monkeypatch.setattr(ahead_index, "index_video", index)
    monkeypatch.setattr(saved_module, "index_video", index)
    monkeypatch.setattr(tar_files, "tar_members", members)
    return names


@pytest.fixture
def load(indexed):
    """Return a function that loads data, and returns the infos and the names of the files that are read."""

    def load_again(data):
        indexed.clear()
        infos = [span.info for span in load_spans(data, ClipConfig(num_workers=0))[0]]
        return infos, sorted(indexed)

    return load_again


def shards_of(folder):
    return list((folder / ".telecine-index.d" / "shards").glob("*"))


def test_nothing_is_read_again(folder, load):
    infos, names = load(folder)
    assert names == sorted([*ALL_FILES, "b.tar"])
    assert [info.source.name for info in infos] == ALL_FILES
    (shard,) = shards_of(folder)
    assert shard.stat().st_mode == (folder / "a.mp4").stat().st_mode, "others may read it"
    written = shard.stat().st_mtime_ns
    assert load(folder) == (infos, [])
    assert infos[1:] == [index_video(info.source) for info in infos[1:]]
    assert num_bytes(infos[1].source) == (folder / "a.mp4").stat().st_size
    assert num_bytes(infos[2].source) == infos[2].source.size
    assert shard.stat().st_mtime_ns == written
    assert sorted(path.name for path in folder.iterdir()) == [
        ".b.tar.telecine-index",
        ".telecine-index.d",
        "0.png",
        "a.mp4",
        "b.tar",
    ]


@pytest.mark.parametrize(("seconds", "names"), [(0.0, []), (60.0, ["0.png", "a.mp4"])])
def test_the_index_is_saved_now_and_then(folder, monkeypatch, indexed, seconds, names):
    """A process that is killed loses what it has read since."""
    monkeypatch.setattr(shards, "_SECONDS_PER_SHARD", seconds)

    def use():
        indexed.clear()
        index_ahead([folder / "0.png", folder / "a.mp4"], SavedIndex(str(folder), ClipConfig()))
        return sorted(indexed)

    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "write", lambda _: None)  # it is killed before
        assert use() == ["0.png", "a.mp4"]
    assert use() == names
    assert use() == []


def test_an_interrupt_keeps_what_was_read(folder, load, monkeypatch):
    write_shard(folder / "c.tar", [folder / "a.mp4"])
    with monkeypatch.context() as patch:
        read = tar_files.tar_members
        patch.setattr(
            tar_files,
            "tar_members",
            lambda path, opened: 1 / 0 if path.name == "c.tar" else read(path, opened),
        )
        with pytest.raises(ZeroDivisionError):
            load(folder)
    assert load(folder)[1] == ["0.png", "a.mp4", "a.mp4", "c.mkv", "c.tar"], "b.tar was scanned"
    (folder / "a.mp4").touch()
    with monkeypatch.context() as patch:
        patch.setattr(ahead_index, "index_video", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            load(folder)
    assert load(folder)[1] == ["a.mp4"], "those that were not reached are kept"


def test_several_processes_may_save_at_once(folder, load, monkeypatch):
    all_have_looked = threading.Barrier(4)

    def index(source, *limits):
        all_have_looked.wait(60)
        return index_video(source, *limits)

    def use(_):
        return index_ahead([folder / "a.mp4"], SavedIndex(str(folder), ClipConfig()))[0]

    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(ahead_index, "index_video", index)
        assert len(list(pool.map(use, range(4)))) == 4
    assert len(shards_of(folder)) == 1, "of the same name, as it has the same files"
    assert load(folder)[1] == ["0.png", "b.tar", "c.mkv"]


def test_a_tar_file_that_the_system_cannot_read_whole_is_listed_again(
    folder, load, monkeypatch, caplog
):
    def fail(archive, opened):
        raise OSError(EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(tar_files, "tar_members", fail)
        assert [info.source.name for info in load(folder)[0]] == ["0.png", "a.mp4"]
    text = "b.tar: cannot be read after its first 0 members: [Errno 5] Input/output error"
    assert text in caplog.text
    assert "damaged" not in caplog.text
    infos, names = load(folder)
    assert [info.source.name for info in infos] == ALL_FILES
    assert names == ["b.tar", "c.mkv"]


def test_only_changed_files_are_indexed_again(folder, load, tmp_path):
    load(folder)
    write_video(folder / "a.mp4", numbered_frames(13))
    write_video(folder / "d.mp4", numbered_frames(3))
    infos, names = load(folder)
    assert [info.num_frames for info in infos] == [1, 13, 9, 3]
    assert names == ["a.mp4", "d.mp4"]
    os.utime(folder / "a.mp4", ns=(1, 1))
    moved = (folder / "d.mp4").rename(tmp_path / "d.mp4")
    assert load(folder)[1] == ["a.mp4"]
    write_video(folder / "a.mp4", numbered_frames(30))
    os.utime(folder / "a.mp4", ns=(1, 1))  # another size
    moved.rename(folder / "d.mp4")
    assert load(folder)[1] == ["a.mp4"], "a file that was gone is still in the index"
    write_shard(folder / "b.tar", [tmp_path / "c.mkv", folder / "0.png"])
    infos, names = load(folder)
    assert [info.source.name for info in infos] == ["0.png", "a.mp4", "c.mkv", "0.png", "d.mp4"]
    assert names == ["0.png", "b.tar", "c.mkv"]


def test_a_moved_folder_keeps_its_index(folder, load):
    load(folder)
    moved = folder.rename(folder.with_name("moved"))
    infos, names = load(moved)
    assert [str(info.source) for info in infos] == [
        f"{moved}/0.png",
        f"{moved}/a.mp4",
        f"{moved}/b.tar/c.mkv",
    ]
    assert names == []


@pytest.mark.parametrize("index", ["ahead", "lazy"])
def test_a_tar_file_that_changes_and_keeps_its_size_and_its_beginning(tmp_path, index):
    """Tar files are padded to 10 KiB."""
    first = write_video(tmp_path / "first.mp4", numbered_frames(90))
    assert first.stat().st_size > 4096
    archive = tmp_path / "data" / "a.tar"
    num_frames = []
    sizes = set()
    for count in (4, 7):
        name = f"{count}.mp4"
        files = [first, write_video(tmp_path / name, numbered_frames(count))]
        archive.parent.mkdir(exist_ok=True)
        with tarfile.open(archive, "w") as tar:
            for file in files:
                tar.add(file, file.name)
        sizes.add(archive.stat().st_size)
        if index == "ahead":
            spans = load_spans(archive, ClipConfig(num_workers=0))[0]
        else:
            spans = load_table(str(archive), ClipConfig(num_workers=0)).spans
        num_frames.append([span.num_frames for span in spans])
    assert len(sizes) == 1
    assert num_frames == [[90, 4], [90, 7]]


def test_files_that_cannot_be_decoded_are_tried_again(folder, load):
    (folder / "z.mp4").write_text("no video")
    for _ in range(2):
        assert "z.mp4" in load(folder)[1]
    with pytest.raises(DataError, match="No such file"):
        index_ahead([folder / "y.mp4"], SavedIndex(str(folder), ClipConfig()))


def described(description):
    return lambda path: path.write_bytes(len(description).to_bytes(8, "little") + description)


def rewritten(metadata=None, **changed):
    """Return a function that replaces columns of a shard, or its metadata."""

    def rewrite(path):
        columns = load_file(path)
        columns |= {name: columns[name] * 0 + value for name, value in changed.items()}
        save_tensors(path, columns, metadata or {})

    return rewrite


DAMAGES = {
    "truncated": lambda path: truncate(path, 0.5),
    "empty": lambda path: path.write_bytes(b""),
    "another version": rewritten(metadata={"format": "0"}),
    "no columns": described(b"{}"),
    "nested brackets": described(b"[" * 30_000),
    "a number of thousands of digits": described(b"[" + b"9" * 5000 + b"]"),
    "fewer numbers": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "no frames": rewritten(**{"exact.pts_end": 0}),
    "no number": rewritten(**{"exact.fps": math.nan}),
    "an unknown range": rewritten(**{"exact.hdr": 9}),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_outdated_file_is_replaced(folder, load, caplog, damage):
    infos, _ = load(folder)
    (shard,) = shards_of(folder)
    DAMAGES[damage](shard)
    assert load(folder) == (infos, ALL_FILES)
    assert caplog.text.count("indexing its files again") == 1
    caplog.clear()
    assert load(folder) == (infos, [])
    assert caplog.messages == []


def test_the_one_file_of_an_earlier_version_is_removed(folder, load, caplog):
    single_index(folder).touch()
    infos, _ = load(folder)
    assert caplog.text.count("is of an earlier version of telecine, and removed") == 1
    caplog.clear()
    assert load(folder) == (infos, [])
    assert caplog.messages == []
    assert not (folder / ".telecine-index").exists()


def test_indices_are_those_of_lazy_runs_and_of_later_ones(folder, load, indexed):
    load(folder / "b.tar")
    shutil.rmtree(folder / ".telecine-index.d", ignore_errors=True)
    write_index(str(folder / "b.tar"), ClipConfig())
    SavedIndex(str(folder), ClipConfig()).info(folder / "a.mp4")
    infos, names = load(folder)
    assert names == ["0.png"], "the sidecar of the tar file has its member"
    indexed.clear()
    saved_index = SavedIndex(str(folder), ClipConfig())
    assert [saved_index.info(info.source) for info in infos] == infos
    assert indexed == []
    load(folder / "a.mp4")
    assert write_index(str(folder / "a.mp4"), ClipConfig()).num_indexed == 1, "its header is read"
    assert write_index(str(folder / "a.mp4"), ClipConfig()).num_before == 1


def test_headers_and_indices_of_the_same_files_are_in_two_shards(tmp_path, load):
    video = write_video(tmp_path / "a.mp4", numbered_frames(4))
    load_table(str(video), ClipConfig(index="lazy"))
    load(video)
    assert len(list(tmp_path.glob(".*.d/shards/*"))) == 2


def test_path_of_the_folder(folder, tmp_path):
    (tmp_path / "list.csv").write_text("path\ndata/a.mp4\n")
    data = [
        folder,
        tmp_path,
        tmp_path / "list.csv",
        folder / "b.tar",
        folder / "{0..1}.tar",
        tmp_path / "*/a.mp4",
    ]
    paths = [index_folders(path)[0] for path in data]
    assert [path.parent for path in paths] == [folder, tmp_path, tmp_path, folder, folder, tmp_path]
    assert [path.name for path in paths[:2]] == [".telecine-index.d"] * 2
    assert len(set(paths)) == len(paths)
    assert all(
        path.name.startswith(".") and path.name.endswith(".telecine-index.d") for path in paths
    )


def test_names_that_are_not_utf8(tmp_path, load, monkeypatch):
    name = os.fsdecode(b"caf\xe9")
    video = write_video(tmp_path / name / f"{name}.mp4", numbered_frames(12))
    for data in (tmp_path / name, video, f"{tmp_path}/{name}/*.mp4"):
        infos, names = load(data)
        assert ([info.source for info in infos], names) == ([video], [video.name])
        assert load(data) == (infos, [])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert load(video)[0][0].source == video


def test_a_read_only_folder(folder, load, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        os, "access", lambda path, mode: mode == os.W_OK and not path.is_relative_to(folder)
    )
    infos, _ = load(folder)
    assert list(folder.glob(".*")) == []
    cache = tmp_path / "cache" / "telecine" / "indices"
    assert [path.parent for path in cache.glob("*.d/shards")] == [index_folders(folder)[0]]
    assert index_folders(folder)[0] != index_folders(folder.parent / "other")[0]
    assert load(folder) == (infos, [])
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert index_folders(folder)[0].parent == tmp_path / ".cache" / "telecine" / "indices"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load(folder)[0] == infos
    assert "the index cannot be saved" in caplog.text


def test_members_before_the_damage_of_a_tar_file_are_used(folder, load, tmp_path, caplog):
    shutil.rmtree(folder)
    shard = write_shard(
        folder / "b.tar", [write_video(tmp_path / f"{i}.mp4", numbered_frames(4)) for i in range(2)]
    )
    _, last = tar_members(shard)
    os.truncate(shard, last.offset + 99)
    (folder / "c.tar").write_text("no tar")
    assert [info.source.name for info in load(folder)[0]] == ["0.mp4"]
    assert "b.tar: damaged after its first 2 members" in caplog.text
    assert "c.tar: damaged after its first 0 members" in caplog.text
    assert "skipped 1 of 2 files" in caplog.text


def test_members_of_a_tar_file_are_listed_in_the_time_that_it_may_take(folder):
    with pytest.raises(DataError, match=r"b\.tar: not read within 1e-09 seconds"):
        load_spans(folder / "b.tar", ClipConfig(timeout=1e-9))
