"""The clips of a run, and the next micro-batches or the error of reading them."""

import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import distributed as dist

from telecine.data import DataError, ReadingStopped
from telecine.data.errors import ChangedError
from telecine.data.lazy.saved_addresses import SavedAddresses
from telecine.data.lazy.saved_index import SavedIndex
from telecine.data.source import RemotePath
from telecine.data.validation import index_validation_spans
from telecine.training import clips as of_run
from telecine.training import train
from telecine.training.build import build_autoencoder
from telecine.training.clips import Spans, build_clips, read_next
from telecine.video.write import write_video

from .helpers import LIGHT, assert_equal_runs, resumed_copy


def write_film(path, video, number=0):
    """Write a video with other bytes behind it."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(Path(video).read_bytes() + b"\0\0\0\x0cfree" + number.to_bytes(4, "big"))


def write_films(folder, video):
    """Write copies of a video into six folders, each with other bytes."""
    for number in range(12):
        write_film(folder / f"film{number // 2}" / f"{number}.mp4", video, number)


def test_images_are_counted_as_images(tiny, small_video, tmp_path):
    shutil.copy(small_video, tmp_path)
    for number in range(3):
        Image.new("RGB", (64, 48), (90 * number, 90, 90)).save(tmp_path / f"{number}.png")
    for ratio, counted in ((0.5, "1 video and 3 images"), (0.0, "1 video"), (1.0, "3 images")):
        config = tiny(data=str(tmp_path), clips=replace(tiny().clips, image_ratio=ratio))
        clips = build_clips(config, build_autoencoder(config))
        clips = replace(clips, val=clips.val[:1])
        assert clips.describe() == f"{counted}, 1 held-out clip"
        assert replace(clips, val=2 * clips.val).describe() == f"{counted}, 2 held-out clips"


@pytest.mark.parametrize("number", [0, 1])
def test_the_first_process_logs_what_all_read(
    tiny, small_video, tmp_path, monkeypatch, caplog, number
):
    shutil.copy(small_video, tmp_path)
    (tmp_path / "notes.txt").write_text("")
    monkeypatch.setattr(of_run, "rank", lambda: number)
    config = tiny(data=str(tmp_path))
    build_clips(config, build_autoencoder(config))
    assert ("ignored in" in caplog.text) == (number == 0)


def test_validation_clips_from_separate_videos(tiny):
    model = build_autoencoder(tiny())
    held_out = build_clips(tiny(), model)
    separate = build_clips(tiny(val_data=tiny().data), model)
    num_frames = [
        sum(span.num_frames for span in clips.train.spans) for clips in (held_out, separate)
    ]
    assert num_frames[0] < num_frames[1], "nothing is held out"
    assert len(separate.val) == 2


def test_validation_videos_inside_the_folder_of_the_data_are_not_trained_on(tiny, tmp_path):
    shutil.copy(tiny().data, tmp_path / "one.mp4")
    write_film(tmp_path / "val" / "two.mp4", tiny().data)
    config = tiny(data=str(tmp_path), val_data=str(tmp_path / "val"))
    clips = build_clips(config, build_autoencoder(config))
    assert [span.source.name for span in clips.train.spans] == ["one.mp4"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["one.mp4"]),
        ({"index": "lazy"}, ["one.mp4"]),
        ({"file_identity": "path"}, ["copy.mp4", "one.mp4"]),
    ],
)
def test_copies_of_validation_videos_are_not_trained_on(
    tiny, small_video, tmp_path, changes, names
):
    """But by a run of an earlier version that resumes."""
    for name in ("train/copy.mp4", "val/named.mp4"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(small_video, tmp_path / name)
    write_film(tmp_path / "train" / "one.mp4", small_video)
    clips = replace(tiny().clips, **changes)
    spans = Spans.find(str(tmp_path / "train"), str(tmp_path / "val"), clips)
    assert [span.source.name for span in spans.train] == names


def test_separate_videos_that_are_too_short_are_named(tiny, tmp_path):
    write_video(tmp_path / "short.mp4", torch.zeros(3, 48, 64, 3, dtype=torch.uint8), fps=25)
    config = tiny(val_data=str(tmp_path / "short.mp4"))
    message = r"`val_data` must be .* clip of 5 frames, but got none; the longest has 3 frames, .*short.mp4"
    with pytest.raises(DataError, match=message):
        build_clips(config, build_autoencoder(config))


@pytest.fixture
def other_process(monkeypatch):
    """Let this process be one of two; return a list: the second one has other values at the positions in it."""
    positions = []

    def gather(gathered, own):
        other = list(own)
        for position in positions:
            other[position] = "other"
        gathered[:] = [own, tuple(other)]

    monkeypatch.setattr(of_run, "num_ranks", lambda: 2)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    return positions


def test_other_files_content_or_validation_in_another_process_are_refused(tiny, other_process):
    config = tiny()
    clips = build_clips(config, build_autoencoder(config))
    message = "other files, frames or held-out clips in process 1 than in process 0"
    for position in range(3):
        other_process[:] = [position]
        with pytest.raises(ValueError, match=message):
            clips.check_same_in_all_processes()


@pytest.fixture
def of_addresses(tiny, small_video, tmp_path):
    """Return settings of data for which what a server said is saved, and the index that has it."""
    shutil.copy(small_video, tmp_path)
    clips = replace(tiny().clips, index="lazy")
    config = tiny(data=str(tmp_path), val_data=str(small_video), clips=clips)
    saved_index = SavedIndex(str(tmp_path), config.clips)
    saved_index.save_addresses(SavedAddresses.of([RemotePath("s3://b/a.mp4", 1, "v")]))
    assert len(saved_index.saved_addresses().keys) == 1
    return config, saved_index


def test_addresses_are_forgotten_if_another_process_has_other_data(of_addresses, other_process):
    """Each machine may have kept what its server said of another version of a file."""
    config, saved_index = of_addresses
    other_process.append(0)
    with pytest.raises(ValueError, match="run the same command again"):
        build_clips(config, build_autoencoder(config))
    assert len(saved_index.saved_addresses().keys) == 0


def test_addresses_are_forgotten_if_the_file_of_a_validation_clip_has_changed(
    of_addresses, monkeypatch
):
    def fail(*_, **__):
        raise ChangedError("changed")

    config, saved_index = of_addresses
    monkeypatch.setattr(of_run, "read_validation_clips", fail)
    with pytest.raises(ChangedError):
        build_clips(config, build_autoencoder(config))
    assert len(saved_index.saved_addresses().keys) == 0


@pytest.mark.parametrize(
    "error", [DataError("deleted"), OSError("unmounted"), RuntimeError("no shared memory")]
)
def test_errors_of_reading_are_returned(error):
    def batches():
        yield [1]
        raise error

    iterator = batches()
    assert read_next(iterator) == ([1], None)
    assert read_next(iterator) == ([], error)


def test_reading_that_was_stopped_is_no_error():
    def stopped():
        raise ReadingStopped
        yield

    assert read_next(stopped()) == ([], None)


def test_videos_that_are_not_used_need_not_be_long_enough(tiny, tmp_path):
    write_video(tmp_path / "short.mp4", torch.zeros(3, 48, 64, 3, dtype=torch.uint8), fps=25)
    for number in range(3):
        Image.new("RGB", (64, 48), (90 * number, 90, 90)).save(tmp_path / f"{number}.png")
    config = tiny(data=str(tmp_path), clips=replace(tiny().clips, image_ratio=1.0))
    clips = build_clips(config, build_autoencoder(config))
    assert (clips.num_images, len(clips.train.spans), len(clips.val)) == (3, 2, 1)


def test_sample_videos_have_no_other_number_of_channels(tiny, small_video, monkeypatch):
    monkeypatch.setattr("telecine.training.clips.sample_videos", lambda: [small_video])
    config = replace(tiny().clips, channels=2)
    with pytest.raises(
        DataError, match=r"one decodable file, but got .*only arrays can have 2 channels\)"
    ):
        Spans.find(None, None, config)


@pytest.mark.parametrize("holdout", ["folder", "column:film", "file"])
def test_one_group_is_refused_before_anything_is_indexed(
    tiny, small_video, tmp_path, monkeypatch, caplog, holdout
):
    rows = ["path,num_frames,fps,film"]
    for number in range(10):
        (tmp_path / f"{number}.mp4").symlink_to(small_video)
        rows.append(f"{number}.mp4,60,25,one")
    (tmp_path / "list.csv").write_text("\n".join(rows))

    def refuse(*arguments, **options):
        raise AssertionError("indexed")

    monkeypatch.setattr("telecine.training.clips.load_spans", refuse)
    config = replace(tiny().clips, index="lazy", holdout=holdout)
    if holdout != "file":
        match = f"`clips.holdout` must be a column or folders of two groups .*, but got {holdout}"
        with pytest.raises(DataError, match=match):
            Spans.find(str(tmp_path / "list.csv"), None, config)
        return
    with pytest.raises(AssertionError, match="indexed"), caplog.at_level("INFO"):
        Spans.find(str(tmp_path / "list.csv"), None, config)
    assert "because all of them are in one group" in caplog.text


def test_images_alone_in_one_group_are_refused_before_anything_is_indexed(
    tiny, tmp_path, monkeypatch
):
    for number in range(3):
        Image.new("RGB", (64, 48), (90 * number, 90, 90)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(of_run, "load_spans", lambda *_: pytest.fail("indexed"))
    clips = replace(tiny().clips, index="lazy", holdout="folder")
    with pytest.raises(DataError, match=r"`clips\.holdout` must be a column or folders of two"):
        Spans.find(str(tmp_path), None, clips)


@pytest.mark.slow
def test_a_run_that_resumes_reads_the_clips_of_the_whole_one_whatever_is_indexed(
    tiny, small_video, tmp_path
):
    data = tmp_path / "data"
    data.mkdir()
    write_films(data, small_video)
    clips = replace(tiny().clips, index="lazy")
    config = tiny(data=str(data), clips=clips, steps=4, save_every=2, val_every=4, **LIGHT)
    train(config)
    shutil.rmtree(data / ".telecine-index.d")
    resumed = resumed_copy(config, tmp_path / "resumed")
    assert assert_equal_runs(config, resumed, num_files=5) > 50


def test_other_processes_wait_until_the_first_one_has_indexed_held_out_files(
    tiny, small_video, tmp_path, monkeypatch
):
    write_films(tmp_path, small_video)
    events = []

    @contextmanager
    def barrier():
        yield lambda: events.append("others go on")

    def index_and_note(*arguments):
        events.append("indexed")
        return index_validation_spans(*arguments)

    monkeypatch.setattr(of_run, "barrier_without_time_limit", barrier)
    monkeypatch.setattr(of_run, "index_validation_spans", index_and_note)
    config = tiny(data=str(tmp_path), clips=replace(tiny().clips, index="lazy"))
    build_clips(config, build_autoencoder(config))
    assert events == ["indexed", "others go on"]


def test_clips_of_headers_are_those_of_an_index(tiny, small_video, tmp_path):
    write_films(tmp_path, small_video)
    write_video(tmp_path / "short.mp4", torch.zeros(3, 48, 64, 3, dtype=torch.uint8), fps=25)
    config = tiny(data=str(tmp_path))
    lazy_config = replace(config, clips=replace(config.clips, index="lazy"))
    model = build_autoencoder(config)
    clips = build_clips(config, model)
    lazy = build_clips(lazy_config, model)
    assert (lazy.num_videos, lazy.num_skipped, lazy.held_out) == (12, 1, clips.held_out)
    assert lazy.recorded()["validation"] == clips.recorded()["validation"]
    assert lazy.recorded()["num_frames"] == clips.recorded()["num_frames"]
    assert torch.equal(lazy.train[3]["video"], clips.train[3]["video"])
    separate = build_clips(replace(lazy_config, val_data=str(tmp_path / "film0")), model)
    assert len({span.source for span in separate.train.spans}) == 10
    few = build_clips(replace(lazy_config, data=str(small_video)), model)
    assert few.held_out.startswith("the end of 1 of 1 video")
