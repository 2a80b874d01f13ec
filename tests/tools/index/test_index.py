"""`telecine data index`: training then reads no header and no packet, and its clips are the same."""

import os
import shutil
from pathlib import Path

import pytest

from telecine.base.files import partial_path
from telecine.cli.program import run
from telecine.data import ClipDataset, DataError, index_video, load_spans
from telecine.data.errors import Deadline
from telecine.data.holdout import split_table
from telecine.data.lazy import index_file
from telecine.data.lazy import load_table as load_table_module
from telecine.data.lazy import saved_index as saved_module
from telecine.data.lazy import shards as shards_module
from telecine.data.lazy.header import read_header
from telecine.data.lazy.load_table import load_table
from telecine.data.lazy.sidecar import read_infos
from telecine.settings import ClipConfig
from telecine.tools.index import write_index as index_module

from ...data.videos import assert_same_clips, moving_frames, write_shard, write_video

CONFIG = ClipConfig(num_frames=5, height=16, width=16, index="lazy", num_workers=0)


@pytest.fixture
def data(tmp_path):
    """Twelve videos, some of them in two tar files; one has damaged frames, another one no header."""
    folder = tmp_path / "data"
    files = []
    for number in range(12):
        frames = moving_frames(10 + number, 16, 24, seed=number)
        files.append(write_video(tmp_path / f"film{number // 2}-{number}.mp4", frames, g="4"))
    content = files[7].read_bytes()
    begin = content.index(b"mdat") + 4
    files[7].write_bytes(content[:begin] + bytes(200) + content[begin + 200 :])
    files[8].write_bytes(files[8].read_bytes()[:50])
    write_shard(folder / "0.tar", files[:3])
    write_shard(folder / "1.tar", files[6:9])
    for file in (*files[3:6], *files[9:]):
        shutil.copy(file, folder)
    return folder


def clips_of(data):
    table = load_table(str(data), CONFIG)
    train, _ = split_table(table.spans, CONFIG)
    dataset = ClipDataset(train, CONFIG, saved_index=table.saved_index)
    return [dataset[index] for index in range(20)], len(table.skipped), train.sha256()


def test_clips_are_the_same_with_an_index_by_several_processes(data, tmp_path, capsys):
    clips, num_skipped, sha256 = clips_of(data)
    folder = data / ".telecine-index.d"
    shutil.rmtree(folder)
    for shard in ("0/3", "2/3"):
        run(["data", "index", str(data), "--shard", shard])
    run(["data", "index", str(data)])  # what a killed process has left
    output = capsys.readouterr().out
    assert "film3-7.mp4" in output
    assert "film4-8.mp4" in output
    run(["data", "index", str(data)])
    assert "indexed 0 files; 8 were read before" in capsys.readouterr().out
    indexed, *others = clips_of(data)
    assert_same_clips(indexed, clips)
    assert others == [num_skipped, sha256]
    assert len(list(folder.glob("??/*"))) == 1, "the reason of `film3-7`; all was indexed ahead"


def test_sidecars_move_with_their_tar_files_and_others_are_not_used(data, tmp_path):
    run(["data", "index", str(data)])
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("0.tar", ".0.tar.telecine-index"):
        shutil.copyfile(data / name, moved / name)
    assert len(load_table(str(moved), CONFIG).spans) == 3
    shutil.copyfile(data / "1.tar", moved / "0.tar")
    names = {span.source.name for span in load_table(str(moved), CONFIG).spans}
    assert names == {"film3-6.mp4", "film3-7.mp4"}
    (moved / ".0.tar.telecine-index").write_bytes(b"damaged")
    assert len(load_table(str(moved), CONFIG).spans) == 2


def test_members_that_a_run_has_indexed_are_not_read_again(data, monkeypatch):
    spans, _ = load_spans(data / "0.tar", CONFIG)
    monkeypatch.setattr(index_module, "index_video", lambda *_: pytest.fail("indexed again"))
    assert index_module.write_index(str(data / "0.tar"), CONFIG).num_indexed == 0
    assert list(read_infos(data / "0.tar")) == [span.source.offset for span in spans]


@pytest.mark.parametrize("index", ["ahead", "lazy"])
def test_of_files_that_a_run_has_indexed_the_headers_are_read(data, monkeypatch, index):
    for archive in data.glob("*.tar"):
        archive.unlink()
    if index == "ahead":
        load_spans(data, CONFIG)
    else:
        saved_index = load_table(str(data), CONFIG).saved_index
        for path in sorted(data.glob("*.mp4")):
            saved_index.info(path)
    monkeypatch.setattr(index_module, "index_video", lambda *_: pytest.fail("indexed again"))
    assert index_module.write_index(str(data), CONFIG).num_indexed == 6
    assert index_module.write_index(str(data), CONFIG).num_before == 6
    monkeypatch.setattr(load_table_module, "read_header", lambda *_: pytest.fail("read again"))
    assert len(load_table(str(data), CONFIG).spans) == 6


def test_a_file_that_cannot_be_indexed_is_read_once(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video")
    first = index_module.write_index(str(path), CONFIG)
    assert [skip.path for skip in first.skipped] == [path]
    again = index_module.write_index(str(path), CONFIG)
    assert (again.num_before, again.skipped) == (1, [])


@pytest.mark.parametrize("ends", ["a late file", "timestamps"])
def test_a_shard_leaves_out_a_late_file_and_ends_with_many_timestamps(data, monkeypatch, ends):
    for archive in data.glob("*.tar"):
        archive.unlink()
    shards = data / ".telecine-index.d" / "shards"
    shards.mkdir(parents=True)
    left = partial_path(shards / "0")  # by a process that was killed
    left.touch()
    monkeypatch.setattr(index_file, "_SECONDS_OF_A_WRITE", -1.0)
    if ends == "timestamps":
        monkeypatch.setattr(shards_module, "_TIMESTAMPS_PER_SHARD", 30)
        index_module.write_index(str(data), CONFIG)
    else:

        def index_or_fail(source, config):
            Deadline(source, -1 if source.name == "film2-5.mp4" else 60).check()
            return index_video(source, config)

        monkeypatch.setattr(index_module, "index_video", index_or_fail)
        with pytest.raises(DataError, match="data index"):
            index_module.write_index(str(data), CONFIG)
    saved_index = load_table(str(data), CONFIG).saved_index
    assert len(saved_index.shards.all()) == (1 if ends == "a late file" else 3)
    assert sum(len(shard.exact_keys) for shard in saved_index.shards.all()) == (
        5 if ends == "a late file" else 6
    )
    assert not left.exists()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted")
def test_few_shards_are_open_at_once(data, monkeypatch):
    monkeypatch.setattr(shards_module, "_NUM_OPEN", 2)
    monkeypatch.setattr(shards_module, "_FILES_PER_SHARD", 1)
    index_module.write_index(str(data), CONFIG)
    num_open = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(saved_module, "index_video", lambda *_: pytest.fail("indexed again"))
    table = load_table(str(data), CONFIG)
    infos = [table.saved_index.info(file) for file in sorted(data.glob("*.mp4"))]
    assert len(table.saved_index.shards.all()) == len(infos) == 6
    assert len(os.listdir("/proc/self/fd")) <= num_open + 2


def test_the_other_members_of_a_tar_file_keep_their_index_if_one_is_late(data, monkeypatch):
    indexed = []
    late = {"film0-0.mp4", "film0-1.mp4"}

    def index_or_fail(source, config):
        Deadline(source, -1 if source.name in late else 60).check()
        indexed.append(source.name)
        return index_video(source, config)

    monkeypatch.setattr(index_module, "index_video", index_or_fail)
    monkeypatch.setattr(
        index_module, "read_header", lambda *_: pytest.fail("sidecars have headers")
    )
    for num_kept, name in enumerate(("film1-2.mp4", "film0-1.mp4"), start=1):
        with pytest.raises(DataError, match=r"film0-0\.mp4: not read within"):
            index_module.write_index(str(data / "0.tar"), CONFIG)
        assert indexed == [name], "what an earlier attempt has kept is not read again"
        assert len(read_infos(data / "0.tar")) == num_kept
        late.discard("film0-1.mp4")
        indexed.clear()
    late.clear()
    index_module.write_index(str(data / "0.tar"), CONFIG)
    assert indexed == ["film0-0.mp4"]
    monkeypatch.setattr(saved_module, "index_video", lambda *_: pytest.fail("indexed again"))
    table = load_table(str(data / "0.tar"), CONFIG)
    numbers = [table.saved_index.info(span.source).num_frames for span in table.spans]
    assert numbers == [10, 11, 12]


@pytest.mark.parametrize("case", ["read-only data", "second path", "read-only before", "cached"])
def test_an_index_is_used_wherever_it_was_written(data, tmp_path, monkeypatch, case):
    """Of files, and of tar files that a run without an index has scanned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    can_write = {"now": case != "cached"}
    monkeypatch.setattr(os, "access", lambda path, mode: can_write["now"])
    if case == "read-only before":
        load_table(str(data), CONFIG)
        can_write["now"] = False
    run(["data", "index", str(data)])
    can_write["now"] = case not in ("read-only data", "read-only before")
    paths = [str(data)]
    if case == "second path":
        (tmp_path / "first").mkdir()
        shutil.copy(data / "film1-3.mp4", tmp_path / "first" / "new.mp4")
        paths.insert(0, str(tmp_path / "first"))
    read = []

    def read_and_note(source, config):
        read.append(source.name)
        return read_header(source, config)

    monkeypatch.setattr(load_table_module, "read_header", read_and_note)
    saved_index = load_table(paths, CONFIG).saved_index
    monkeypatch.setattr(saved_module, "index_video", lambda *_: pytest.fail("indexed again"))
    assert read == ["new.mp4"] * (case == "second path")
    table = load_table(str(data), CONFIG)
    for span in table.spans:
        if span.source.name != "film3-7.mp4":  # damaged
            assert saved_index.info(span.source).num_frames > 0


@pytest.mark.parametrize("shard", ["8/8", "1", "-1/2"])
def test_a_part_that_does_not_exist_is_refused(data, shard):
    with pytest.raises(ValueError, match=r"`shard` must be a number and the number of parts"):
        run(["data", "index", str(data), f"--shard={shard}"])
