"""Training from headers: the clips are those of an index, whatever is indexed first."""

import csv
import itertools
import os
import pickle
import shutil
import time
from dataclasses import replace
from errno import EIO
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from torch.utils.data import DataLoader

from telecine.data import (
    ClipDataset,
    DataError,
    DecodeError,
    errors,
    index_video,
    load_spans,
    tar_files,
    tar_members,
)
from telecine.data.holdout import split_table
from telecine.data.lazy import address_book, shards, sidecar
from telecine.data.lazy import load_table as load_table_module
from telecine.data.lazy import members as members_module
from telecine.data.lazy import saved_index as saved_module
from telecine.data.lazy.header import read_header
from telecine.data.lazy.index_file import IndexFile
from telecine.data.lazy.load_table import load_table
from telecine.data.lazy.saved_index import SavedIndex
from telecine.data.lazy.string_column import StringColumn
from telecine.data.validation import index_validation_spans, leave_out
from telecine.settings import ClipConfig

from ..indexed import split_videos
from ..videos import (
    assert_same_clips,
    moving_frames,
    truncate,
    write_images,
    write_shard,
    write_video,
)

CONFIG = ClipConfig(num_frames=5, height=16, width=16, index="lazy", num_workers=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with twelve videos of six films, and four images."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(12):
        frames = moving_frames(10 + number, 16, 24, seed=number)
        write_video(folder / f"film{number // 2}" / f"scene{number}.mp4", frames, g="4")
    write_images(folder / "stills", 4, height=16, width=24)
    return folder


@pytest.fixture
def data(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    return tmp_path / "data"


def lazy_dataset(path, config=CONFIG, seed=0):
    table = load_table(str(path), config)
    train, _ = split_table(table.spans, config)
    return ClipDataset(train, config, seed=seed, saved_index=table.saved_index)


def write_list(folder):
    path = folder / "scenes.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "start", "end", "start_frame", "end_frame", "group"])
        for number in range(12):
            name = f"film{number // 2}/scene{number}.mp4"
            writer.writerow([name, "", 0.3, "", "", number // 3])
            writer.writerow([name, "", "", 2, "", number // 3])
    return path


def write_shards(folder):
    for part in range(2):
        files = sorted(folder.rglob("*.mp4"))[part::2]
        write_shard(folder / "shards" / f"{part}.tar", files)
    return folder / "shards"


def write_shards_of_scenes(folder):
    for number, file in enumerate(sorted(folder.rglob("*.mp4"))):
        write_shard(folder / "shards" / f"{number:03d}.tar", [file])
    return folder / "shards"


def spoil(path):
    """Damage the frames of a video, but not its header."""
    content = path.read_bytes()
    begin = content.index(b"mdat") + 4
    path.write_bytes(content[:begin] + bytes(200) + content[begin + 200 :])


@pytest.mark.parametrize("changes", [{}, {"weighting": "files", "holdout": "folder"}, {"fps": 12}])
@pytest.mark.parametrize(
    "kind", [lambda folder: folder, write_list, write_shards, write_shards_of_scenes]
)
def test_clips_are_those_of_an_index_if_headers_are_exact(data, kind, changes):
    path = kind(data)
    config = replace(CONFIG, image_ratio=0.0, **changes)
    table = load_table(str(path), config)
    train, held_out = split_table(table.spans, config)
    spans, _ = load_spans(path, config)
    indexed_train, indexed_held_out = split_videos(spans, config)

    def frames_of(spans):
        return [(span.source, span.first_frame, span.last_frame) for span in spans]

    assert frames_of(held_out) == frames_of(indexed_held_out)
    assert frames_of(train) == frames_of(indexed_train)
    lazy = ClipDataset(train, config, saved_index=table.saved_index)
    ahead = ClipDataset(indexed_train, config)
    assert_same_clips([lazy[index] for index in range(4)], [ahead[index] for index in range(4)])


def test_clips_do_not_depend_on_what_was_indexed_before(data):
    """With numbers of frames that a list states wrongly, in another order, in workers, and after a new start."""
    rows = ["path,num_frames,fps"]
    rows += [f"film{n // 2}/scene{n}.mp4,{7 + 5 * n},25" for n in range(12)]
    path = data / "wrong.csv"
    path.write_text("\n".join(rows))
    first = lazy_dataset(path)
    clips = [first[index] for index in range(8)]
    again = lazy_dataset(path)
    assert_same_clips([again[index] for index in reversed(range(8))], clips[::-1])
    shutil.rmtree(path.with_name(again._saved_index.folder.name))
    loader = DataLoader(lazy_dataset(path), batch_size=None, sampler=range(8), num_workers=2)
    assert_same_clips(list(loader), clips)
    assert len({clip["start"] for clip in clips}) > 3


def test_only_files_that_clips_are_drawn_from_are_indexed(data):
    dataset = lazy_dataset(data)
    sources = {dataset[index]["source"] for index in (0, 0, 1)}
    saved = list((data / ".telecine-index.d").glob("??/*"))
    assert len(saved) == len(sources) < 3
    copy = pickle.loads(pickle.dumps(lazy_dataset(data)))
    assert {copy[0]["source"], copy[1]["source"]} == sources
    assert sorted(saved) == sorted((data / ".telecine-index.d").glob("??/*"))
    saved[0].write_bytes(b"damaged")
    again = lazy_dataset(data)
    assert_same_clips([again[0], again[1]], [dataset[0], dataset[1]])


@pytest.mark.parametrize(
    "described", [b"3", b"null", b'"text"', b'{"__metadata__": null}', b'{"__metadata__": "x"}']
)
def test_descriptions_that_are_no_objects_are_damage(data, described, caplog):
    shards = write_shards(data)
    before = load_table(str(data), CONFIG).spans.sha256()
    content = len(described).to_bytes(8, "little") + described
    index = data / ".telecine-index.d"
    damaged = [*index.glob("shards/*"), *index.glob("members/*"), *shards.glob(".*.telecine-index")]
    assert len(damaged) == 4
    for path in damaged:
        path.write_bytes(content)
    for num_warnings in (1, 0):
        caplog.clear()
        assert load_table(str(data), CONFIG).spans.sha256() == before
        assert caplog.text.count("is damaged or of another version") == num_warnings


def test_damaged_files_are_replaced_and_logged_once(data, caplog):
    for number in range(0, 12, 2):
        spoil(data / f"film{number // 2}" / f"scene{number}.mp4")
    truncate(data / "film0" / "scene1.mp4", 0.1)
    table = load_table(str(data), CONFIG)
    assert [skipped.path.name for skipped in table.skipped] == ["scene1.mp4"]
    caplog.clear()
    dataset = lazy_dataset(data)
    clips = [dataset[index] for index in range(24)]
    assert {int(clip["source"].rpartition("scene")[2][:-4]) % 2 for clip in clips} == {1}
    names = [record.getMessage() for record in caplog.records if "replacing" in record.message]
    assert 0 < len(names) == len(set(names))
    other = lazy_dataset(data)
    assert_same_clips([other[23]], [clips[23]])


def test_files_without_an_index_are_tried_once_and_do_not_end_a_run(data, monkeypatch):
    for path in sorted(data.rglob("*.mp4"))[:-1]:
        content = path.read_bytes()
        begin = content.index(b"mdat") + 4
        path.write_bytes(content[:begin] + bytes(200) + content[begin + 200 :])
    tried = []

    def index_and_note(source, *limits):
        tried.append(source)
        return index_video(source, *limits)

    monkeypatch.setattr(saved_module, "index_video", index_and_note)
    dataset = lazy_dataset(data)
    clips = [dataset[index] for index in range(12)]
    assert len({clip["source"] for clip in clips}) == 1
    again = lazy_dataset(data)
    assert_same_clips([again[index] for index in range(12)], clips)
    assert len(tried) == len(set(tried))
    small = load_table(str(data), replace(CONFIG, max_pixels=10**6))
    with pytest.raises(DecodeError):
        small.saved_index.info(tried[0])
    assert len(tried) > len(set(tried)), "a failure is that of its settings"


@pytest.mark.parametrize("first", [{"max_pixels": 300}, {"channels": 5}, "error"])
def test_a_sidecar_keeps_nothing_that_only_one_run_decided(data, monkeypatch, first):
    shards = write_shards(data)

    def fail_once(archive, opened):
        yield from islice(tar_members(archive, opened), 5)
        monkeypatch.undo()
        raise OSError(EIO, "Input/output error")

    if first == "error":
        monkeypatch.setattr(tar_files, "tar_members", fail_once)
        assert len(load_table(str(shards), CONFIG).spans) == 11
    else:
        with pytest.raises(DataError, match="12 that cannot be read"):
            load_table(str(shards), replace(CONFIG, **first))
    table = load_table(str(shards), CONFIG)
    assert (len(table.spans), table.skipped) == (12, [])
    assert len(list(shards.glob(".*.tar.telecine-index"))) == 2


def test_the_indices_that_were_used_last_stay_in_memory(data, monkeypatch):
    monkeypatch.setattr(saved_module, "_NUM_RECENT", 2)
    saved_index = SavedIndex(str(data), CONFIG)
    files = sorted(data.rglob("*.mp4"))
    read = []
    monkeypatch.setattr(saved_index, "saved_info", lambda _, source: read.append(source))
    for number in (0, 1, 1, 0, 2, 0):
        saved_index.info(files[number])
    assert read == [files[0], files[1], files[2]]


def test_members_of_tar_files_are_mapped_until_one_changes(data, monkeypatch):
    shards = write_shards(data)
    first = lazy_dataset(shards)
    clips = [first[index] for index in range(8)]
    read = []

    def read_and_note(archive):
        read.append(archive)
        return sidecar.read_sidecar(archive)

    monkeypatch.setattr(members_module, "read_sidecar", read_and_note)
    again = lazy_dataset(shards)
    assert again.spans.sha256() == first.spans.sha256()
    assert not again.spans.files.headers.flags.writeable, "columns are mapped"
    again.spans.files.release_pages()
    assert_same_clips([again[index] for index in range(8)], clips)
    assert read == []
    write_shard(shards / "1.tar", sorted(data.rglob("*.mp4"))[:4])
    assert len(load_table(str(shards), CONFIG).spans) == 10
    assert len(read) == 2
    for mapped in (shards / ".telecine-index.d" / "members").iterdir():
        mapped.write_bytes(mapped.read_bytes()[:-9])
        os.utime(mapped, (0, 0))
    assert len(load_table(str(shards), CONFIG).spans) == 10
    assert len(read) == 4
    assert len(list((shards / ".telecine-index.d" / "members").iterdir())) == 1


@pytest.mark.parametrize("has_arrays", [False, True])
def test_members_of_tar_files_between_others_are_looked_up_at_once(data, caplog, has_arrays):
    files = sorted(data.rglob("*.mp4"))
    for number in range(0, 12, 4):
        write_shard(data / f"film{number // 2}" / "first.tar", files[number : number + 2])
    write_shard(data / "a.tar", [])
    if has_arrays:
        np.save(data / "a.npy", np.zeros((6, 16, 24, 3), np.uint8))
        write_shard(data / "stills" / "b.tar", [data / "a.npy"])
    config = replace(CONFIG, holdout="file")
    table = load_table(str(data), config)
    lazy = [(span.source, span.num_frames) for span in table.spans]
    ahead = [(span.source, span.num_frames) for span in load_spans(data, config)[0]]
    assert lazy == ahead
    members = data / ".telecine-index.d" / "members"
    assert len(list(members.glob("*"))) == (0 if has_arrays else 1)
    assert ("each run scans 1 of 5 tar files, as they have arrays" in caplog.text) == has_arrays
    again = load_table(str(data), config)
    assert [(span.source, span.num_frames) for span in again.spans] == ahead


def test_members_are_mapped_as_soon_as_all_tar_files_can_be_read(data, monkeypatch, caplog):
    shards = write_shards(data)

    def fail_once(archive, opened):
        yield from islice(tar_members(archive, opened), 5)
        monkeypatch.undo()
        raise OSError(EIO, "Input/output error")

    monkeypatch.setattr(tar_files, "tar_members", fail_once)
    load_table(str(shards), CONFIG)
    assert "until all can be read; 1 cannot" in caplog.text
    caplog.clear()
    table = load_table(str(shards), CONFIG)
    assert not table.spans.files.headers.flags.writeable, "columns are mapped"
    assert "each run" not in caplog.text


def test_tar_files_are_scanned_by_processes_with_the_same_result(data, monkeypatch, caplog):
    shards = write_shards_of_scenes(data)
    truncate(shards / "007.tar", 0.5)
    alone = load_table(str(shards), CONFIG)
    shutil.rmtree(shards)
    write_shards_of_scenes(data)
    truncate(shards / "007.tar", 0.5)
    caplog.clear()
    here = os.getpid()

    def scan_elsewhere(archive, config):
        assert os.getpid() != here
        return sidecar.scan_archive(archive, config)

    monkeypatch.setattr(members_module, "scan_archive", scan_elsewhere)
    table = load_table(str(shards), replace(CONFIG, num_workers=1))
    assert table.spans.sha256() == alone.spans.sha256()
    assert table.skipped == alone.skipped
    assert "007.tar: damaged after its first" in caplog.text
    assert len(list(shards.glob(".*.tar.telecine-index"))) == 12


def test_scans_of_tar_files_do_not_take_the_time_of_each_other(data, monkeypatch):
    shards = write_shards_of_scenes(data)
    clock = SimpleNamespace(now=0.0)

    def read_slowly(archive, opened):
        clock.now += 0.3  # of a disk that three other processes use
        yield from tar_members(archive, opened)

    monkeypatch.setattr(errors, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(tar_files, "tar_members", read_slowly)
    monkeypatch.setattr(members_module, "num_processors", lambda: 2)
    config = replace(CONFIG, timeout=0.1)
    with pytest.raises(DataError, match=r"not read within 0\.1 seconds"):
        load_table(str(shards), config)
    assert len(load_table(str(shards), replace(config, num_workers=1)).spans) == 12


def test_the_file_of_members_that_another_process_has_written_meanwhile_stays(data, monkeypatch):
    """It may be mapped, and so may one that was looked up a month ago; what others remove meanwhile is left out."""
    shards = write_shards(data)
    members = shards / ".telecine-index.d" / "members"
    members.mkdir(parents=True)
    (members / "removed").symlink_to("nowhere")
    old = members / "old"
    old.touch()
    month_ago = time.time() - 40 * 24 * 3600
    os.utime(old, (month_ago, month_ago))
    written = {}

    def read_after_another_process(archive):
        monkeypatch.undo()
        load_table(str(shards), CONFIG)
        (path,) = set(members.iterdir()) - {old, members / "removed"}
        written[path] = path.stat().st_ino
        return sidecar.read_sidecar(archive)

    monkeypatch.setattr(members_module, "read_sidecar", read_after_another_process)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    load_table(str(shards), CONFIG)
    assert {path: path.stat().st_ino for path in written} == written
    assert old.exists()


@pytest.mark.parametrize("names", [["a.mp4", "b/c.mp4", "/d/e/f.mp4", "g.mp4"], ["é/ü.mp4", "ö"]])
def test_file_names_are_what_follows_the_last_slash(names):
    texts = StringColumn.of(names)
    expected = "".join(f"{name.rpartition('/')[2]}\n" for name in names)
    assert b"".join(texts.file_names(np.arange(len(names)))) == expected.encode()


def test_changed_files_are_noticed_and_copies_are_not(data, tmp_path):
    before = load_table(str(data), CONFIG).spans.sha256()
    shutil.copytree(data, tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    assert load_table(str(tmp_path / "copy"), CONFIG).spans.sha256() == before
    frames = moving_frames(10, 16, 24, seed=99)
    write_video(data / "film0" / "scene0.mp4", frames, g="4")
    assert load_table(str(data), CONFIG).spans.sha256()[1] != before[1]


def test_files_with_validation_frames_are_not_trained_on(data, tmp_path, caplog):
    shutil.copy(data / "film0" / "scene0.mp4", tmp_path / "copy.mp4")
    train = load_table([str(data), str(data / "film1")], CONFIG).spans
    assert len(train) == 16, "the same frames count once"
    held_out = load_table(str(tmp_path / "copy.mp4"), CONFIG).spans
    names = [span.source.name for span in leave_out(train, held_out)]
    assert len(names) == 15
    assert "scene0.mp4" not in names
    assert leave_out(held_out, held_out) is held_out
    assert "validation is on what is trained on" in caplog.text


def test_links_to_a_file_are_the_file(folder, tmp_path):
    (tmp_path / "links").symlink_to(folder)
    rows = ["path,num_frames,fps"]
    for number in range(12):
        name = f"film{number // 2}/scene{number}.mp4,{10 + number},25"
        rows += [f"{folder}/{name}", f"links/{name}"]
    path = tmp_path / "list.csv"
    path.write_text("\n".join(rows))
    config = replace(CONFIG, holdout="file")
    table = load_table(str(path), config)
    train, held_out = split_table(table.spans, config)

    def real_files(spans):
        return {span.source.resolve() for span in spans}

    assert real_files(train).isdisjoint(real_files(held_out))
    linked = load_table(str(tmp_path / "links" / "film0"), CONFIG).spans
    left = real_files(leave_out(table.spans, linked))
    assert left == real_files(table.spans) - real_files(linked)
    videos = load_table([str(folder / "film0"), str(tmp_path / "links" / "film0")], CONFIG).spans
    assert len(videos) == 2


def test_only_videos_are_as_a_list_states(folder, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((6, 16, 24, 3), np.uint8))
    rows = ["path,num_frames,fps", f"{folder}/film0/scene0.mp4,70,25", "a.npy,60,25"]
    rows += [f"{folder}/stills/0.png,1,", f"{folder}/stills/1.png,7,25"]
    path = tmp_path / "list.csv"
    path.write_text("\n".join(rows))
    spans = load_table(str(path), CONFIG).spans
    assert spans.num_frames.tolist() == [70, 6, 1, 1]
    assert spans.is_image.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("numbers", "num_frames"),
    [
        (("12.0", "25", "24.0", "16"), 12),
        (("12.5", "25", "24", "16"), 10),
        (("12", "25", "10000000000", "16"), 10),
        (("nan", "25", "24", "16"), 10),
    ],
)
def test_numbers_that_a_list_states_are_whole_and_bounded(folder, tmp_path, numbers, num_frames):
    row = ",".join((f"{folder}/film0/scene0.mp4", *numbers))
    path = tmp_path / "list.csv"
    path.write_text(f"path,num_frames,fps,width,height\n{row}\n")
    assert load_table(str(path), CONFIG).spans.num_frames.tolist() == [num_frames]


def test_lines_of_one_file_that_contradict_each_other_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(load_table_module, "_CHUNK", 2)
    first, second = (f"{folder}/film0/scene{number}.mp4" for number in range(2))
    line = f"{first},5,12,25\n"
    # In one chunk of lines, in two that follow each other, and in two that do not.
    for rows in (line, f"{second},0,11,25\n{line}", 3 * f"{second},0,11,25\n" + line):
        path = tmp_path / "list.csv"
        path.write_text(f"path,start_frame,num_frames,fps\n{first},0,10,25.001\n{rows}")
        match = (
            r"`num_frames` must be the same .*, but got 10 and 12 for .*scene0.mp4. .* whole file"
        )
        with pytest.raises(DataError, match=match):
            load_table(str(path), CONFIG)


def test_lines_that_leave_out_the_size_of_a_file_contradict_no_others(folder, tmp_path):
    path = tmp_path / "list.csv"
    name = f"{folder}/film0/scene0.mp4"
    path.write_text(f"path,num_frames,fps,width,height\n{name},10,25,24,16\n{name},10,25,,\n")
    assert load_table(str(path), CONFIG).spans.num_frames.tolist() == [10, 10]


def test_a_file_of_distant_lines_is_read_once(data, tmp_path, monkeypatch):
    monkeypatch.setattr(load_table_module, "_CHUNK", 2)
    truncate(data / "film0" / "scene1.mp4", 0.1)
    read = []

    def read_and_note(source, config):
        read.append(source.name)
        return read_header(source, config)

    monkeypatch.setattr(load_table_module, "read_header", read_and_note)
    lines = [
        f"{data}/film{number // 2}/scene{number}.mp4,{first_frame}\n"
        for first_frame in range(3)
        for number in range(6)
    ]
    path = tmp_path / "list.csv"
    path.write_text("path,start_frame\n" + "".join(lines))
    table = load_table(str(path), CONFIG)
    assert sorted(read) == [f"scene{number}.mp4" for number in range(6)]
    assert [skip.path.name for skip in table.skipped] == ["scene1.mp4"]
    assert table.spans.num_frames.tolist() == [
        10 + number - first for first in range(3) for number in range(6) if number != 1
    ]


@pytest.mark.parametrize(
    ("spoiled", "expected"), [([], [6]), ([6], [7]), ([6, 7, 8, 9, 10, 11], [0])]
)
def test_another_held_out_file_is_validated_on_in_place_of_a_damaged_one(data, spoiled, expected):
    for number in spoiled:
        spoil(data / f"film{number // 2}" / f"scene{number}.mp4")
    table = load_table(str(data), CONFIG)
    spans = index_validation_spans(table.spans, table.saved_index, CONFIG, 1)
    names = [f"scene{number}.mp4" for number in expected]
    assert [span.source.name for span in spans] == names


def test_each_of_several_paths_has_files(folder, tmp_path):
    with pytest.raises(DataError, match=f"with videos, images or arrays .*, but got {tmp_path}"):
        load_table([str(tmp_path), str(folder)], CONFIG)
    assert list(tmp_path.iterdir()) == [], "no headers of nothing are kept"


def test_headers_are_kept_after_an_interrupt(data, monkeypatch):
    read = []
    limit = 5

    def read_some(source, config):
        if len(read) == limit:
            raise KeyboardInterrupt
        read.append(source)
        return read_header(source, config)

    monkeypatch.setattr(load_table_module, "read_header", read_some)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        load_table(str(data), CONFIG)
    limit = 9
    with pytest.raises(KeyboardInterrupt):
        load_table(str(data), CONFIG)
    limit = 99
    assert len(load_table(str(data), CONFIG).spans) == 16
    assert len(read) == len(set(read)) == 16


def test_the_headers_of_an_earlier_version_are_used(data, monkeypatch):
    first = load_table(str(data), CONFIG).spans.sha256()
    folder = data / ".telecine-index.d"
    (shard,) = folder.glob("shards/*")
    shard.rename(folder / "headers")
    monkeypatch.setattr(load_table_module, "read_header", lambda *_: pytest.fail("read again"))
    assert load_table(str(data), CONFIG).spans.sha256() == first


def test_headers_are_kept_each_minute(data, monkeypatch):
    monkeypatch.setattr(shards, "_SECONDS_PER_SHARD", 0.0)
    load_table(str(data), CONFIG)
    num_read = [len(IndexFile(path).column("key")) for path in data.glob(".*.d/shards/*")]
    assert num_read == [1] * 16, "each file is written once"


def test_answers_of_servers_are_kept_if_another_one_fails(tmp_path, monkeypatch):
    path = tmp_path / "list.csv"
    path.write_text("path\ns3://b/a.mp4\ns3://b/c.mp4\n")
    asked = []

    def answer_or_fail(file, deadline, from_listing):
        asked.append(file.name)
        if file.name == "c.mp4":
            raise DataError("no answer")
        return replace(file, size=1, version="v")

    monkeypatch.setattr(address_book, "look_up", answer_or_fail)
    for names in (["a.mp4", "c.mp4"], ["c.mp4"]):
        asked.clear()
        with pytest.raises(DataError, match="no answer"):
            load_table(str(path), CONFIG)
        assert sorted(asked) == names


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_only_columns_that_describe_files_are_read(folder, tmp_path, caplog, monkeypatch, suffix):
    path = tmp_path / f"list{suffix}"
    columns = {"path": [f"{folder}/film0/scene0.mp4"], "num_frames": [12], "fps": [25.0]}
    columns |= {"width": [24], "height": [16], "caption": ["a film"]}
    table = pyarrow.table(columns)
    write = pyarrow.csv.write_csv if suffix == ".csv" else pyarrow.parquet.write_table
    write(table, path)
    asked = []
    read_batches = pyarrow.parquet.ParquetFile.iter_batches

    def record(file, *arguments, columns, **options):
        asked.extend(columns)
        return read_batches(file, *arguments, columns=columns, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", record)
    assert load_table(str(path), CONFIG).spans.num_frames.tolist() == [12]
    assert caplog.messages == [f"{path}: left out 1 column that no clip needs: `caption`"]
    assert "caption" not in asked


def test_a_list_of_another_suffix_is_no_broken_video(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a.mp4\nb.mp4\n")
    for read in (load_table, load_spans):
        with pytest.raises(DataError, match=r"A list is \.csv, \.jsonl or \.parquet with a column"):
            read(str(path), CONFIG)


def test_files_without_suffixes_that_a_list_names_are_checked_first(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path\none\ntwo\n")
    for read in (load_table, load_spans):
        with pytest.raises(
            DataError, match=r"one \(No such file or directory\); .* Check that they"
        ):
            read(str(path), CONFIG)


def test_nothing_to_read_is_an_error(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"one decodable file, but got 1 that cannot be read"):
        load_table(str(tmp_path), CONFIG)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".png"])
def test_headers_tell_what_the_index_does(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        (path,) = write_images(tmp_path, 1)
    else:
        codec = {".webm": "libvpx-vp9", ".avi": "mpeg4"}.get(suffix, "libx264")
        options = {}
        if codec == "libx264":  # an MP4 states a longer duration because of B-frames
            options = {"preset": "ultrafast", "bf": "2"}
        write_video(path, moving_frames(30, 48, 64), codec, **options)
    header = read_header(path, CONFIG)
    info = index_video(path)
    assert header[:2] == (info.num_frames, pytest.approx(info.fps))
    assert header[2:5] == (info.width, info.height, info.is_image)


@pytest.mark.parametrize("flags", ["frag_keyframe", "frag_keyframe+empty_moov+skip_trailer"])
def test_headers_count_all_fragments(tmp_path, flags):
    frames = moving_frames(30, 16, 24)
    options = {"movflags": flags}
    path = write_video(tmp_path / "a.mp4", frames, g="10", container_options=options)
    assert read_header(path, CONFIG)[:2] == (30, 25)


def test_tables_that_claim_more_frames_than_bytes_are_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_frames(5, 16, 24))
    content = bytearray(path.read_bytes())
    begin = content.index(b"stsz") + 4
    content[begin + 4 : begin + 12] = bytes(4) + (2**22 - 1).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"its tables claim 4194303 frames in \d+ bytes"):
        read_header(path, CONFIG)


@pytest.mark.parametrize("read", [read_header, index_video])
def test_the_time_limit_of_a_file_begins_once(tmp_path, monkeypatch, read):
    """Also if its header states no number of frames, so that all packets are read after it."""
    path = write_video(tmp_path / "a.ts", moving_frames(30, 16, 24))

    def read_by_clock(timeout):
        """Read the file with a clock that moves on by a second at each look."""
        seconds = itertools.count()
        clock = SimpleNamespace(monotonic=lambda: float(next(seconds)))
        monkeypatch.setattr(errors, "time", clock)
        read(path, replace(CONFIG, timeout=timeout))
        return next(seconds)

    num_looks = read_by_clock(timeout=1e9)
    with pytest.raises(DataError, match=r"a\.ts: not read within"):
        read_by_clock(timeout=num_looks - 1.5)


def test_progress_is_shown(data, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if standard error were a terminal
    monkeypatch.setattr(load_table_module, "_CHUNK", 10)
    table = load_table(str(data), CONFIG)
    shown = capsys.readouterr().err
    assert "reading headers" in shown
    assert "reading headers after those of 10 files" in shown
    index_validation_spans(table.spans, table.saved_index, CONFIG, 2)
    assert "indexing held-out files" in capsys.readouterr().err
    shards = write_shards(data)
    load_table(str(shards), CONFIG)
    shown = capsys.readouterr().err
    assert "reading sidecars" in shown
    assert "scanning tar files" in shown
    load_table(str(shards), CONFIG)
    assert capsys.readouterr().err == "", "all is saved"
