"""Tables that claim more frames than a file can have are refused before FFmpeg expands them."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest

from telecine.data import DecodeError, TarMember, decode, index_video, tar_members
from telecine.data.errors import Deadline
from telecine.data.mp4_tables import check_tables, iterate_boxes

from .videos import numbered_frames, write_shard, write_video

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


def _claim(path: Path, table: bytes, offset: int, *values: int) -> Path:
    """Overwrite 32-bit values after the name of a table."""
    content = bytearray(path.read_bytes())
    struct.pack_into(f">{len(values)}I", content, content.index(table) + 4 + offset, *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("table", "offset", "values", "options"),
    [
        (b"stsz", 4, (0, 10**8), None),
        (b"stsz", 4, (1, 10**8), None),
        (b"stsz", 4, (700, 10), None),
        (b"trun", 0, (1, 10**8), FRAGMENTED),
    ],
)
@pytest.mark.parametrize("in_tar", [False, True])
def test_more_frames_than_a_file_can_have(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    table: bytes,
    offset: int,
    values: tuple[int, ...],
    options: dict[str, str] | None,
    in_tar: bool,
) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(10), "libx264", container_options=options)
    source: Path | TarMember = path
    _claim(path, table, offset, *values)
    if in_tar:
        (source,) = tar_members(write_shard(tmp_path / "a.tar", [path]))
    monkeypatch.setattr(decode.av, "open", lambda *_: pytest.fail("FFmpeg reads the tables"))
    with pytest.raises(DecodeError, match=r"a\.mp4: its tables claim [0-9]+ frames in [0-9]+ bytes"):
        index_video(source)


@pytest.mark.parametrize("options", [None, FRAGMENTED, {"movflags": "+faststart"}])
def test_true_tables_are_accepted(tmp_path: Path, options: dict[str, str] | None) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(10), "libx264", container_options=options)
    check_tables(path, Deadline(path))
    with path.open("rb") as file:
        kinds = [kind for kind, _ in iterate_boxes(file, 0, path.stat().st_size)]
    assert {b"moov", b"mdat", b"stsz"} <= set(kinds)
    assert kinds.count(b"trun") == (options == FRAGMENTED)


def test_a_box_ends_with_the_box_around_it(tmp_path: Path) -> None:
    inner = struct.pack(">I4s", 10**6, b"free") + bytes(8)
    content = struct.pack(">I4s", 8 + len(inner), b"trak") + inner + struct.pack(">I4s", 20, b"stsz") + bytes(12)
    kinds = [kind for kind, _ in iterate_boxes(io.BytesIO(content), 0, len(content))]
    assert kinds[:2] == [b"trak", b"free"]
    assert kinds[-1] == b"stsz"


def test_compressed_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mov").write_bytes(struct.pack(">I4sI4s", 24, b"moov", 16, b"cmov") + bytes(8))
    with pytest.raises(DecodeError, match="its tables are compressed"):
        index_video(tmp_path / "a.mov")


def test_any_bytes_end(tmp_path: Path) -> None:
    contents = [bytes(1000), b"\xff" * 1000, struct.pack(">I4s", 8, b"moov") * 100, b"\0\0\0\x01moov" + b"\xff" * 8]
    for content in contents:
        assert len(list(iterate_boxes(io.BytesIO(content), 0, len(content)))) <= len(content) // 8
