"""Videos and images inside tar files, as the webdataset package writes them, read like files of their own."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from telecine.data import (
    ClipConfig,
    ClipDataset,
    DecodedCache,
    DecodeError,
    index_video,
    iterate_frames,
    members_of,
    read_clip,
    read_image,
    whole_video,
)

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
    return [
        write_video(
            folder / "front.mp4", numbered_frames(20), g="5", bf="2", container_options={"movflags": "+faststart"}
        ),
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
    members = list(members_of(shard))
    assert [member.name for member in members] == [file.name for file in files]
    content = shard.read_bytes()
    for member, file in zip(members, files, strict=True):
        assert content[member.offset : member.offset + member.size] == file.read_bytes()
    assert str(members[0]) == f"{shard}/front.mp4"


def test_a_member_reads_like_a_file(shard: Path, files: list[Path]) -> None:
    members = list(members_of(shard))
    assert len(members) == 6
    for member, file in zip(members[:-1], files[:-1], strict=True):
        info, expected = index_video(member), index_video(file)
        assert (list(info.pts), list(info.keyframes)) == (list(expected.pts), list(expected.keyframes))
        assert torch.equal(torch.stack(list(iterate_frames(member))), torch.stack(list(iterate_frames(file))))
        for start in (0, 3, info.num_frames - 4):
            assert torch.equal(read_clip(info, start, 4), read_clip(expected, start, 4))
    assert numbers_of(read_clip(index_video(members[0]), 7, 3, 2)) == [7, 9, 11]
    assert torch.equal(read_image(members[-1]), read_image(files[-1]))
    assert index_video(members[-1]).is_image
    assert pickle.loads(pickle.dumps(members[0])) == members[0]


def test_a_colon_in_a_name_names_no_protocol(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(files[0], "12:30.mp4")
    write_shard(tmp_path / "a.tar", files[:1]).rename("a:b.tar")
    for source in (Path("12:30.mp4"), *members_of(Path("a:b.tar"))):
        assert numbers_of(read_clip(index_video(source), 3, 2)) == [3, 4]


def test_clips_of_a_shard_equal_those_of_the_files(shard: Path, files: list[Path]) -> None:
    config = ClipConfig(num_frames=5, height=32, width=40, num_workers=0)
    packed = ClipDataset([whole_video(index_video(member)) for member in members_of(shard)], config)
    loose = ClipDataset([whole_video(index_video(file)) for file in files], config)
    clips = [packed[i] for i in range(6)]
    for clip in clips:
        clip["source"] = str(files[0].parent / Path(clip["source"]).name)
    assert_same_clips(clips, [loose[i] for i in range(6)])


def test_members_of_one_name_are_cached_apart(tmp_path: Path) -> None:
    frames = numbered_frames(10)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for first in (0, 5):
            tar.add(write_video(tmp_path / "source.mp4", frames[first : first + 5]), "same.mp4")
    members = [whole_video(index_video(member)) for member in members_of(tmp_path / "a.tar")]
    config = ClipConfig(num_frames=5, height=48, width=64, num_workers=0, cache=True)
    cache = DecodedCache(members, config)
    (bucket,) = config.sizes
    assert [numbers_of(cache.read(span, 0, bucket)) for span in members] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_only_videos_and_images_that_are_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("./b.mp4", "._b.mp4", "c/d.PNG", "c/.e.png", "f.json", "g"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        link = tarfile.TarInfo("h.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "b.mp4"
        tar.addfile(link)
    assert [member.name for member in members_of(tmp_path / "a.tar")] == ["./b.mp4", "c/d.PNG"]


def test_broken_members_and_archives(tmp_path: Path, files: list[Path]) -> None:
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(b"noise" * 99)
    bad, good = members_of(write_shard(tmp_path / "a.tar", [noise, files[1]]))
    with pytest.raises(DecodeError, match=r"a\.tar/noise\.mp4: Invalid data"):
        index_video(bad)
    info = index_video(good)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(DecodeError, match=r"a\.tar/back\.mp4: No such file"):
        read_clip(info, 0, 1)
    with pytest.raises(tarfile.TarError):
        list(members_of(noise))
    early = members_of(truncate(write_shard(tmp_path / "b.tar", files[:2]), 0.5))
    assert next(early).name == "front.mp4"
    with pytest.raises(tarfile.TarError):
        list(early)
