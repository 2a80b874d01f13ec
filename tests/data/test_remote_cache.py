"""Copies of remote files are kept in a folder of bounded size."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import FileLock

from telecine.data import DataError, remote
from telecine.data.remote import _cache_folder, _lock_of, _max_bytes, open_local
from telecine.data.source import RemotePath

T = TypeVar("T")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache of 30 bytes."""
    monkeypatch.setenv("TELECINE_REMOTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TELECINE_REMOTE_CACHE_GB", "30e-9")
    return tmp_path / "cache" / "telecine"


def open_cached(file: RemotePath, fetch: Callable[[Path], object], opening: Callable[[Path], T]) -> T:
    """Open a file that `fetch` fetches instead of a server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "_with_retries", lambda url, call, *_: call(None))
        patch.setattr(remote, "_download", lambda file, path, *_: fetch(path))
        return open_local(file, opening)


def file(name: str, size: int = 10) -> RemotePath:
    return RemotePath(f"s3://bucket/{name}", size, "1")


def use(file: RemotePath, fetched: list[str] | None = None) -> bytes:
    """Read a file, whose content is its name; note whether it is fetched, and make later uses later ones."""

    def fetch(path: Path) -> None:
        path.write_bytes(os.fsencode(file.name.ljust(file.size or 0)))
        if fetched is not None:
            fetched.append(file.name)

    content = open_cached(file, fetch, Path.read_bytes)
    for path in _cache_folder().iterdir():
        status = path.stat()
        os.utime(path, (status.st_atime - 10, status.st_mtime - 10))
    return content


def copies(cache: Path) -> list[str]:
    return sorted(path.read_text().strip() for path in cache.iterdir() if len(path.name) >= 64)


def test_the_files_that_were_not_used_for_longest_are_removed(cache: Path) -> None:
    fetched: list[str] = []
    for name in ("a", "b", "c", "a", "d"):
        assert use(file(name), fetched).strip() == name.encode()
    assert copies(cache) == ["a", "c", "d"]
    use(file("e", 20), fetched)
    assert copies(cache) == ["d", "e"]
    assert fetched == ["a", "b", "c", "d", "e"]
    use(RemotePath("s3://bucket/d", 10, "2"), fetched)
    assert fetched[-1] == "d", "another version is another file"


def test_names_do_not_lead_out_of_the_folder(cache: Path) -> None:
    for name in ("../../x.mp4", "/etc/passwd", "..", "a\0.mp4", "x.mp4/../../y", "é\udc80.PNG", "x." + "y" * 4000):
        use(file(name, 1))
    names = [path.name for path in cache.iterdir() if len(path.name) >= 64]
    assert len(names) == 7
    assert all(re.fullmatch(r"[0-9a-f]{64}(\.mp4|\.png)?", name) for name in names)
    assert [path.name for path in cache.parent.iterdir()] == ["telecine"]
    assert [path.name for path in cache.parent.parent.iterdir()] == ["cache"]


def test_files_that_are_not_copies_are_neither_counted_nor_removed(cache: Path) -> None:
    names = ["thesis.pdf", "a.partial", "b.10.partial", f"{'0' * 64}.pdf", "folder/thesis.pdf"]
    others = [folder / name for folder in (cache.parent, cache) for name in (*names, f"{'0' * 64}", "total")][:-2]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (0, 0))
        os.utime(path.parent, (0, 0))
    for name in ("a", "b", "c", "d"):
        use(file(name))
    assert [path.stat().st_size for path in others] == [1000] * 12
    found = [path.read_text().strip() for path in cache.iterdir() if path.is_file() and path.stat().st_size == 10]
    assert sorted(found) == ["b", "c", "d"]


def test_a_file_that_is_larger_than_the_cache(cache: Path) -> None:
    message = r"s3://bucket/a: 31 bytes, more than the 30 bytes of the cache\. Set TELECINE_REMOTE_CACHE_GB higher"
    with pytest.raises(DataError, match=message):
        use(file("a", 31))


def test_what_a_killed_process_left_is_removed(cache: Path) -> None:
    use(file("a"))
    (copy,) = (path for path in cache.iterdir() if len(path.name) >= 64)
    copy.rename(copy.with_name(f"{copy.name}.10.partial"))
    (cache / f"{'0' * 64}.mp4.25.partial").touch()
    (cache / "total").write_text("35")
    assert use(file("a", 10)) == b"a".ljust(10)
    assert copies(cache) == ["a"]


def test_files_that_are_being_fetched_keep_their_room(cache: Path) -> None:
    use(file("a"))
    other = cache / f"{'0' * 64}.25.partial"
    other.touch()
    (cache / "total").write_text("35")
    with FileLock(_lock_of(other)):
        thread = threading.Thread(target=use, args=(file("b"),))
        thread.start()
        thread.join(0.3)
        assert copies(cache) == [""], "`a` is removed, which is not enough"
        assert thread.is_alive()
        assert other.exists()
    thread.join()
    assert copies(cache) == ["b"]


def test_two_that_need_a_file_fetch_it_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def fetch(path: Path) -> None:
        time.sleep(0.1)
        path.write_bytes(bytes(10))
        fetched.append("a")

    monkeypatch.setattr(remote, "_with_retries", lambda url, call, *_: call(None))
    monkeypatch.setattr(remote, "_download", lambda file, path, *_: fetch(path))
    threads = [threading.Thread(target=open_local, args=(file("a"), Path.read_bytes)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == ["a"]


def test_a_copy_that_is_removed_before_it_is_opened_is_fetched_again(cache: Path) -> None:
    fetched: list[int] = []

    def fetch(path: Path) -> None:
        path.write_bytes(bytes(10))
        fetched.append(1)

    def opening(path: Path) -> bytes:
        if len(fetched) < num_removals:
            path.unlink()
        return path.read_bytes()

    num_removals = 3
    assert open_cached(file("a"), fetch, opening) == bytes(10)
    assert len(fetched) == 3
    num_removals = 99
    with pytest.raises(DataError, match=r"s3://bucket/b: was removed from the cache 10 times .*set TELECINE_REMOTE"):
        open_cached(file("b"), fetch, opening)


def test_nothing_is_left_of_a_failed_fetch(cache: Path) -> None:
    def fetch(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"):
        open_cached(file("a"), fetch, Path.read_bytes)
    assert copies(cache) == []


def test_the_folder_is_counted_only_if_it_may_be_full(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    make_room = remote._make_room

    def count(left: int, own: Path) -> int:
        counted.append(left)
        return make_room(left, own)

    monkeypatch.setattr(remote, "_make_room", count)
    for name in ("a", "b", "c"):
        use(file(name))
    assert counted == [20], "the first one, before there is a total"
    for name in ("d", "e"):
        use(file(name))
    assert counted == [20, 20, 20]
    monkeypatch.setenv("TELECINE_REMOTE_CACHE_GB", "2e-6")
    (cache / "total").write_text("")
    use(file("f"))
    for number in range(196):
        (cache / f"{number:064x}").write_bytes(bytes(10))
    (cache / "total").write_text("2000")
    for name in ("g", "h"):
        use(file(name))
    assert counted == [20, 20, 20, 1990, 1990], "the first one, without a total, and the first one without room"
    assert len(copies(cache)) == 200, "two of 200 are removed at once"
    assert int((cache / "total").read_text()) == 2000


@pytest.mark.parametrize("text", ["many", "0", "-1", "nan", "inf"])
def test_the_size_is_a_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELECINE_REMOTE_CACHE_GB", text)
    with pytest.raises(ValueError, match="`TELECINE_REMOTE_CACHE_GB` must be a number of gigabytes above 0, but got"):
        _max_bytes()


def test_the_default_folder_and_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TELECINE_REMOTE_CACHE", "TELECINE_REMOTE_CACHE_GB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _cache_folder() == tmp_path / "telecine" / "remote"
    monkeypatch.setenv("TELECINE_REMOTE_CACHE", str(tmp_path / "chosen"))
    assert _cache_folder() == tmp_path / "chosen" / "telecine", "a folder of its own"
    assert _max_bytes() == remote._DEFAULT_GB * 10**9
