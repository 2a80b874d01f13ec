"""Videos are matched by name, and what does not match is said."""

import shutil
from pathlib import Path

import pytest

from telecine.data import find_videos, index_videos
from telecine.evaluation.pairs import holds_videos, match_videos
from telecine.report.video import write_mp4

from .videos import waves


def match(data, reconstructions):
    infos, _ = index_videos(find_videos(data))
    return match_videos(infos, data=data, reconstructions=reconstructions)


@pytest.fixture
def copy(videos, tmp_path):
    return shutil.copytree(videos, tmp_path / "copy")


def test_by_their_path_without_the_suffix(videos, reconstructions):
    matches = match(videos, reconstructions["much"])
    names = {Path(ours).relative_to(videos).as_posix(): info.path.name for ours, info in matches.items()}
    assert names == {"one.mp4": "one.m4v", "two.mp4": "two.mp4", "below/three.mp4": "three.mp4"}


def test_single_files_match_whatever_their_names(videos, copy):
    renamed = copy / "one.mp4"
    renamed = renamed.rename(copy / "other.mp4")
    matches = match(videos / "one.mp4", renamed)
    assert [info.path for info in matches.values()] == [renamed]


def test_missing_and_unknown_names_are_listed(videos, copy):
    (copy / "two.mp4").rename(copy / "zwei.mp4")
    with pytest.raises(ValueError, match=r"copy lacks two; .* lacks zwei\. Rename or remove"):
        match(videos, copy)


def test_many_missing_names_are_counted(tmp_path, videos):
    many = tmp_path / "many"
    for number in range(5):
        shutil.copytree(videos, many / str(number))
    with pytest.raises(ValueError, match="lacks 0/below/three, 0/one, 0/two and 12 more"):
        match(many, videos)


def test_one_name_twice_is_refused(videos, copy):
    shutil.copy(copy / "one.mp4", copy / "one.mkv")
    with pytest.raises(ValueError, match="Suffixes do not count: rename one"):
        match(copy, videos)


@pytest.mark.parametrize(
    ("frames", "message"),
    [(waves(20), "26 frames of 48 x 64, .* got 20 frames of 48 x 64"), (waves(26, 32), "got 26 frames of 32 x 64")],
)
def test_other_lengths_and_sizes_are_refused(videos, copy, frames, message):
    write_mp4(copy / "one.mp4", frames, fps=25)
    with pytest.raises(ValueError, match=message):
        match(videos, copy)


def test_what_is_a_folder_of_videos(videos, model_folder, copy, tmp_path):
    assert holds_videos(videos)
    assert holds_videos(videos / "one.mp4")
    assert holds_videos(videos / "below")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "linked").symlink_to(videos)
    assert holds_videos(tmp_path / "links")
    assert not holds_videos(model_folder)
    assert not holds_videos(tmp_path / "nowhere")
    (copy / "config.yaml").touch()  # a run, with its side_by_side.mp4
    assert not holds_videos(copy)
