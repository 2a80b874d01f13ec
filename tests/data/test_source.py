"""Videos and images inside tar files are read like files, and errors of worker processes keep their message."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._utils import ExceptionWrapper

from telecine.data import (
    ClipDataset,
    DataError,
    DecodeError,
    Span,
    VideoInfo,
    index_video,
    iterate_frames,
    read_clip,
    tar_members,
    whole_video,
)
from telecine.data.image import read_image
from telecine.data.source import as_source, is_hidden, kind_of
from telecine.settings import ClipConfig

from .videos import (
    assert_same_clips,
    moving_frames,
    numbered_frames,
    numbers_of,
    truncate,
    write_images,
    write_shard,
    write_video,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    faststart = {"movflags": "+faststart"}
    return [
        write_video(folder / "front.mp4", numbered_frames(20), g="5", bf="2", container_options=faststart),
        write_video(folder / "back.mp4", moving_frames(12), g="5"),
        write_video(folder / "matroska.mkv", numbered_frames(20), g="5"),
        write_video(folder / "stream.ts", numbered_frames(20), g="5", bf="3"),
        write_video(folder / "old.avi", numbered_frames(20), g="5"),
        write_images(folder, 1)[0],
    ]


@pytest.fixture(scope="module")
def shard(files: list[Path]) -> Path:
    return write_shard(files[0].parent / "shards" / "a, b.tar", files)


def test_members_are_listed(shard: Path, files: list[Path]) -> None:
    members = list(tar_members(shard))
    assert [member.name for member in members] == [file.name for file in files]
    content = shard.read_bytes()
    for member, file in zip(members, files, strict=True):
        assert content[member.offset : member.offset + member.size] == file.read_bytes()
    assert str(members[0]) == f"{shard}/front.mp4"
    assert as_source(members[0]) is members[0]
    assert pickle.loads(pickle.dumps(members[0])) == members[0]


def test_a_member_is_read_like_a_file(shard: Path, files: list[Path]) -> None:
    members = list(tar_members(shard))
    for member, file in zip(members[:-1], files[:-1], strict=True):
        info, expected = index_video(member), index_video(file)
        assert (list(info.pts), list(info.keyframes)) == (list(expected.pts), list(expected.keyframes))
        assert torch.equal(torch.stack(list(iterate_frames(member))), torch.stack(list(iterate_frames(file))))
        for start in (0, 3, info.num_frames - 4):
            assert torch.equal(read_clip(info, start, 4), read_clip(expected, start, 4))
    assert numbers_of(read_clip(index_video(members[0]), 7, 3, 2)) == [7, 9, 11]
    assert torch.equal(read_image(members[-1]), read_image(files[-1]))
    assert index_video(members[-1]).is_image


def test_a_colon_in_a_name_is_not_a_protocol(tmp_path: Path, files: list[Path], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(files[0], "12:30.mp4")
    write_shard(tmp_path / "a.tar", files[:1]).rename("a:b.tar")
    for source in (Path("12:30.mp4"), *tar_members(Path("a:b.tar"))):
        assert numbers_of(read_clip(index_video(source), 3, 2)) == [3, 4]


def test_clips_of_a_shard_equal_those_of_the_files(shard: Path, files: list[Path]) -> None:
    config = ClipConfig(num_frames=5, height=32, width=40, num_workers=0)
    packed = ClipDataset([whole_video(index_video(member)) for member in tar_members(shard)], config)
    unpacked = ClipDataset([whole_video(index_video(file)) for file in files], config)
    clips = [packed[i] for i in range(6)]
    for clip in clips:
        clip["source"] = str(files[0].parent / Path(clip["source"]).name)
    assert_same_clips(clips, [unpacked[i] for i in range(6)])


def test_only_videos_and_images_that_are_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("./b.mp4", "._b.mp4", "c/d.PNG", "c/.e.png", "f.json", "g"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        link = tarfile.TarInfo("h.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "b.mp4"
        tar.addfile(link)
    assert [member.name for member in tar_members(tmp_path / "a.tar")] == ["./b.mp4", "c/d.PNG"]


def test_suffixes() -> None:
    names = ("a.mp4", "b.MKV", "c.png", "d.JPEG", "e.txt", "mp4")
    assert [kind_of(Path(name)) for name in names] == ["videos", "videos", "images", "images", "", ""]
    assert [is_hidden(Path(name)) for name in ("a/.b/c.mp4", "a/b.c/d.mp4", "./a.mp4")] == [True, False, False]


def test_damaged_members_and_archives(tmp_path: Path, files: list[Path]) -> None:
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(b"noise" * 99)
    bad, good = tar_members(write_shard(tmp_path / "a.tar", [noise, files[1]]))
    with pytest.raises(DecodeError, match=r"a\.tar/noise\.mp4: Invalid data"):
        index_video(bad)
    info = index_video(good)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(DecodeError, match=r"a\.tar/back\.mp4: No such file"):
        read_clip(info, 0, 1)
    with pytest.raises(tarfile.TarError):
        list(tar_members(noise))
    members = tar_members(truncate(write_shard(tmp_path / "b.tar", files[:2]), 0.5))
    assert next(members).name == "front.mp4"
    with pytest.raises(tarfile.TarError):
        list(members)


MESSAGE = "`data` must be decodable, but got: nothing. See the log."


@pytest.mark.parametrize("error", [DataError, DecodeError])
def test_the_error_of_a_worker_has_only_its_message(error: type[Exception]) -> None:
    """A loader's worker wraps its error, which the loader raises again; by default with the worker's traceback."""
    try:
        raise error(MESSAGE)
    except error:
        wrapped = pickle.dumps(ExceptionWrapper(where="in a worker"))
    with pytest.raises(error) as raised:
        pickle.loads(wrapped).reraise()
    assert str(raised.value) == MESSAGE


def info(num_frames: int = 100) -> VideoInfo:
    pts = array("q", range(100, 100 + 10 * num_frames, 10))
    return VideoInfo(Path("a.mp4"), 64, 48, 25.0, pts, array("q", [0]), time_base=0.004)


def test_infos_compare_by_value() -> None:
    assert info() == info() == pickle.loads(pickle.dumps(info()))
    assert hash(info()) == hash(info())
    assert info() != info(99)


@pytest.mark.parametrize(("seconds", "index"), [(0, 0), (0.04, 1), (0.05, 2), (3.96, 99), (4.0, 100), (1e3, 100)])
def test_frame_at(seconds: float, index: int) -> None:
    assert info().frame_at(seconds) == index


def test_spans_count_frames_and_starts() -> None:
    span = Span(info(), 10, 19)
    assert span.num_frames == 10
    assert [span.num_starts(clip_span) for clip_span in (1, 9, 10, 11)] == [10, 2, 1, 0]
    assert whole_video(info()) == Span(info(), 0, 99)


class CountedArray(array):  # type: ignore[type-arg]
    """Counts how often all its values are read."""

    num_scans = 0

    def __iter__(self) -> Iterator[int]:
        self.num_scans += 1
        return super().__iter__()


@pytest.mark.parametrize("shift", [0, 1], ids=["in display order", "in decoding order"])
def test_timestamps_are_scanned_once_for_any_number_of_segments(shift: int) -> None:
    pts = CountedArray("q", [5 + 40 * (number ^ shift) for number in range(100)])
    info = VideoInfo(Path("a.mp4"), 64, 48, 25.0, pts, array("q", [0]), time_base=0.001)
    assert [info.frame_at(number / 25) for number in range(100)] == list(range(100))
    assert pts.num_scans <= 2
    assert info == replace(info)


def _archive_with_size(path: Path, size: int, kind: bytes, pax: dict[str, str]) -> Path:
    """Write a tar file whose second member has this size in its header, or in its attributes."""
    first, second, data = tarfile.TarInfo("a.mp4"), tarfile.TarInfo("b.mp4"), io.BytesIO()
    second.size, second.type, second.pax_headers = size, kind, pax
    header = second.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)
    path.write_bytes(first.tobuf() + header + data.getvalue() + bytes(2048))
    return path


@pytest.mark.parametrize(
    ("size", "kind", "pax"),
    [
        (-512, tarfile.REGTYPE, {}),
        (-1536, tarfile.REGTYPE, {}),
        (-512, tarfile.GNUTYPE_LONGNAME, {}),
        (2**40, tarfile.GNUTYPE_LONGNAME, {}),
        (0, tarfile.REGTYPE, {"size": "-1024"}),
    ],
)
def test_impossible_sizes_in_a_tar_file_end_the_reading(
    tmp_path: Path, size: int, kind: bytes, pax: dict[str, str]
) -> None:
    members = tar_members(_archive_with_size(tmp_path / "a.tar", size, kind, pax))
    assert next(members).name == "a.mp4"
    with pytest.raises(tarfile.TarError, match="with a size of"):
        next(members)


def test_a_sparse_member_is_named(tmp_path: Path) -> None:
    sparse, member = tarfile.TarInfo("a.txt"), tarfile.TarInfo("b.mp4")
    sparse.type = member.type = tarfile.GNUTYPE_SPARSE
    (tmp_path / "a.tar").write_bytes(sparse.tobuf() + tarfile.TarInfo("a.mp4").tobuf() + member.tobuf() + bytes(1024))
    members = tar_members(tmp_path / "a.tar")
    assert next(members).name == "a.mp4"
    with pytest.raises(tarfile.TarError, match=r"^b\.mp4 has holes, by `tar -S`; pack it without"):
        next(members)


def test_a_name_with_a_line_end_makes_no_line_of_its_own() -> None:
    assert str(DataError("a\nerror: b.mp4: bad")) == "a\\nerror: b.mp4: bad"
