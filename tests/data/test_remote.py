"""Data at addresses, read from a real S3 server on loopback."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from telecine.data import (
    ClipBatchSampler,
    ClipDataset,
    ClipLoader,
    DataError,
    Span,
    find_videos,
    index_video,
    iterate_frames,
    load_spans,
    read_clip,
    remote,
)
from telecine.data.errors import Deadline, DecodeError
from telecine.data.index_cache import index_path
from telecine.data.lists import read_list
from telecine.data.remote_cache import cache_folder
from telecine.data.source import PROTOCOLS, RemotePath, TarMember, as_source
from telecine.settings import ClipConfig

from .videos import moving_frames, write_images, write_shard, write_video

CONFIG = ClipConfig(num_frames=3, height=32, width=32, num_workers=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
def folder(files: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder."""
    return shutil.copytree(files, tmp_path / "set")


@pytest.fixture
def folder_with(files: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies some of the files into a folder."""

    def copy(*names: str) -> Path:
        (tmp_path / "set").mkdir()
        for name in names:
            shutil.copy(files / name, tmp_path / "set")
        return tmp_path / "set"

    return copy


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the files that are fetched."""
    names: list[str] = []
    fetch = remote.download

    def record(file: RemotePath, *rest: Any) -> None:
        names.append(file.name)
        fetch(file, *rest)

    monkeypatch.setattr(remote, "download", record)
    return names


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Return a list of what happens in the next waits between attempts, which take no time."""
    events: list[Callable[[], None]] = []

    def sleep(seconds: float) -> None:
        if events:
            events.pop(0)()

    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: 0.0))
    return events


def names_of(spans: list[Span], root: str | Path) -> list[tuple[str, int]]:
    return [(str(span.info.path).removeprefix(str(root)), span.num_frames) for span in spans]


def test_a_folder_has_the_files_of_a_local_one(
    s3: Any, folder: Path, fetched: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    address = s3.put(folder, "set")
    (local, _), (spans, skipped) = load_spans(folder), load_spans(address)
    assert names_of(spans, address) == names_of(local, folder)
    assert (len(spans), skipped) == (5, [])
    assert f"ignored in {address}: 1 .txt" in caplog.text
    for here, there in zip(local, spans, strict=True):
        assert torch.equal(read_clip(here.info, 0, 1), read_clip(there.info, 0, 1))
    assert isinstance(spans[-1].info.path, TarMember)
    assert sorted(fetched) == ["0.png", "a.mp4", "b.MKV", "deep.mp4", "shard.tar"]
    assert [path.name for path in find_videos(f"{address}/")] == ["a.mp4", "b.MKV", "deep.mp4"]


def test_only_what_changed_is_indexed_again(s3: Any, folder: Path, fetched: list[str]) -> None:
    address = s3.put(folder, "set")
    first = load_spans(address)[0]
    saved = index_path(address)
    assert saved.parent == cache_folder().parent / "indices"
    assert saved.exists()
    for path in cache_folder().iterdir():
        path.unlink()
    fetched.clear()
    assert load_spans(address)[0] == first
    assert fetched == []
    write_video(folder / "a.mp4", moving_frames(9, seed=9))
    s3.put(folder, "set")
    assert load_spans(address)[0][0].num_frames == 9
    assert fetched == ["a.mp4"]


def test_lists_name_files_by_relative_paths_and_addresses(
    s3: Any, folder_with: Callable[..., Path], tmp_path: Path
) -> None:
    folder = folder_with("a.mp4", "b.MKV", "deep.mp4")
    rows = "path,end_frame\n./a.mp4,4\n../set/b.MKV,\nnone.mp4,\n" + "s3://bucket/set/deep.mp4,5\n"
    (folder / "scenes.csv").write_text(rows)
    address = s3.put(folder, "set")
    local = tmp_path / "local.jsonl"
    local.write_text('{"path": "s3://bucket/set/a.mp4"}\n{"path": "set/b.MKV"}\n')
    spans, skipped = load_spans(f"{address}/scenes.csv")
    assert names_of(spans, address) == [("/a.mp4", 4), ("/b.MKV", 8), ("/deep.mp4", 5)]
    assert [(str(skip.path), skip.reason) for skip in skipped] == [(f"{address}/none.mp4", "No such file")]
    assert names_of(load_spans(local)[0], tmp_path) == [("s3://bucket/set/a.mp4", 8), ("/set/b.MKV", 8)]
    (folder / "scenes.csv").write_text("path\na.mp4\n/etc/passwd\n")
    s3.put(folder, "set")
    with pytest.raises(DataError, match=r"scenes\.csv, line 3: `path` must be relative to the list.*cannot name local"):
        read_list(RemotePath(f"{address}/scenes.csv"))
    with pytest.raises(DataError, match=r"s3://bucket/gone\.csv: cannot be read .*No such file"):
        read_list(RemotePath("s3://bucket/gone.csv"))


def test_patterns(s3: Any, folder: Path) -> None:
    address = s3.put(folder, "set")
    found = names_of(load_spans(f"{address}/{{deep,a*}}.mp4")[0], address)
    assert found == [("/deep.mp4", 8), ("/a.mp4", 8)]
    assert names_of(load_spans("s3://bucket/s?t/shard.tar")[0], address) == [("/shard.tar/c.mp4", 6)]
    for missing in ("x*.mp4", "x.mp4", "{a,x}.mp4"):
        with pytest.raises(DataError, match=rf"got {address}/x.*, which does not exist"):
            load_spans(f"{address}/{missing}")
    with pytest.raises(DataError, match=r"got s3://bucket/s\*x, which does not"):
        find_videos("s3://bucket/s*x")


def test_a_web_server(s3: Any, folder_with: Callable[..., Path]) -> None:
    folder = folder_with("a.mp4", "b.MKV")
    address = s3.put(folder, "set")
    url = f"{s3.endpoint}/bucket/set"
    with pytest.raises(DataError, match=r"a\.mp4: cannot be read \(403.*Check the address and the credentials"):
        load_spans(f"{url}/a.mp4")
    for name in ("a.mp4", "b.MKV"):
        s3.files.chmod(f"{address}/{name}", "public-read")
    spans, _ = load_spans(f"{url}/{{a.mp4,b.MKV}}?token=x")
    assert [span.info.path.name for span in spans] == ["a.mp4", "b.MKV"]
    assert torch.equal(read_clip(spans[0].info, 0, 8), read_clip(index_video(folder / "a.mp4"), 0, 8))
    assert len(list(iterate_frames(f"{url}/a.mp4"))) == 8
    with pytest.raises(DataError, match=r"none\.mp4, which does not exist"):
        load_spans(f"{url}/none.mp4")


def test_the_same_clips_are_read_by_workers_with_a_cache_of_two_files(
    s3: Any, folder_with: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_with("a.mp4", "b.MKV", "deep.mp4")
    address = s3.put(folder, "set")
    pattern = "{a.mp4,b.MKV,deep.mp4}"
    sizes = [file.stat().st_size for file in folder.iterdir()]
    limit = 2 * max(sizes)
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


def test_a_server_that_returns(
    s3: Any, folder_with: Callable[..., Path], sleeps: list[Callable[[], None]], caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_with("a.mp4")
    (span, *_), _ = load_spans(s3.put(folder, "set"))
    for path in cache_folder().iterdir():
        path.unlink()
    s3.stop()
    sleeps += [lambda: None, s3.start]
    assert torch.equal(read_clip(span.info, 0, 8), read_clip(index_video(folder / "a.mp4"), 0, 8))
    waits = [record.getMessage() for record in caplog.records if "trying again" in record.getMessage()]
    assert (len(waits), sleeps) == (2, [])
    assert waits[0].startswith("s3://bucket/set/a.mp4: Could not connect")
    assert waits[1].endswith("trying again in 2 seconds")


def test_a_server_that_does_not_return(
    s3: Any, folder_with: Callable[..., Path], sleeps: list[Callable[[], None]]
) -> None:
    folder = folder_with("a.mp4")
    (span, *_), _ = load_spans(s3.put(folder, "set"))
    for path in cache_folder().iterdir():
        path.unlink()
    s3.stop()
    waits: list[int] = []
    sleeps += [partial(waits.append, number) for number in range(10)]
    with pytest.raises(DataError, match=r"^s3://bucket/set/a\.mp4: cannot be read after 7 attempts .*connect.*network"):
        ClipDataset([span], CONFIG, seed=0)[0]
    assert len(waits) == len(remote.RETRY_SECONDS) == 6
    assert not [path for path in cache_folder().iterdir() if len(path.name) >= 64]


@pytest.mark.parametrize(
    ("seconds", "attempts", "in_all"), [(0, 7, 63), (5, 7, 98), (30, 4, 127), (60, 2, 121), (400, 2, 801)]
)
def test_attempts_end_in_time_if_the_server_hangs(
    monkeypatch: pytest.MonkeyPatch, seconds: int, attempts: int, in_all: int
) -> None:
    now = [1000.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    def hang(fs: Any) -> None:
        wait(seconds)
        raise TimeoutError("no answer")

    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=wait, monotonic=lambda: now[0]))
    with pytest.raises(DataError, match=rf"cannot be read after {attempts} attempts in {in_all} seconds \(no answer\)"):
        remote.with_retries("s3://b/a", hang)


@pytest.mark.parametrize("change", ["written again", "removed"])
def test_a_file_that_changes_after_the_listing_ends_the_run(
    s3: Any, folder_with: Callable[..., Path], change: str
) -> None:
    folder = folder_with("a.mp4")
    address = s3.put(folder, "set")
    (span, *_), _ = load_spans(address)
    for path in cache_folder().iterdir():
        path.unlink()
    if change == "removed":
        s3.files.rm(f"{address}/a.mp4")
    else:
        size = (folder / "a.mp4").stat().st_size
        s3.files.pipe(f"{address}/a.mp4", bytes(size))
    with pytest.raises(DataError, match=r"a\.mp4: was changed or removed after it was listed") as caught:
        ClipDataset([span], CONFIG, seed=0)[0]
    assert not isinstance(caught.value, DecodeError)


def answer(sent: int, tells: int | None = None, version: str = "1") -> Any:
    """Return a file system whose only file has ten bytes, of which it sends another number."""

    def get_file(name: str, path: str, callback: Any) -> None:
        callback.set_size(tells)
        for _ in range(sent):
            with open(path, "ab") as file:
                file.write(b".")
            callback.relative_update(1)

    info = {"name": "b/a", "size": 10, "type": "file", "ETag": version}
    return SimpleNamespace(get_file=get_file, info=lambda url: info, _strip_protocol=lambda url: url)


def test_a_server_cannot_send_more_than_it_listed(tmp_path: Path) -> None:
    file = RemotePath("s3://b/a", 10, "1")
    remote.download(file, tmp_path / "whole", answer(10))
    servers = {"more": answer(10**9), "tells": answer(0, tells=10**15), "other": answer(10, version="2")}
    for name, server in servers.items():
        with pytest.raises(DataError, match="was changed"):
            remote.download(file, tmp_path / name, server)
    assert (tmp_path / "more").stat().st_size == 11
    assert not (tmp_path / "tells").exists()
    with pytest.raises(OSError, match="the connection ended after 4 of 10 bytes"):
        remote.download(file, tmp_path / "less", answer(4))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "https": "aiohttp", "http": "aiohttp"}
    assert tuple(packages) == tuple(remote.PACKAGES) == PROTOCOLS
    known = vars(sys.modules["fsspec.registry"])["_registry"]
    for protocol, package in packages.items():
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(known, protocol, raising=False)
        monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
        with pytest.raises(ImportError) as caught:
            load_spans(f"{protocol}://b/a.mp4")
        message = f"{protocol}://b/a.mp4 needs the package {package}, which is not installed. Run `pip install "
        assert str(caught.value) == f"{message}{package}`."


def test_wrong_requests_are_not_tried_again(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"s3://Bad_Bucket!/a: cannot be read \(Parameter validation failed.*Check the"):
        load_spans("s3://Bad_Bucket!/a")

    def full(fs: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"s3://b/a: cannot be read \(.*No space left"):
        remote.with_retries("s3://b/a", full)


def test_addresses() -> None:
    assert as_source("s3://b/a.mp4") == RemotePath("s3://b/a.mp4", 3, "x")
    assert as_source("s3:/b/a.mp4") == Path("s3:/b/a.mp4")
    assert as_source("ftp://b/a.mp4") == Path("ftp:/b/a.mp4")
    assert RemotePath("https://h/a/b.MP4?x=/c.tar").suffix == ".MP4"
    assert RemotePath("s3://b/what?.mp4").name == "what?.mp4"


class _Dripping(BaseHTTPRequestHandler):
    """Sends a byte now and then: in the head of an answer, or in the file."""

    def do_HEAD(self) -> None:
        if self.path.startswith("/head"):
            self._drip(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000)
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self._drip(b"x" * 1000)

    def _drip(self, content: bytes) -> None:
        with suppress(OSError):  # the client has left
            for byte in content:
                self.wfile.write(bytes([byte]))
                if self.server.is_over.wait(0.02):  # type: ignore[attr-defined]
                    return

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_sends_a_byte_now_and_then_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(remote, "Deadline", lambda source: Deadline(source, 0.3))
    with ThreadingHTTPServer(("127.0.0.1", 0), _Dripping) as server:
        server.is_over = Event()  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{part}.mp4"
        with pytest.raises(DataError, match=rf"{address}: not read within 0\.3 seconds"):
            load_spans(address, ClipConfig(timeout=0.3))
        server.is_over.set()  # type: ignore[attr-defined]
        server.shutdown()
    assert not list(tmp_path.rglob("*.partial"))


def test_a_fetch_ends_at_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s3://b/a: not read within 1e-09 seconds"):
        remote.download(RemotePath("s3://b/a", 10, "1"), tmp_path / "a", answer(10), Deadline("s3://b/a", 1e-9))
