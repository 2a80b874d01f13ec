"""Data at addresses, read from a real S3 server on loopback."""

import gc
import multiprocessing
import shutil
import struct
import sys
import weakref
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from threading import Event, Thread
from types import SimpleNamespace

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import HfFileSystem
from huggingface_hub.hf_api import RepoFile

from telecine.base.files import mark_output
from telecine.data import (
    ClipBatchSampler,
    ClipDataset,
    ClipLoader,
    DataError,
    TarMember,
    find_videos,
    index_video,
    iterate_frames,
    load_spans,
    read_clip,
    remote,
    remote_read,
)
from telecine.data.errors import Deadline, DecodeError
from telecine.data.index_paths import index_folders
from telecine.data.lazy import load_table as load_table_module
from telecine.data.lazy.address_book import AddressBook
from telecine.data.lazy.load_table import load_table
from telecine.data.lazy.saved_index import SavedIndex
from telecine.data.lazy.sidecar import scan_archive
from telecine.data.lists import read_list
from telecine.data.remote_cache import cache_folder
from telecine.data.source import PROTOCOLS, RemotePath
from telecine.data.tar_files import scan_tar
from telecine.settings import ClipConfig
from telecine.tools.index.write_index import write_index

from .videos import assert_same_clips, moving_frames, write_images, write_shard, write_video

VIDEOS = ["a.mp4", "b.MKV", "deep.mp4"]
CONFIG = ClipConfig(num_frames=3, height=32, width=32, num_workers=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with all kinds of files."""
    parent = tmp_path_factory.mktemp("remote")
    folder = parent / "set"
    write_images(folder / "deep", 1)
    for number, name in enumerate(("a.mp4", "b.MKV", "deep.mp4", ".hidden.mp4")):
        write_video(folder / name, moving_frames(8, seed=number), g="4")
    write_shard(folder / "shard.tar", [write_video(parent / "c.mp4", moving_frames(6, seed=5))])
    (folder / "notes.txt").write_text("")
    return folder


@pytest.fixture
def folder(files, tmp_path):
    """Return a copy of the folder."""
    return shutil.copytree(files, tmp_path / "set")


@pytest.fixture
def address(s3, folder):
    """Return the address of the same files on the server."""
    return s3.put(folder, "set")


@pytest.fixture
def span(address):
    """Return a span of `a.mp4` on the server, which is not in the cache."""
    (span,), _ = load_spans(f"{address}/a.mp4")
    empty_cache()
    return span


def collect_in_worker(address, parents):
    """Read an address in a forked worker, and end with 1 if the file system of the parent is collected."""
    remote.look_up(RemotePath(address))
    gc.collect()
    sys.exit(parents() is None)


def empty_cache():
    for path in cache_folder().iterdir():
        path.unlink()


@pytest.fixture
def fetched(monkeypatch):
    """Record the names of the files that are fetched."""
    names = []
    download = remote_read.download

    def record(file, *rest):
        names.append(file.name)
        download(file, *rest)

    monkeypatch.setattr(remote_read, "download", record)
    return names


@pytest.fixture
def clock(monkeypatch):
    """Let waits between attempts take no time. Return the clock, whose `events` happen in the next waits."""
    clock = SimpleNamespace(now=1000.0, events=[])

    def sleep(seconds):
        clock.now += seconds
        if clock.events:
            clock.events.pop(0)()

    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock.now))
    return clock


def names_of(spans, root):
    return [(str(span.source).removeprefix(str(root)), span.num_frames) for span in spans]


def test_a_folder_has_the_files_of_a_local_one(folder, address, fetched, caplog):
    spans, skipped = load_spans(address)
    local, _ = load_spans(folder)
    assert names_of(spans, address) == names_of(local, folder)
    assert (len(spans), skipped) == (5, [])
    assert f"ignored in {address}: 1 .txt" in caplog.text
    for here, there in zip(local, spans, strict=True):
        assert torch.equal(read_clip(here.info, 0, 1), read_clip(there.info, 0, 1))
    assert isinstance(spans[-1].info.source, TarMember)
    assert sorted(fetched) == ["0.png", "a.mp4", "b.MKV", "deep.mp4", "shard.tar"]
    assert [path.name for path in find_videos(f"{address}/")] == VIDEOS


def test_what_telecine_wrote_is_left_out(s3, folder, caplog):
    mark_output(folder / "run")
    shutil.copy(folder / "a.mp4", folder / "run" / "side_by_side.mp4")
    address = s3.put(folder, "set")
    assert find_videos(address) == [RemotePath(f"{address}/{name}") for name in VIDEOS]
    assert f"skipped 1 folder in {address}: {address}/run (written by telecine)" in caplog.text
    assert len(find_videos(f"{address}/run")) == 1, "a folder that is named is read"


def test_clips_drawn_by_headers_are_those_of_a_local_folder(s3, folder, address):
    config = replace(CONFIG, index="lazy")

    def clips_of(data):
        table = load_table(str(data), config)
        dataset = ClipDataset(table.spans, config, saved_index=table.saved_index)
        return torch.stack([dataset[index]["video"] for index in range(12)])

    local = clips_of(folder)
    assert torch.equal(clips_of(address), local)
    empty_cache()
    shutil.rmtree(index_folders(address)[0].parent)
    s3.put(folder, "set")  # with the sidecar of the tar file
    assert torch.equal(clips_of(address), local)
    assert not list(index_folders(address)[0].parent.glob("*.tar.telecine-index"))


@pytest.fixture
def asked(monkeypatch):
    """Record the names of the files that servers are asked about."""
    names = []
    info_of = remote.info_of

    def record(url, *rest, **options):
        names.append(url.rpartition("/")[2])
        return info_of(url, *rest, **options)

    monkeypatch.setattr(remote, "info_of", record)
    return names


def test_servers_are_asked_once_about_addresses_in_a_list(
    s3, address, fetched, folder, asked, monkeypatch
):
    """A file that changes is noticed when it is read; the next run asks again."""
    monkeypatch.setattr(load_table_module, "_CHUNK", 1)
    path = folder / "local.csv"
    lines = [f"{address}/{name}.mp4" for name in ("a", "none", "none", "a")]
    path.write_text("\n".join(["path", *lines]))
    config = replace(CONFIG, index="lazy")
    table = load_table(str(path), config)
    assert [(skip.path.name, skip.reason) for skip in table.skipped] == [
        ("none.mp4", "No such file")
    ]
    assert sorted(asked) == ["a.mp4", "none.mp4"]
    empty_cache()
    asked.clear()
    fetched.clear()
    again = load_table(str(path), config)
    assert again.spans.sha256() == table.spans.sha256()
    assert (asked, fetched) == (["none.mp4"], [])
    write_video(folder / "a.mp4", moving_frames(9, seed=9))
    s3.put(folder, "set")
    with pytest.raises(DataError, match=r"a\.mp4: was changed or removed after it was listed"):
        ClipDataset(again.spans, config, saved_index=again.saved_index)[0]
    changed = load_table(str(path), config).spans
    assert changed.num_frames.tolist() == [9, 9]
    assert changed.sha256()[1] != table.spans.sha256()[1]


@pytest.mark.parametrize("change", ["another", "none"])
def test_a_file_that_a_list_describes_and_that_changes_ends_the_run(s3, address, folder, change):
    path = folder / "local.csv"
    path.write_text(f"path,num_frames,fps\n{address}/a.mp4,8,25\n{address}/b.MKV,8,25\n")
    config = replace(CONFIG, index="lazy")
    table = load_table(str(path), config)
    dataset = ClipDataset(table.spans, config, saved_index=table.saved_index)
    clips = [dataset[index] for index in range(4)]
    assert_same_clips([dataset[index] for index in range(4)], clips)
    if change == "none":
        s3.files.rm(f"{address}/a.mp4")
    else:
        write_video(folder / "a.mp4", moving_frames(8, seed=9))
        s3.put(folder, "set")
    with pytest.raises(DataError, match=r"a\.mp4: was changed or removed after it was listed"):
        [dataset[index] for index in range(4)]


def test_an_index_is_made_ahead_with_a_question_for_each_address(address, folder, asked, capsys):
    path = folder / "local.csv"
    path.write_text(f"path\n{address}/a.mp4\n{address}/none.mp4\n{address}/b.MKV\n")
    indexed = write_index(str(path), CONFIG)
    assert sorted(asked) == ["a.mp4", "b.MKV", "none.mp4"]
    assert (indexed.num_indexed, len(indexed.skipped)) == (2, 1)


def test_progress_is_shown_while_servers_are_asked(address, folder, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if standard error were a terminal
    path = folder / "local.csv"
    path.write_text(f"path\n{address}/a.mp4\n")
    load_table(str(path), replace(CONFIG, index="lazy"))
    assert "asking servers" in capsys.readouterr().err
    load_spans(f"{address}/{{a.mp4,deep.mp4}}")
    assert "looking for files" in capsys.readouterr().err


def test_only_what_changed_is_indexed_again(s3, folder, address, fetched):
    first, _ = load_spans(address)
    assert index_folders(address)[0].parent == cache_folder().parent / "indices"
    empty_cache()
    fetched.clear()
    assert load_spans(address)[0] == first
    assert fetched == []
    write_video(folder / "a.mp4", moving_frames(9, seed=9))
    s3.put(folder, "set")
    assert load_spans(address)[0][0].num_frames == 9
    assert fetched == ["a.mp4"]


def test_lists_name_files_by_relative_paths_and_addresses(s3, folder, tmp_path):
    (folder / "scenes.csv").write_text(
        "path,end_frame\n./a.mp4,4\n../set/b.MKV,\nnone.mp4,\ns3://bucket/set/deep.mp4,5\ndeep/,\n"
    )
    (folder / "bad.csv").write_text("path\na.mp4\n/etc/passwd\n")
    address = s3.put(folder, "set")
    spans, skipped = load_spans(f"{address}/scenes.csv")
    assert names_of(spans, address) == [("/a.mp4", 4), ("/b.MKV", 8), ("/deep.mp4", 5)]
    assert [(str(skip.path), skip.reason) for skip in skipped] == [
        (f"{address}/none.mp4", "No such file"),
        (f"{address}/deep", "a folder"),
    ]
    local = tmp_path / "local.jsonl"
    local.write_text('{"path": "s3://bucket/set/a.mp4"}\n{"path": "set/b.MKV"}\n')
    assert names_of(load_spans(local)[0], tmp_path) == [
        ("s3://bucket/set/a.mp4", 8),
        ("/set/b.MKV", 8),
    ]
    with pytest.raises(
        DataError, match=r"bad\.csv, line 3: `path` must be relative to the list.*cannot name local"
    ):
        read_list(RemotePath(f"{address}/bad.csv"))
    with pytest.raises(DataError, match=r"s3://bucket/gone\.csv: cannot be read .*No such file"):
        read_list(RemotePath("s3://bucket/gone.csv"))


def test_patterns(address):
    spans, _ = load_spans(f"{address}/{{deep,a*}}.mp4")
    assert names_of(spans, address) == [("/deep.mp4", 8), ("/a.mp4", 8)]
    spans, _ = load_spans("s3://bucket/s?t/shard.tar")
    assert names_of(spans, address) == [("/shard.tar/c.mp4", 6)]
    for missing in ("x*.mp4", "x.mp4", "{a,x}.mp4"):
        with pytest.raises(DataError, match=rf"got {address}/x.*, which does not exist"):
            load_spans(f"{address}/{missing}")
    with pytest.raises(DataError, match=r"got s3://bucket/s\*x, which does not"):
        find_videos("s3://bucket/s*x")


def test_a_web_server(s3, folder, address):
    url = f"{s3.endpoint}/bucket/set"
    with pytest.raises(
        DataError, match=r"a\.mp4: cannot be read \(403.*Check the address and the credentials"
    ):
        load_spans(f"{url}/a.mp4")
    for name in ("a.mp4", "b.MKV"):
        s3.files.chmod(f"{address}/{name}", "public-read")
    spans, _ = load_spans(f"{url}/{{a.mp4,b.MKV}}?token=x")
    assert [span.source.name for span in spans] == ["a.mp4", "b.MKV"]
    assert torch.equal(
        read_clip(spans[0].info, 0, 8), read_clip(index_video(folder / "a.mp4"), 0, 8)
    )
    assert len(list(iterate_frames(f"{url}/a.mp4"))) == 8
    with pytest.raises(DataError, match=r"none\.mp4, which does not exist"):
        load_spans(f"{url}/none.mp4")


def test_the_same_clips_are_read_by_workers_with_a_cache_of_two_files(folder, address, monkeypatch):
    pattern = "{a.mp4,b.MKV,deep.mp4}"
    limit = 2 * max((folder / name).stat().st_size for name in ("a.mp4", "b.MKV", "deep.mp4"))
    monkeypatch.setenv("TELECINE_REMOTE_CACHE_GB", str(limit / 1e9))
    batches = []
    for data, num_workers in ((f"{folder}/{pattern}", 0), (f"{address}/{pattern}", 2)):
        config = ClipConfig(num_frames=3, height=32, width=32, num_workers=num_workers)
        dataset = ClipDataset(load_spans(data)[0], config, seed=0)
        batches.append(list(ClipLoader(dataset, ClipBatchSampler(range(6), 2))))
        assert sum(path.stat().st_size for path in cache_folder().glob("*")) <= limit
    for here, there in zip(*batches, strict=True):
        assert torch.equal(here["video"], there["video"])
    assert len({source for batch in batches[1] for source in batch["source"]}) == 3


def test_a_server_that_returns(s3, folder, span, clock, caplog):
    s3.stop()
    clock.events = [lambda: None, s3.start]
    assert torch.equal(read_clip(span.info, 0, 8), read_clip(index_video(folder / "a.mp4"), 0, 8))
    waits = [message for message in caplog.messages if "trying again" in message]
    assert (len(waits), clock.events) == (2, [])
    assert waits[0].startswith("s3://bucket/set/a.mp4: Could not connect")
    assert waits[1].endswith("trying again in 2 seconds")


def test_a_server_that_does_not_return(s3, span, clock):
    s3.stop()
    waits = []
    clock.events = [partial(waits.append, number) for number in range(10)]
    with pytest.raises(
        DataError,
        match=r"^s3://bucket/set/a\.mp4: cannot be read after 7 attempts .*connect.*network",
    ):
        ClipDataset([span], CONFIG, seed=0)[0]
    assert len(waits) == 6
    assert not [path for path in cache_folder().iterdir() if len(path.name) >= 64]


@pytest.mark.parametrize(
    ("seconds", "attempts", "passed"),
    [(0, 7, 63), (5, 7, 98), (30, 4, 127), (60, 2, 121), (400, 2, 801)],
)
def test_attempts_end_in_time_if_the_server_hangs(clock, seconds, attempts, passed):
    def hang(fs):
        clock.now += seconds
        raise TimeoutError("no answer")

    message = rf"cannot be read after {attempts} attempts in {passed} seconds \(no answer\)"
    with pytest.raises(DataError, match=message):
        remote.with_retries("s3://b/a", hang)


@pytest.mark.parametrize("change", ["written again", "removed"])
def test_a_file_that_changes_after_the_listing_ends_the_run(s3, folder, address, span, change):
    if change == "removed":
        s3.files.rm(f"{address}/a.mp4")
    else:
        s3.files.pipe(f"{address}/a.mp4", bytes((folder / "a.mp4").stat().st_size))
    with pytest.raises(
        DataError, match=r"a\.mp4: was changed or removed after it was listed"
    ) as caught:
        ClipDataset([span], CONFIG, seed=0)[0]
    assert not isinstance(caught.value, DecodeError)


def test_the_hub_is_asked_again_for_the_version_of_a_file():
    """Its file system answers from a listing that it keeps."""
    versions = iter("123")
    tree = [RepoFile(path="a.mp4", size=4, oid="0")]
    hub = HfFileSystem(skip_instance_cache=True)
    hub._api = SimpleNamespace(
        repo_info=lambda *_, **__: None,
        list_repo_tree=lambda *_, **__: iter(tree),
        get_paths_info=lambda *_, **__: [RepoFile(path="a.mp4", size=4, oid=next(versions))],
    )
    address = "hf://datasets/me/clips/a.mp4"
    assert [remote.info_of(address, hub, None).version for _ in range(3)] == ["1", "2", "3"]


def test_the_hub_is_asked_once_for_files_of_a_list_in_one_folder(tmp_path, monkeypatch):
    """It limits the number of requests."""
    files = [RepoFile(path=f"{number}.mp4", size=4, oid=f"version {number}") for number in range(9)]
    asked = []

    def list_tree(*_, **__):
        asked.append("the folder")
        return iter(files)

    hub = HfFileSystem(skip_instance_cache=True)
    hub._api = SimpleNamespace(repo_info=lambda *_, **__: None, list_repo_tree=list_tree)
    monkeypatch.setattr(remote, "with_retries", lambda url, call, *_: call(hub))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    book = AddressBook(SavedIndex(str(tmp_path / "list.csv"), CONFIG))
    answers = book.look_up(RemotePath(f"hf://datasets/me/clips/{file.path}") for file in files)
    assert [answer.version for answer in answers.values()] == [file.blob_id for file in files]
    assert asked == ["the folder"]


def test_a_server_that_does_not_tell_the_size(monkeypatch):
    server = SimpleNamespace(info=lambda url: {"size": None, "type": "file"})
    monkeypatch.setattr(remote, "with_retries", lambda url, call, *_: call(server))
    with pytest.raises(DecodeError, match=r"https://b/a: its server does not tell its size"):
        remote_read.open_local(RemotePath("https://b/a"), open)


FILE = RemotePath("s3://b/a", 10, "1")


def answer(sent, tells=None, version="1"):
    """Return a file system whose only file has ten bytes, of which it sends another number."""

    def get_file(name, path, callback):
        callback.set_size(tells)
        for _ in range(sent):
            with open(path, "ab") as file:
                file.write(b".")
            callback.relative_update(1)

    info = {"name": "b/a", "size": 10, "type": "file", "ETag": version}
    return SimpleNamespace(
        get_file=get_file, info=lambda url: info, _strip_protocol=lambda url: url
    )


@pytest.mark.parametrize(
    ("server", "num_bytes"),
    [(answer(10**9), 11), (answer(0, tells=10**15), None), (answer(10, version="2"), 10)],
    ids=["sends more", "tells more", "another version"],
)
def test_a_server_cannot_send_more_than_it_listed(tmp_path, server, num_bytes):
    path = tmp_path / "a"
    with pytest.raises(DataError, match="was changed"):
        remote_read.download(FILE, path, server)
    assert (path.stat().st_size if path.exists() else None) == num_bytes


def test_a_fetch_ends_with_the_connection_and_at_the_deadline(tmp_path):
    remote_read.download(FILE, tmp_path / "whole", answer(10))
    with pytest.raises(OSError, match="the connection ended after 4 of 10 bytes"):
        remote_read.download(FILE, tmp_path / "less", answer(4))
    with pytest.raises(DataError, match=r"s3://b/a: not read within 1e-09 seconds"):
        remote_read.download(FILE, tmp_path / "a", answer(10), Deadline("s3://b/a", 1e-9))


@pytest.fixture
def blocks(monkeypatch):
    """Let blocks have 4000 bytes, so that small files have several. Return the parts that are read."""
    parts = []
    read = remote_read.read_part

    def read_part(file, part, *rest):
        parts.append((file.name, part))
        return read(file, part, *rest)

    monkeypatch.setattr(remote_read, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(remote_read, "read_part", read_part)
    return parts


@pytest.mark.parametrize("name", ["a.mp4", "shard.tar"])
def test_clips_are_read_by_blocks_from_a_cache_of_three(
    folder, address, monkeypatch, fetched, blocks, name
):
    """Blocks are removed while a clip is read."""
    (span,), _ = load_spans(f"{address}/{name}")
    (local,), _ = load_spans(folder / name)
    empty_cache()
    fetched.clear()
    blocks.clear()
    monkeypatch.setenv("TELECINE_REMOTE_CACHE_GB", "12e-6")
    assert torch.equal(read_clip(span.info, 1, 5), read_clip(local.info, 1, 5))
    assert fetched == []
    assert {file for file, _ in blocks} == {name}
    assert max(len(part) for _, part in blocks) == 4000
    first = local.info.source.offset if name == "shard.tar" else 0
    assert min(part.start for _, part in blocks) == first, "a member is read without the others"
    sizes = [path.stat().st_size for path in cache_folder().iterdir() if len(path.name) == 64]
    assert 0 < sum(sizes) <= 12000


def test_the_members_of_a_tar_file_are_found_by_its_headers(s3, tmp_path, fetched, blocks):
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.mp4")
        files[-1].write_bytes(bytes(10**6))
    address = s3.put(write_shard(tmp_path / "set" / "a.tar", files).parent, "set")
    archive = RemotePath(f"{address}/a.tar")
    members, _ = scan_tar(archive, Deadline(archive), lambda member, _: member)
    assert [(member.name, member.size) for member in members] == [
        (path.name, 10**6) for path in files
    ]
    assert sum(len(part) for _, part in blocks) < 5 * 10**5
    assert fetched == []


@pytest.mark.parametrize("tables_at", ["end", "start"])
def test_headers_of_large_members_of_a_tar_file_need_about_a_request_each(
    s3, tmp_path, blocks, tables_at
):
    files = []
    for number in range(8):
        path = tmp_path / f"{number}.mp4"
        options = {"movflags": "faststart"} if tables_at == "start" else {}
        write_video(path, moving_frames(8, seed=number), container_options=options)
        content = path.read_bytes()
        place = content.index(b"mdat") - 4
        padding = struct.pack(">I4s", 10**6, b"free") + bytes(10**6 - 8)
        path.write_bytes(content[:place] + padding + content[place:])
        files.append(path)
    address = s3.put(write_shard(tmp_path / "large" / "a.tar", files).parent, "large")
    sidecar = scan_archive(RemotePath(f"{address}/a.tar"), CONFIG)
    assert sidecar.members.headers["num_frames"].tolist() == [8] * 8
    assert len(blocks) <= 16, "34 with windows of one size"


def test_a_tar_file_of_small_members_is_fetched_whole_for_their_headers(
    s3, folder, tmp_path, fetched, blocks
):
    files = [shutil.copy(folder / "a.mp4", tmp_path / f"{number}.mp4") for number in range(17)]
    address = s3.put(write_shard(tmp_path / "many" / "a.tar", files).parent, "many")
    table = load_table(f"{address}/a.tar", replace(CONFIG, index="lazy"))
    assert len(table.spans) == 17
    assert fetched == ["a.tar"]
    assert len(blocks) < 17


def test_blocks_of_two_versions_are_not_mixed(s3, folder, address, span, blocks):
    read_clip(span.info, 0, 1)
    empty_cache()
    (folder / "a.mp4").write_bytes((folder / "a.mp4").read_bytes()[:-500])
    s3.put(folder, "set")
    with pytest.raises(DataError, match=r"a\.mp4: was changed or removed after it was listed"):
        read_clip(span.info, 0, 8)
    assert not [path for path in cache_folder().iterdir() if len(path.name) >= 64]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_missing_package_is_named(monkeypatch, protocol):
    assert tuple(remote.PACKAGES) == PROTOCOLS
    package = remote.PACKAGES[protocol]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(vars(sys.modules["fsspec.registry"])["_registry"], protocol, raising=False)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    message = f"{protocol}://b/a.mp4 needs the package {package}, which is not installed. Run `pip install {package}`."
    with pytest.raises(ImportError, match=f"^{message}$"):
        load_spans(f"{protocol}://b/a.mp4")


@pytest.fixture
def gcsfs(monkeypatch):
    """Stand in for the packages of `gs://`, which are not installed."""
    monkeypatch.setitem(sys.modules, "gcsfs", SimpleNamespace(GCSFileSystem=MemoryFileSystem))
    monkeypatch.setitem(sys.modules, "gcsfs.retry", SimpleNamespace(HttpError=KeyError))
    errors = SimpleNamespace(GoogleAuthError=KeyError, TransportError=KeyError)
    monkeypatch.setitem(sys.modules, "google.auth.exceptions", errors)
    yield
    vars(sys.modules["fsspec.registry"])["_registry"].pop("gs", None)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.usefixtures("gcsfs")
def test_wrong_requests_are_not_tried_again(s3, protocol):
    for error in (OSError(28, "No space left on device"), PermissionError(13, "No access")):

        def fail(fs, error=error):
            raise error

        with pytest.raises(
            DataError, match=rf"{protocol}://b/a: cannot be read \(.*{error.strerror}"
        ):
            remote.with_retries(f"{protocol}://b/a", fail)
    with pytest.raises(
        DataError,
        match=r"s3://Bad_Bucket!/a: cannot be read \(Parameter validation failed.*Check the",
    ):
        load_spans("s3://Bad_Bucket!/a")


@contextmanager
def served(handler):
    """Run a web server, and yield its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class Lying(BaseHTTPRequestHandler):
    """Redirects to the address in its path, or claims another length than it sends."""

    def do_HEAD(self):
        kind, _, value = self.path.strip("/").removesuffix(".mp4").partition("/")
        self.send_response(302 if kind == "to" else 200)
        self.send_header("Location", value if value else self.path)
        self.send_header("Content-Length", value if kind == "length" else "0")
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        if self.path.startswith("/length"):
            with suppress(OSError):
                self.wfile.write(bytes(100))

    def log_message(self, *_): ...


class Parts(BaseHTTPRequestHandler):
    """Serves a file, and answers requests of its parts as the address says."""

    content = b""
    num_sent = 0

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        version = "2" if "changes" in self.path and self.num_sent > 3000 else "1"
        self.send_header("ETag", version)
        self.end_headers()

    def do_GET(self):
        first, _, last = (
            self.headers.get("Range", "bytes=0-999999").removeprefix("bytes=").partition("-")
        )
        part = self.content[int(first) : int(last) + 1]
        if "whole" in self.path:
            part = self.content
        self.send_response(200 if "whole" in self.path else 206)
        parts = [part]
        if "endless" in self.path:
            parts = repeat(bytes(2**16))
        else:
            self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        with suppress(OSError):
            for part in parts:
                self.wfile.write(part)
                Parts.num_sent += len(part)

    def log_message(self, *_): ...


@pytest.mark.parametrize("kind", ["good", "whole", "endless", "changes"])
@pytest.mark.usefixtures("blocks")
def test_a_web_server_answers_requests_of_parts(
    folder, tmp_path, monkeypatch, fetched, caplog, kind
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Parts, "content", (folder / "a.mp4").read_bytes())
    monkeypatch.setattr(Parts, "num_sent", 0)
    local = index_video(folder / "a.mp4")
    with served(Parts) as server:
        source = RemotePath(f"{server}/{kind}/a.mp4")
        info = replace(local, source=source)
        if kind == "changes":
            with pytest.raises(DataError, match="was changed or removed after it was listed"):
                read_clip(info, 0, 8)
        elif kind == "endless":
            with pytest.raises(DataError, match="was changed"):
                read_clip(info, 0, 8)
        else:
            assert torch.equal(read_clip(info, 0, 8), read_clip(local, 0, 8))
            read_clip(info, 2, 1)
    sends_no_parts = kind in ("whole", "endless")
    assert fetched == (["a.mp4"] if sends_no_parts else [])
    assert caplog.text.count("sends no parts of files") == sends_no_parts
    assert Parts.num_sent < 10**7


@pytest.mark.parametrize(
    ("path", "message"),
    [
        # Older releases of aiohttp say the same as of a file that does not exist.
        ("to/file:///etc/passwd", "not followed: file:///etc|which does not exist"),
        ("to/ftp://127.0.0.1/x", "not followed: ftp://|which does not exist"),
        ("to/s3://bucket/x", "not followed: s3://|which does not exist"),
        ("to/", r"cannot be read \(a redirection that is not followed"),
        ("length/-5", r"cannot be read \(400, "),
        ("length/1000000000000000000", "1000000000000000000 bytes, more than the .* of the cache"),
        ("length/200", r"cannot be read after .*not completed"),
        ("length/50", "Invalid data found|Data after"),
    ],
)
def test_a_server_that_lies(tmp_path, monkeypatch, clock, path, message):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with served(Lying) as server, pytest.raises(DataError, match=message):
        load_spans(f"{server}/{path}.mp4")
    if path != "length/50":  # the copy that is as long as the server said may stay
        assert not list(tmp_path.rglob("*.mp4"))


class Dripping(BaseHTTPRequestHandler):
    """Sends a byte now and then: in the head of an answer, or in the file."""

    is_over = Event()

    def do_HEAD(self):
        if self.path.startswith("/head"):
            self.drip(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000)
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.drip(b"x" * 1000)

    def drip(self, content):
        with suppress(OSError):  # the client has left
            for byte in content:
                self.wfile.write(bytes([byte]))
                if self.is_over.wait(0.02):
                    return

    def log_message(self, *_): ...


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_sends_a_byte_now_and_then_has_a_limit(tmp_path, monkeypatch, part):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(remote, "Deadline", lambda source: Deadline(source, 0.3))
    monkeypatch.setattr(Dripping, "is_over", Event())
    with served(Dripping) as server:
        address = f"{server}/{part}.mp4"
        with pytest.raises(DataError, match=rf"{address}: not read within 0\.3 seconds"):
            load_spans(address, ClipConfig(timeout=0.3))
        Dripping.is_over.set()
    assert not list(tmp_path.rglob("*.partial"))


def test_a_forked_worker_leaves_the_connections_of_its_parent(address):
    parents = remote.with_retries(address, weakref.ref)
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=collect_in_worker, args=(address, parents))
    worker.start()
    worker.join()
    assert worker.exitcode == 0, "s3fs closes the connections of a file system that is collected"
