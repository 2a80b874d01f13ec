"""What a run will see is what the report shows."""

import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from telecine.__main__ import main
from telecine.base import devices
from telecine.data import ClipDataset, DataError, bytes_from_video, load_spans
from telecine.tools.data_report.examine import examine_data
from telecine.tools.data_report.page import render_data, summarize, write_data
from telecine.training.clips import Spans

from ...data.videos import moving_frames, write_video


def test_the_clips_are_the_first_ones_of_a_training_that_draws_all_files_equally_often(
    report, config
):
    spans, clips = (
        Spans.find(config.data, config.val_data, config.clips).train,
        replace(config.clips, weighting="files"),
    )
    dataset = ClipDataset(spans, clips, seed=config.seed)
    items = [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4)]  # batches of two
    for clip, item in zip(report.clips, items, strict=False):
        assert torch.equal(clip.frames, bytes_from_video(dataset[item]["video"]))
    assert len(report.clips) == 20
    assert all(clip.frames.shape == (5, 32, 40, 3) for clip in report.clips)


def test_frames_are_kept_if_they_fit_what_a_container_leaves(config, tmp_path, monkeypatch):
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("999\n")
    monkeypatch.setattr(devices, "CONTROL_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(devices, "CONTROL_GROUPS", tmp_path)
    advice = examine_data(config, num_clips=1).advice
    assert any("too much for `--clips.cache` on this machine" in line for line in advice)


def test_unusual_clips_are_remarked(report):
    for clip in report.clips:
        assert clip.flaws == {"still.mp4": ("static",), "black.mp4": ("black",)}.get(
            Path(clip.source).name, ()
        )
    assert {flaw for clip in report.clips for flaw in clip.flaws} == {"static", "black"}


def test_every_file_is_listed_with_its_use(report, data):
    rows = {Path(row.path).name: row for row in report.files}
    assert set(rows) == {path.name for path in data.glob("*.mp4")}
    scene = rows["scene.mp4"]
    assert (scene.codec, scene.width, scene.height, scene.fps) == ("h264", 64, 48, 25.0)
    assert (scene.num_frames, scene.keyframe_distance) == (40, 10)
    assert scene.num_bytes == (data / "scene.mp4").stat().st_size
    assert rows["other.mp4"].keyframe_distance == 90
    assert (scene.is_used, scene.use) == (True, "training and held out")
    assert (rows["short.mp4"].is_used, rows["short.mp4"].use) == (False, "3 frames; a clip needs 5")
    assert not rows["broken.mp4"].is_used
    assert "Invalid data" in rows["broken.mp4"].use
    assert report.ignored == {".txt": 1}


def test_copies_are_listed_once(report):
    groups = [sorted(Path(path).name for path in group) for group in report.copies]
    assert sorted(groups) == [["again.mp4", "copy.mp4"], ["copy.mp4", "scene.mp4"]]


def test_copies_are_one_group_of_a_list_that_training_reads(report, tmp_path):
    write_data(report, tmp_path)
    spans, _ = load_spans(tmp_path / "grouped.csv")
    groups = {span.info.source.name: span.group for span in spans}
    assert groups["scene.mp4"] == groups["copy.mp4"] == groups["again.mp4"]
    assert len(set(groups.values())) == 5, "the others are one each"
    assert "train on the list `grouped.csv`" in " ".join(report.advice)


def test_frames_are_counted(report):
    gaps = 6 * 5  # before the held-out end of each video
    assert report.num_train + report.num_held_out == 5 * 40 + 90 - gaps
    assert report.cache_bytes == 3 * report.num_train * 32 * 43


def test_a_folder_of_images_is_used_without_image_ratio(config, tmp_path):
    for number in range(3):
        Image.new("RGB", (64, 48), (90 * number, 90, 90)).save(tmp_path / f"{number}.png")
    report = examine_data(replace(config, data=str(tmp_path)), num_clips=2)
    assert summarize(report)["files used"] == "3 images, of 3 files"
    assert sorted(row.use for row in report.files) == ["held out", "training", "training"]
    assert (report.num_train, report.num_held_out) == (2, 1)


def test_images_are_counted_as_images(config, data, tmp_path):
    shutil.copy(data / "scene.mp4", tmp_path)
    for number in range(3):
        Image.new("RGB", (64, 48), (90 * number, 90, 90)).save(tmp_path / f"{number}.png")
    reports = {}
    for ratio, counted in ((0.5, "1 video and 3 images"), (0.0, "1 video"), (1.0, "3 images")):
        changed = replace(
            config, data=str(tmp_path), clips=replace(config.clips, image_ratio=ratio)
        )
        reports[ratio] = examine_data(changed, num_clips=2)
        assert summarize(reports[ratio])["files used"] == f"{counted}, of 4 files"
    uses = {
        ratio: {Path(row.path).name: row.use for row in report.files}
        for ratio, report in reports.items()
    }
    assert uses[0.0]["0.png"] == "an image, and `clips.image_ratio` is 0"
    assert uses[1.0]["scene.mp4"] == "a video, and `clips.image_ratio` is 1"
    assert {ratio: report.num_train + report.num_held_out for ratio, report in reports.items()} == {
        0.5: 38,
        0.0: 35,
        1.0: 3,
    }


def test_clips_say_how_they_were_turned(config):
    config = replace(config, data=f"{config.data}/scene.mp4")
    square = replace(config.clips, height=32, width=32, random_orientation=True)
    report = examine_data(replace(config, clips=square), num_clips=20)
    assert len({clip.orientation for clip in report.clips}) > 4
    still = replace(square, random_orientation=False, random_flip=False)
    assert {
        clip.orientation for clip in examine_data(replace(config, clips=still), num_clips=4).clips
    } == {""}
    page = render_data(report)
    for clip in report.clips:
        assert (
            f"frame {clip.start}, 5 x 32 x 32{clip.orientation and f', {clip.orientation}'}" in page
        )


def test_errors(config, tmp_path):
    with pytest.raises(ValueError, match="`num_clips` must be a positive int"):
        examine_data(config, num_clips=0)
    with pytest.raises(DataError, match="does not exist"):
        examine_data(replace(config, data=str(tmp_path / "none")))


def test_data_on_a_server_has_the_same_report(s3, config, data, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("scene.mp4", "copy.mp4", "broken.mp4", "notes.txt"):
        shutil.copy(data / name, folder)
    here, there = (
        examine_data(replace(config, data=path), num_clips=2)
        for path in (str(folder), s3.put(folder, "v"))
    )
    names = [[Path(row.path).name for row in rows.files] for rows in (here, there)]
    assert names[0] == names[1]
    assert [replace(row, path="") for row in there.files] == [
        replace(row, path="") for row in here.files
    ]
    assert (there.ignored, there.num_train, len(there.copies)) == (
        {".txt": 1},
        here.num_train,
        len(here.copies),
    )
    for clip, expected in zip(there.clips, here.clips, strict=True):
        assert torch.equal(clip.frames, expected.frames)


def test_the_scenes_of_whole_files_are_a_list_that_training_reads(config, tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    scenes = [moving_frames(length) // 4 + 150 * (length % 2) for length in (20, 13, 4, 15)]
    write_video(folder / "cuts.mp4", torch.cat(scenes), g="10")
    write_video(folder / "one, scene.mp4", moving_frames(30, seed=2), g="10")
    Image.new("RGB", (64, 48)).save(folder / "0.png")
    config = replace(config, data=str(folder))
    report = examine_data(config, num_clips=2)
    write_data(report, tmp_path / "out")
    found = [(span.info.source.name, span.first_frame, span.last_frame) for span in report.scenes]
    expected = [
        ("0.png", 0, 0),
        ("cuts.mp4", 0, 19),
        ("cuts.mp4", 20, 32),
        ("cuts.mp4", 37, 51),
        ("one, scene.mp4", 0, 29),
    ]
    assert found == expected, "without the scene that is shorter than a clip"
    scenes = tmp_path / "out" / "scenes.csv"
    rows = scenes.read_text(encoding="utf-8").splitlines()[1:]
    assert all(row.lstrip('"').startswith("/") for row in rows), "no formula of a spreadsheet"
    spans, _ = load_spans(scenes)
    assert [
        (span.info.source.name, span.first_frame, span.last_frame) for span in spans
    ] == expected
    text = "2 of 2 videos were decoded whole, and cuts were found in 1 of them. The list `scenes.csv` has the scenes"
    assert any(line.startswith(text) for line in report.advice)
    sizes = [
        "--clips.num_frames=5",
        "--clips.height=32",
        "--clips.width=40",
        "--clips.num_workers=1",
    ]
    assert (
        main(["data", str(folder), "-o", str(tmp_path / "my data"), "--num_clips=1", *sizes]) == 0
    )
    printed = capsys.readouterr().out
    assert f"--data '{tmp_path}/my data/scenes.csv'`" in printed
    assert "; 1 worker (" in printed
    few = examine_data(config, num_clips=2, max_frames=29)
    assert (few.scenes, few.num_searched) == ([], 0)
    assert any(line.startswith("Searched for cuts: 0 of 2 videos.") for line in few.advice)


def test_a_video_of_too_many_frames_hides_no_others_from_the_search_for_cuts(config, tmp_path):
    write_video(tmp_path / "a.mp4", moving_frames(60), g="10")
    write_video(tmp_path / "b.mp4", moving_frames(30, seed=1), g="10")
    report = examine_data(replace(config, data=str(tmp_path)), num_clips=1, max_frames=40)
    assert (report.num_searched, report.num_left) == (1, 1)


@pytest.mark.parametrize("column", ["group", "subject"])
def test_scenes_keep_the_groups_of_a_list(config, tmp_path, column):
    cuts = torch.cat([moving_frames(20) // 4, moving_frames(13) // 4 + 150])
    write_video(tmp_path / "cuts.mp4", cuts, g="10")
    write_video(tmp_path / "one scene.mp4", moving_frames(30, seed=2), g="10")
    listed = tmp_path / "list.csv"
    listed.write_text(f"path,{column}\ncuts.mp4,Ada\none scene.mp4,Bob\n")
    clips = config.clips
    if column != "group":
        clips = replace(clips, holdout=f"column:{column}")
    report = examine_data(replace(config, data=str(listed), clips=clips), num_clips=1)
    write_data(report, tmp_path / "out")
    spans, _ = load_spans(tmp_path / "out" / "scenes.csv", config.clips)
    groups = [(span.info.source.name, span.first_frame, span.group) for span in spans]
    assert groups == [("cuts.mp4", 0, "Ada"), ("cuts.mp4", 20, "Ada"), ("one scene.mp4", 0, "Bob")]
    text = "The groups of `scenes.csv` are in its column `group`: train on it with `--clips.holdout auto`."
    assert (text in report.advice) == (column != "group")


def test_a_damaged_video_is_not_one_that_more_frames_would_search(config, data, tmp_path):
    content = bytearray((data / "other.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = b"\xff" * 4000
    (tmp_path / "damaged.mp4").write_bytes(content)
    shutil.copy(data / "scene.mp4", tmp_path)
    report = examine_data(replace(config, data=str(tmp_path)), num_clips=1)
    assert (report.num_searched, report.num_left) == (1, 0)
    assert not any("--max_frames" in line for line in report.advice)


def test_clips_of_arrays_have_their_own_shape(config, tmp_path):
    for index in range(2):
        np.save(
            tmp_path / f"{index}.npy",
            moving_frames(20, seed=index).repeat(1, 1, 1, 2)[..., :5].numpy(),
        )
    clips = replace(config.clips, channels=5)
    objective = replace(config.objective, perceptual_weight=0.0)
    config = replace(config, data=str(tmp_path), clips=clips, objective=objective)
    report = examine_data(config, num_clips=1)
    assert list(report.as_dict()["clips"][0]["shape"]) == [5, 32, 40, 5]
    assert "5 x 32 x 40" in render_data(report)


def test_scenes_in_tar_files_are_not_in_the_list(config, tmp_path):
    cuts = write_video(
        tmp_path / "cuts.mp4",
        torch.cat([moving_frames(20) // 4, moving_frames(13) // 4 + 150]),
        g="10",
    )
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(cuts, "inside.mp4")
    report = examine_data(replace(config, data=str(tmp_path)), num_clips=2)
    assert [span.info.source.name for span in report.scenes] == ["cuts.mp4", "cuts.mp4"]
    assert any("leaves it out: 1 videos and images" in line for line in report.advice)
    cuts.unlink()
    report = examine_data(replace(config, data=str(tmp_path)), num_clips=2)
    assert report.scenes == []
    assert not any("scenes.csv" in line for line in report.advice)
    write_data(report, tmp_path / "out")
    assert not (tmp_path / "out" / "scenes.csv").exists()


def test_a_file_that_is_held_out_by_another_name(config, data, tmp_path, monkeypatch):
    for name in ("scene.mp4", "still.mp4"):
        shutil.copy(data / name, tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    report = examine_data(
        replace(config, data=str(tmp_path), val_data=f"{tmp_path.name}/scene.mp4"), num_clips=1
    )
    assert {Path(row.path).name: row.use for row in report.files}["scene.mp4"] == "held out"
