"""Tables that claim more frames than a file can have are refused before FFmpeg expands them."""

import io
import struct

import av
import pytest

from telecine.data import DataError, DecodeError, index_video, tar_members
from telecine.data.errors import Deadline
from telecine.data.mp4_tables import check_tables, iterate_boxes

from .videos import numbered_frames, write_shard, write_video

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


class CountedDeadline(Deadline):
    """A deadline that counts how often it is checked."""

    num_checks = 0

    def seconds_left(self):
        self.num_checks += 1
        return super().seconds_left()


def boxes(content, deadline):
    """Return all boxes of the bytes of a file."""
    any_kind = {content[begin : begin + 4] for begin in range(len(content))}
    return list(iterate_boxes(io.BytesIO(content), 0, len(content), any_kind, deadline))


def kinds(content):
    return [box.kind for box in boxes(content, Deadline("a.mp4"))]


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
    tmp_path, monkeypatch, table, offset, values, options, in_tar
):
    source = write_video(
        tmp_path / "a.mp4", numbered_frames(10), "libx264", container_options=options
    )
    content = bytearray(source.read_bytes())
    struct.pack_into(f">{len(values)}I", content, content.index(table) + 4 + offset, *values)
    source.write_bytes(content)
    if in_tar:
        (source,) = tar_members(write_shard(tmp_path / "a.tar", [source]))
    monkeypatch.setattr(av, "open", lambda *_: pytest.fail("FFmpeg reads the tables"))
    with pytest.raises(
        DecodeError, match=r"a\.mp4: its tables claim [0-9]+ frames in [0-9]+ bytes"
    ):
        index_video(source)


@pytest.mark.parametrize("options", [None, FRAGMENTED, {"movflags": "+faststart"}])
def test_true_tables_are_accepted(tmp_path, options):
    path = write_video(
        tmp_path / "a.mp4", numbered_frames(10), "libx264", container_options=options
    )
    check_tables(path, Deadline(path))
    read = kinds(path.read_bytes())
    assert {b"moov", b"mdat", b"stsz"} <= set(read)
    assert read.count(b"trun") == (options == FRAGMENTED)


def test_a_box_ends_with_the_box_around_it():
    inner = struct.pack(">I4s", 10**6, b"free") + bytes(8)
    content = (
        struct.pack(">I4s", 8 + len(inner), b"trak")
        + inner
        + struct.pack(">I4s", 20, b"stsz")
        + bytes(12)
    )
    assert kinds(content)[:2] == [b"trak", b"free"]
    assert kinds(content)[-1] == b"stsz"


def test_boxes_are_looked_for_in_some_kinds_of_boxes_only():
    table = struct.pack(">I4s", 8, b"stsz")
    content = b"".join(struct.pack(">I4s", 16, kind) + table for kind in (b"udta", b"stbl"))
    read = iterate_boxes(
        io.BytesIO(content), 0, len(content), {b"stsz"}, Deadline("a.mp4"), {b"stbl": 0}
    )
    assert [box.kind for box in read] == [b"stsz"]
    assert kinds(content) == [b"udta", b"stsz", b"stbl", b"stsz"]


def test_compressed_tables_are_refused(tmp_path):
    (tmp_path / "a.mov").write_bytes(struct.pack(">I4sI4s", 24, b"moov", 16, b"cmov") + bytes(8))
    with pytest.raises(DecodeError, match="its tables are compressed"):
        index_video(tmp_path / "a.mov")


@pytest.mark.parametrize(
    "content",
    [
        bytes(1000),
        b"\xff" * 1000,
        struct.pack(">I4s", 8, b"moov") * 100,
        b"\0\0\0\x01moov" + b"\xff" * 8,
    ],
)
def test_any_bytes_end(content):
    assert len(kinds(content)) <= len(content) // 8


def test_boxes_are_the_same_wherever_they_begin():
    content = b"".join(struct.pack(">I4sIb", 13, b"wide", number, 0) for number in range(1000))
    numbers = [struct.unpack_from(">I", box.content)[0] for box in boxes(content, Deadline("a"))]
    assert numbers == list(range(1000))


def test_the_deadline_is_checked_while_no_box_is_of_a_kind_that_is_read():
    content = struct.pack(">I4s", 8, b"moov") * 10_000
    deadline = CountedDeadline("a.mp4")
    assert not list(iterate_boxes(io.BytesIO(content), 0, len(content), {b"trun"}, deadline))
    assert deadline.num_checks >= len(content) // 4096
    with pytest.raises(DataError, match=r"a\.mp4: not read within 1e-09 seconds"):
        boxes(content, Deadline("a.mp4", 1e-9))
