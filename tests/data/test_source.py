"""Videos and images inside tar files are read like files, and errors of worker processes keep their message."""

import pickle
import shutil
import tarfile
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._utils import ExceptionWrapper

from telecine.data import (
    DataError,
    DecodeError,
    VideoInfo,
    index_video,
    iterate_frames,
    read_clip,
    tar_members,
)
from telecine.data.source import RemotePath, as_source, is_hidden, kind_of, resolve_source

from .videos import (
    moving_frames,
    numbered_frames,
    numbers_of,
    truncate,
    write_images,
    write_shard,
    write_video,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    faststart = {"movflags": "+faststart"}
    return [
        write_video(
            folder / "front.mp4", numbered_frames(20), g="5", bf="2", container_options=faststart
        ),
        write_video(folder / "back.mp4", moving_frames(12), g="5"),
        write_video(folder / "matroska.mkv", numbered_frames(20), g="5"),
        write_video(folder / "stream.ts", numbered_frames(20), g="5", bf="3"),
        write_video(folder / "old.avi", numbered_frames(20), g="5"),
        *write_images(folder, 1),
    ]


@pytest.fixture(scope="module")
def members(files):
    return list(tar_members(write_shard(files[0].parent / "shards" / "a, b.tar", files)))


def test_members_are_listed(members, files):
    assert [member.name for member in members] == [file.name for file in files]
    content = members[0].archive.read_bytes()
    for member, file in zip(members, files, strict=True):
        assert content[member.offset : member.offset + member.size] == file.read_bytes()
    assert str(members[0]) == f"{members[0].archive}/front.mp4"
    assert pickle.loads(pickle.dumps(members[0])) == members[0]


@pytest.mark.parametrize("index", range(6))
def test_a_member_is_read_like_a_file(members, files, index):
    info = index_video(members[index])
    expected = index_video(files[index])
    assert info == replace(expected, source=members[index])
    assert torch.equal(
        torch.stack(list(iterate_frames(info))), torch.stack(list(iterate_frames(expected)))
    )
    for start in range(0, info.num_frames, 7):
        num_frames = min(4, info.num_frames - start)
        assert torch.equal(
            read_clip(info, start, num_frames), read_clip(expected, start, num_frames)
        )


def test_a_colon_in_a_name_is_not_a_protocol(tmp_path, files, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(files[0], "12:30.mp4")
    write_shard(tmp_path / "a.tar", files[:1]).rename("a:b.tar")
    for source in (Path("12:30.mp4"), *tar_members(Path("a:b.tar"))):
        assert numbers_of(read_clip(index_video(source), 3, 2)) == [3, 4]


def test_names_tell_what_a_source_is(members):
    names = ("a.mp4", "b.MKV", "c.png", "d.JPEG", "e.npy", "f.txt", "mp4")
    kinds = ["videos", "videos", "images", "images", "arrays", "", ""]
    assert [kind_of(Path(name)) for name in names] == kinds
    assert [is_hidden(name) for name in ("a/.b/c.mp4", "a/b.c/d.mp4", "./a.mp4")] == [
        True,
        False,
        False,
    ]
    assert as_source(members[0]) is members[0]
    assert as_source("s3://b/a.mp4") == RemotePath("s3://b/a.mp4", 3, "x")
    assert as_source("s3:/b/a.mp4") == Path("s3:/b/a.mp4")
    assert as_source("ftp://b/a.mp4") == Path("ftp:/b/a.mp4")
    assert RemotePath("https://h/a/b.MP4?x=/c.tar").suffix == ".MP4"
    assert RemotePath("s3://b/what?.mp4").name == "what?.mp4"
    assert resolve_source(RemotePath("s3://b/../a")) == RemotePath("s3://b/../a")


def test_damaged_members_and_archives(tmp_path, files):
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
    truncated = tar_members(truncate(write_shard(tmp_path / "b.tar", files[:2]), 0.5))
    assert next(truncated).name == "front.mp4"
    with pytest.raises(tarfile.TarError):
        list(truncated)


MESSAGE = "`data` must be decodable, but got: nothing. See the log."


@pytest.mark.parametrize("error", [DataError, DecodeError])
def test_the_error_of_a_worker_has_only_its_message(error):
    """A loader's worker wraps its error, which the loader raises again; by default with the worker's traceback."""
    try:
        raise error(MESSAGE)
    except error:
        wrapped = pickle.dumps(ExceptionWrapper(where="in a worker"))
    with pytest.raises(error) as raised:
        pickle.loads(wrapped).reraise()
    assert str(raised.value) == MESSAGE


def test_a_name_with_a_line_end_makes_no_line_of_its_own():
    assert str(DataError("a\nerror: b.mp4: bad")) == "a\\nerror: b.mp4: bad"


class CountedArray(array):
    """Counts how often all its values are read."""

    num_scans = 0

    def __iter__(self):
        self.num_scans += 1
        return super().__iter__()


def info_of(pts):
    return VideoInfo(Path("a.mp4"), 64, 48, 25.0, pts, array("q", [0]), time_base=0.004)


@pytest.mark.parametrize("shift", [0, 1], ids=["in display order", "in decoding order"])
def test_times_of_frames(shift):
    pts = CountedArray("q", [5 + 10 * (number ^ shift) for number in range(100)])
    info = info_of(pts)
    assert [info.frame_at(number / 25) for number in range(100)] == list(range(100))
    assert pts.num_scans <= 2, "scanned once for any number of segments"
    assert [info.frame_at(seconds) for seconds in (0.05, 3.96, 4.0, 1e3)] == [2, 99, 100, 100]
    coarse = replace(info, pts=array("q", range(100)), time_base=0.04)
    assert [coarse.frame_at(seconds) for seconds in (0.0405, 0.041, 0.05, 0.08)] == [1, 2, 2, 2]
