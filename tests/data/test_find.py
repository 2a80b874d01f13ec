"""What there is to train on is found in folders, lists and tar files, and by patterns."""

from __future__ import annotations

from pathlib import Path

import pytest

from telecine.data import DataError, Stretch, TarMember, find_stretches, find_videos
from telecine.data.find import expand_braces

from .videos import write_images, write_shard


def test_find_videos(tmp_path: Path) -> None:
    for name in ("b.MP4", "a.webm", "deep/er/c.mkv", "notes.txt", ".hidden/d.mp4", "._b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_videos(tmp_path)]
    assert found == ["a.webm", "b.MP4", "deep/er/c.mkv"]
    assert find_videos(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    assert find_videos(str(tmp_path / "a.webm")) == [tmp_path / "a.webm"]


def test_linked_folders_are_searched_once(tmp_path: Path) -> None:
    for name in ("data/real/a.mp4", "elsewhere/b.mp4", "elsewhere/.c/d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = tmp_path / "data"
    links = {"linked": tmp_path / "elsewhere", "other": tmp_path / "elsewhere", "again": data / "real", ".e": data}
    links |= {"real/cycle": data, "gone": tmp_path / "nowhere"}
    for name, target in links.items():
        (data / name).symlink_to(target)
    assert [path.relative_to(data).as_posix() for path in find_videos(data)] == ["linked/b.mp4", "real/a.mp4"]


def test_missing_path_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be a video file or a folder, but got .*nowhere, which does not exist"):
        find_videos(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds videos .*\.mp4.*, which holds none.*below it"):
        find_videos(tmp_path)


def no_members(archive: Path) -> list[TarMember]:
    raise AssertionError(f"{archive} is no tar file")


def names(path: Path | str, folder: Path) -> list[str]:
    """Return what is found, relative to a folder."""
    return [Path(str(stretch.source)).relative_to(folder).as_posix() for stretch in find_stretches(path, no_members)]


def test_a_folder_of_everything(tmp_path: Path) -> None:
    for name in ("b.MP4", "a.jpg", "deep/c.WebP", "deep/d.jpeg", "e.png", "n.txt", "list.csv", ".x/f.png", "._g.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "s.tar").touch()
    member = TarMember(tmp_path / "s.tar", "t.mp4", 512, 3)
    found = [stretch.source for stretch in find_stretches(tmp_path, lambda archive: [member])]
    files = ["a.jpg", "b.MP4", "deep/c.WebP", "deep/d.jpeg", "e.png"]
    assert found == [*(tmp_path / name for name in files), member]
    assert find_videos(tmp_path) == [tmp_path / "b.MP4"]


def test_patterns(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 3)
    write_images(tmp_path / "b", 2)
    assert names(f"{tmp_path}/a/{{0..1}}.png", tmp_path) == ["a/0.png", "a/1.png"]
    assert names(f"{tmp_path}/{{b,a}}/1.png", tmp_path) == ["b/1.png", "a/1.png"]
    assert names(f"{tmp_path}/*/[12].png", tmp_path) == ["a/1.png", "a/2.png", "b/1.png"]
    assert names(f"{tmp_path}/?", tmp_path) == ["a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png"]
    # A name is taken as it stands where there is such a file.
    odd = tmp_path / "a[1]{0..1}"
    write_images(odd, 1)
    assert names(odd, tmp_path) == ["a[1]{0..1}/0.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..10}.tar", ["08.tar", "09.tar", "10.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("x{000000..000001}y{c,}", ["x000000yc", "x000000y", "x000001yc", "x000001y"]),
    ],
)
def test_braces(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize(
    "path", ["https://host/{0..9}.tar", "s3://bucket/a.tar", "gs://b/a.tar", "pipe:aws s3 cp a.tar -", "hf://d/a.tar"]
)
def test_streams_are_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"`data` must be on a disk .*resumed exactly, but got .*, a stream\. Download"):
        find_stretches(path, no_members)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "{0..9}.tar.zst"])
def test_compressed_tar_files_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"`val_data` must be an uncompressed tar file.*pack them again"):
        find_stretches(name, no_members, name="val_data")


def test_nothing_there(tmp_path: Path) -> None:
    message = "`data` must be a video file, a folder, a list or tar files, but got .*, which does not exist"
    for path in (tmp_path / "nowhere", f"{tmp_path}/*.mp4", f"{tmp_path}/{{0..3}}.tar"):
        with pytest.raises(DataError, match=message):
            find_stretches(path, no_members)
    write_shard(tmp_path / "0.tar", [])
    with pytest.raises(DataError, match=r"1\.tar, which does not exist"):
        find_stretches(f"{tmp_path}/{{0..1}}.tar", lambda archive: [])
    with pytest.raises(DataError, match=r"holds videos or images \(.*\.jpg.*\.mp4.*\.tar.*folders below it"):
        find_stretches(tmp_path, lambda archive: [])


def test_a_file_of_any_name_is_taken_for_a_video(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert find_stretches(str(tmp_path / "x"), no_members) == [Stretch(tmp_path / "x")]
