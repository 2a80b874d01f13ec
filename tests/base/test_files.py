"""Files are written whole or not at all, and JSON files contain one object."""

import errno
import os
import socket
from pathlib import Path

import pytest

from telecine.base.files import (
    atomic_write,
    create_json,
    digest_of,
    named_errors,
    open_regular,
    read_bounded,
    read_json,
    write_json,
    write_text,
)


def test_json_round_trip(tmp_path):
    path = tmp_path / "values.json"
    for value in ({"a": [1, 2.5, None]}, {"b": "\u00e9"}):
        write_json(path, value)
        assert read_json(path) == value
    assert [file.name for file in tmp_path.iterdir()] == ["values.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "text"
    path.write_text("old")

    def fail(partial):
        partial.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["text"]


def test_a_signal_right_after_a_file_is_made_leaves_none(tmp_path, monkeypatch):
    close = os.close

    def close_and_interrupt(descriptor):
        close(descriptor)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "close", close_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "text", lambda partial: partial.write_text("new"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    """Otherwise it may be empty after a power failure."""
    operations = []
    path = tmp_path / "text"
    flush = os.fsync
    replace = os.replace

    def recorded_flush(descriptor):
        operations.append(("flush", os.fstat(descriptor).st_ino))
        flush(descriptor)

    def recorded_replace(source, target):
        operations.append(("rename", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_flush)
    monkeypatch.setattr(os, "replace", recorded_replace)
    atomic_write(path, lambda partial: partial.write_text("new"))
    assert operations == [("flush", path.stat().st_ino), ("rename", path.stat().st_ino)]


@pytest.mark.parametrize(
    ("text", "contract"), [("{", "JSON, but got other text"), ("[1]", "a JSON object, but got")]
)
def test_other_content(text, contract, tmp_path):
    path = tmp_path / "values.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"`.*values.json` must be {contract}.* Write it again"):
        read_json(path)


def test_a_temporary_file_has_a_name_of_its_own_and_is_never_a_link(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    names = []
    for _ in range(2):
        atomic_write(path, lambda partial: (names.append(partial.name), partial.write_text("new")))
    assert len(set(names)) == 2
    monkeypatch.setattr("telecine.base.files.partial_path", lambda path: tmp_path / "guessed")
    (tmp_path / "guessed").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        atomic_write(path, lambda partial: partial.write_text("x"))
    assert not (tmp_path / "elsewhere").exists()


def test_a_digest_is_that_of_sha256sum(tmp_path):
    (tmp_path / "abc").write_text("abc")
    assert (
        digest_of(tmp_path / "abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def _make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


_OTHER_KINDS = {
    "a FIFO": os.mkfifo,
    "a folder": os.mkdir,
    "a device": lambda path: os.symlink("/dev/zero", path),
    "a socket": _make_socket,
}


@pytest.mark.parametrize("kind", _OTHER_KINDS)
def test_what_is_no_regular_file_is_refused_at_once(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    path = Path("values.json")
    _OTHER_KINDS[kind](path)
    for read in (open_regular, lambda path: read_bounded(path, 10)):
        with pytest.raises(
            ValueError, match=rf"`values.json` must be a regular file, but got {kind}"
        ):
            read(path)


def test_a_link_is_followed_only_where_that_is_wanted(tmp_path):
    (tmp_path / "file").write_text("text")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    with open_regular(link) as file:
        assert file.read() == b"text"
    with pytest.raises(ValueError, match="must be a regular file, but got a symbolic link"):
        open_regular(link, follow=False)
    with open_regular(tmp_path / "file", follow=False) as file:
        assert file.read() == b"text"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")


def test_no_more_is_read_than_allowed(tmp_path):
    path = tmp_path / "sparse"
    path.write_bytes(b"1234")
    assert read_bounded(path, 4) == b"1234"
    with pytest.raises(ValueError, match="must be a file of at most 3 bytes, but got 4 bytes"):
        read_bounded(path, 3)
    os.truncate(path, 40 * 2**30)
    with pytest.raises(ValueError, match=f"at most 4 bytes, but got {40 * 2**30} bytes"):
        read_bounded(path, 4)
    with pytest.raises(ValueError, match="at most 4 bytes"):  # its size is 0 until it is read
        read_bounded(Path("/proc/self/status"), 4)


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_is_there_is_not_replaced(tmp_path, monkeypatch, has_links):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.json"
    create_json(path, {"a": 1})
    create_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


BROKEN = Path(
    "/proc/self/mem"
)  # a regular file whose first byte cannot be read: EIO, as of a broken disk


def fail(path):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.skipif(not BROKEN.exists(), reason="needs Linux")
@pytest.mark.parametrize("read", [lambda path: read_bounded(path, 9), read_json, digest_of])
def test_an_error_of_the_disk_while_reading_names_the_file(read):
    with pytest.raises(OSError, match="Input/output error: '/proc/self/mem'"):
        read(BROKEN)


def test_an_error_of_the_disk_while_writing_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    message = f"Input/output error: '{path}'"
    with pytest.raises(OSError, match=message):
        atomic_write(path, fail)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"Input/output error: .*a\.txt"):
        write_text(path, "text")


def test_an_error_that_names_a_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        atomic_write(tmp_path / "a.txt", lambda partial: (tmp_path / "missing").read_text())
    with pytest.raises(OSError, match=r"^the disk is full$"), named_errors(tmp_path):
        raise OSError("the disk is full")
