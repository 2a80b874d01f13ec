"""Copies of remote files are kept in a folder of bounded size."""

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from telecine.data import DataError, remote_read
from telecine.data.remote_cache import DEFAULT_GB, RemoteCache, cache_folder, max_cache_bytes
from telecine.data.source import RemotePath


class Cache(RemoteCache):
    """A cache of 30 bytes, which records what is fetched."""

    def __init__(self, folder, max_bytes=30):
        super().__init__(folder, max_bytes)
        self.fetched: list[str] = []

    def use(self, name, size=10):
        """Use a file, whose content is its name, and make later uses later ones."""

        def fetch(path):
            path.write_text(name.ljust(size))
            self.fetched.append(name)

        copy = self.copy(hash_of(name), size, fetch)
        for path in self.folder.iterdir():
            status = path.stat()
            os.utime(path, (status.st_atime - 10, status.st_mtime - 10))
        return copy

    def names(self):
        """Return the names of the files that are in the cache or being fetched, sorted."""
        return sorted(
            path.read_text().strip() for path in self.folder.iterdir() if len(path.name) >= 64
        )


def hash_of(name):
    return hashlib.sha256(name.encode()).hexdigest()


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def test_the_files_that_were_not_used_for_longest_are_removed(cache):
    for name in ("a", "b", "c", "a", "d"):
        assert cache.use(name).read_text().strip() == name
    assert cache.names() == ["a", "c", "d"]
    cache.use("e", 20)
    assert cache.names() == ["d", "e"]
    assert cache.fetched == ["a", "b", "c", "d", "e"]


def test_files_that_are_not_copies_are_neither_counted_nor_removed(cache):
    others = ["thesis.pdf", "a.partial", "b.10.partial", f"{'0' * 64}.pdf", "folder/thesis.pdf"]
    for name in others:
        path = cache.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (0, 0))
    for name in ("a", "b", "c", "d"):
        cache.use(name)
    assert [(cache.folder / name).stat().st_size for name in others] == [1000] * 5
    assert {"b", "c", "d"} < set(cache.names())
    assert "a" not in cache.names()


def test_what_a_killed_process_left_is_removed(cache):
    copy = cache.use("a")
    copy.rename(copy.with_name(f"{copy.name}.10.partial"))
    for digits in ("00", copy.name[:2]):  # of another lock, and of the same
        (cache.folder / f"{digits}{'0' * 62}.mp4.25.partial").touch()
    (cache.folder / "total").write_text("60")
    cache.use("a")
    assert cache.names() == ["a"]


def test_files_that_are_being_fetched_keep_their_room(cache):
    """A lock of 256 is held while a file is fetched. Its name has two digits of the hash."""
    cache.use("a")
    other = cache.folder / f"{'0' * 64}.25.partial"
    other.touch()
    (cache.folder / "total").write_text("35")
    with FileLock(cache.folder / "00.lock"):
        thread = threading.Thread(target=cache.use, args=("b",))
        thread.start()
        thread.join(0.3)
        assert cache.names() == [""], "`a` is removed, which is not enough"
        assert thread.is_alive()
        assert other.exists()
    thread.join()
    assert cache.names() == ["b"]


def test_two_that_need_a_file_fetch_it_once(cache):
    fetched: list[Path] = []

    def fetch(path):
        time.sleep(0.1)
        path.write_bytes(bytes(10))
        fetched.append(path)

    threads = [
        threading.Thread(target=cache.copy, args=(hash_of("a"), 10, fetch)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1


def test_nothing_is_left_of_a_failed_fetch(cache):
    def fail(path):
        path.write_bytes(b"half")
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"):
        cache.copy(hash_of("a"), 10, fail)
    assert cache.names() == []
    assert (cache.folder / "total").read_text() == "0"


def test_a_full_folder_of_many_files_gets_more_room_at_once(tmp_path):
    cache = Cache(tmp_path, max_bytes=2000)
    cache.use("a")
    for number in range(199):
        (tmp_path / f"{number:064x}").write_bytes(bytes(10))
    (tmp_path / "total").write_text("")  # as a killed process may leave it
    cache.use("b")
    assert len(cache.names()) == 199, "two of 200 are removed, since counting takes long"
    assert (tmp_path / "total").read_text() == "1990"
    (tmp_path / "total").write_text("1000")
    cache.use("c")
    cache.use("d")
    assert len(cache.names()) == 201, "not counted while there is room"
    assert (tmp_path / "total").read_text() == "1020"


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Let a server send ten bytes for each file, into a cache of 30 bytes; record the paths that are written."""
    monkeypatch.setenv("TELECINE_REMOTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TELECINE_REMOTE_CACHE_GB", "30e-9")
    paths: list[Path] = []

    def download(file, path, *_):
        path.write_bytes(bytes(file.size or 0))
        paths.append(path)

    monkeypatch.setattr(remote_read, "with_retries", lambda url, call, *_: call(None))
    monkeypatch.setattr(remote_read, "download", download)
    return paths


def file(name, size=10, version="1"):
    return RemotePath(f"s3://bucket/{name}", size, version)


def test_names_do_not_lead_out_of_the_folder(served, tmp_path):
    for name in (
        "../../x.mp4",
        "/etc/passwd",
        "..",
        "a\0.mp4",
        "x.mp4/../../y",
        "é\udc80.PNG",
        "x." + "y" * 4000,
    ):
        remote_read.open_local(file(name, 1), Path.read_bytes)
    remote_read.open_local(file("..", 1, version="2"), Path.read_bytes)
    assert {path.parent for path in served} == {tmp_path / "cache" / "telecine"}
    assert len({path.name for path in served}) == 8, "another version is another file"
    assert {path.name[64:] for path in served} == {".mp4.1.partial", ".png.1.partial", ".1.partial"}


def test_a_file_that_is_larger_than_the_cache(served):
    message = r"s3://bucket/a: 31 bytes, more than the 30 bytes of the cache\. Set TELECINE_REMOTE_CACHE_GB higher"
    with pytest.raises(DataError, match=message):
        remote_read.open_local(file("a", 31), Path.read_bytes)


def test_a_copy_that_is_removed_before_it_is_opened_is_fetched_again(served):
    num_removals = 2

    def opening(path):
        if len(served) <= num_removals:
            path.unlink()
        return path.read_bytes()

    assert remote_read.open_local(file("a"), opening) == bytes(10)
    assert len(served) == 3
    num_removals = 99
    with pytest.raises(
        DataError, match=r"s3://bucket/b: was removed from the cache 10 times .*set TELECINE_REMOTE"
    ):
        remote_read.open_local(file("b"), opening)


@pytest.mark.parametrize("text", ["many", "0", "-1", "nan", "inf"])
def test_the_size_is_a_number(text, monkeypatch):
    monkeypatch.setenv("TELECINE_REMOTE_CACHE_GB", text)
    with pytest.raises(
        ValueError,
        match="`TELECINE_REMOTE_CACHE_GB` must be a number of gigabytes above 0, but got",
    ):
        max_cache_bytes()


def test_the_default_folder_and_size(monkeypatch, tmp_path):
    for name in ("TELECINE_REMOTE_CACHE", "TELECINE_REMOTE_CACHE_GB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "telecine" / "remote"
    monkeypatch.setenv("TELECINE_REMOTE_CACHE", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen" / "telecine", "a folder of its own"
    assert max_cache_bytes() == DEFAULT_GB * 10**9
