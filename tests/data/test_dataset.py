"""A training clip depends only on the seed, the step and the index."""

import pickle
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch

from telecine.data import (
    ClipDataset,
    DataError,
    Span,
    bytes_from_video,
    index_video,
    read_clip,
    tar_members,
    video_from_bytes,
    whole_video,
)
from telecine.data.clip import decoded_size, resize_frames
from telecine.data.dataset import draw_bucket
from telecine.data.decoded_cache import DecodedCache, num_cached_bytes
from telecine.settings import Bucket, ClipConfig

from .videos import (
    assert_same_clips,
    damage,
    moving_frames,
    numbered_frames,
    numbers_of,
    truncate,
    write_images,
    write_video,
)

CONFIG = ClipConfig(num_frames=5, height=32, width=40, num_workers=0, scale_jitter=1.5)
BUCKETS = (Bucket(5, 32, 40, weight=3), Bucket(3, 48, 32), Bucket(9, 16, 16))
SEVERAL = replace(CONFIG, buckets=BUCKETS)
PLAIN = ClipConfig(num_frames=3, height=48, width=64, num_workers=0, random_flip=False)


def size_at(dataset, step):
    """Return the kind and size of the items of a step, such as "video-5x32x40"."""
    return dataset.names_of([(step, 0)])[0].removesuffix("-0")


def file_names(dataset, count):
    """Return the names of the files that the first clips are read from."""
    return {Path(dataset[i]["source"]).name for i in range(count)}


def specs(dataset, count):
    return [dataset.spec_at(index, index) for index in range(count)]


def test_items_depend_only_on_seed_and_index(spans):
    dataset = ClipDataset(spans, CONFIG, seed=3)
    indices = (5, 0, 10**12)
    items = [dataset[i] for i in indices]
    again = ClipDataset(spans, CONFIG, seed=3)
    assert_same_clips(items, [again[i] for i in indices])
    assert {item["video"].shape for item in items} == {(3, 5, 32, 40)}
    assert all(-1 <= item["video"].min() < item["video"].max() <= 1 for item in items)
    assert [dataset.source_at(i, i) for i in indices] == [item["source"] for item in items]
    assert_same_clips([dataset[5]], [dataset[5, 5]])
    other = ClipDataset(spans, CONFIG, seed=4)
    assert any(not torch.equal(dataset[i]["video"], other[i]["video"]) for i in range(3))
    assert not torch.equal(dataset[0]["video"], dataset[1]["video"])


def test_a_dataset_that_is_sent_to_another_process_shares_its_cache(spans):
    """As to the workers where the system cannot fork."""
    dataset = ClipDataset(spans, replace(CONFIG, cache=True), seed=1)
    sent = pickle.loads(ForkingPickler.dumps(dataset))
    assert_same_clips([sent[i] for i in range(4)], [dataset[i] for i in range(4)])
    for span, start in ((spans[0], 0), (spans[1], 4)):
        here = dataset.cache.read(span, start, Bucket(5, 32, 40))
        here[0, 0, 0, 0] += 1
        assert torch.equal(here, sent.cache.read(span, start, Bucket(5, 32, 40))), (
            "in shared memory"
        )


@pytest.mark.parametrize(
    "config", [replace(CONFIG, stride=2), replace(SEVERAL, buckets=(*BUCKETS, Bucket(5, 16, 16)))]
)
def test_cached_clips_equal_decoded_ones(spans, config):
    config = replace(config, scale_jitter=1.0)
    cached = ClipDataset(spans, replace(config, cache=True))
    decoded = ClipDataset(spans, config)
    assert (cached.cache is None, decoded.cache is None) == (False, True)
    assert_same_clips([cached[i] for i in range(4)], [decoded[i] for i in range(4)])


def test_zoomed_clips_of_cached_frames_are_as_sharp_as_decoded_ones(tmp_path):
    noise = torch.randint(
        0, 256, (3, 15, 20, 3), generator=torch.Generator().manual_seed(0)
    ).float()
    noise = torch.nn.functional.interpolate(noise.movedim(-1, 1), (120, 160), mode="bicubic").clamp(
        0, 255
    )
    path = write_video(tmp_path / "a.mp4", noise.movedim(1, -1).to(torch.uint8))
    config = ClipConfig(3, 24, 32, num_workers=0, scale_jitter=1.5)
    for cache in (False, True):
        dataset = ClipDataset([whole_video(index_video(path))], replace(config, cache=cache))
        clips = torch.stack([dataset[number]["video"] for number in range(20)])
        if not cache:
            decoded = clips
    spec = dataset.spec_at(0, 0)
    size = decoded_size(spec, config.val_bucket)
    once = resize_frames(read_clip(spec.span.info, spec.start, 3), size)
    assert torch.equal(dataset.decode(0)[0], once), "from the size of the file, in one step"
    assert (clips - decoded).square().mean() < 1e-3 * decoded.square().mean()
    assert 0.97 < clips.diff(dim=-1).square().mean() / decoded.diff(dim=-1).square().mean() < 1.03


@pytest.mark.parametrize("by_file", [False, True])
def test_all_positions_are_equally_likely(spans, by_file):
    dataset = ClipDataset(spans, replace(CONFIG, weighting="files" if by_file else "frames"))
    counts = Counter((spec.span.info.source.name, spec.start) for spec in specs(dataset, 1800))
    positions = {"short.mp4": 8, "long.mp4": 28}
    assert set(counts) == {("short.mp4", i) for i in range(8)} | {
        ("long.mp4", i) for i in range(4, 32)
    }
    for (name, _), count in counts.items():
        expected = 900 / positions[name] if by_file else 50
        assert 0.5 * expected < count < 1.7 * expected


@pytest.mark.parametrize("weighting", ["frames", "files"])
def test_an_epoch_draws_each_file_once(spans, weighting):
    files = [
        replace(spans[1], info=replace(spans[1].info, source=Path(f"{number}.mp4")))
        for number in range(50)
    ]
    config = replace(CONFIG, weighting=weighting)
    drawn = [spec.span.info.source for spec in specs(ClipDataset(files, config, seed=3), 150)]
    epochs = [drawn[:50], drawn[50:100], drawn[100:]]
    assert [len(set(epoch)) for epoch in epochs] == [50, 50, 50]
    assert epochs[0] != epochs[1] != epochs[2]
    again = ClipDataset(files, config, seed=3)
    assert [again.spec_at(number, number).span.info.source for number in (120, 7)] == [
        drawn[120],
        drawn[7],
    ], "in any order"
    other = [spec.span.info.source for spec in specs(ClipDataset(files, config, seed=4), 50)]
    assert other != epochs[0]
    independent = specs(ClipDataset(files, replace(config, order="independent"), seed=3), 50)
    assert len({spec.span.info.source for spec in independent}) < 40


def test_an_epoch_draws_long_files_more_often(spans):
    files = [
        replace(spans[1], info=replace(spans[1].info, source=Path(f"{number}.mp4")))
        for number in range(12)
    ]
    for number in range(6):
        files[number] = replace(
            files[number], last_frame=files[number].first_frame + 11
        )  # 8 positions of 28
    for epoch in range(4):
        dataset = ClipDataset(files, CONFIG)
        drawn = [dataset.spec_at(0, 12 * epoch + number).span for number in range(12)]
        assert sum(span in files[6:] for span in drawn) in (9, 10), "12 * 28 / 36 on average"


def test_flips_zooms_and_crops_are_equally_likely(spans):
    drawn = specs(ClipDataset(spans, CONFIG), 1800)
    assert 825 < sum(spec.flip for spec in drawn) < 975
    for name, low, high in (("zoom", 1.0, 1.5), ("top", 0.0, 1.0), ("left", 0.0, 1.0)):
        values = [getattr(spec, name) for spec in drawn]
        margin = 0.01 * (high - low)
        assert low <= min(values) < low + margin
        assert high - margin < max(values) <= high


def test_spans_of_one_file_share_its_draws(spans):
    parts = [Span(spans[0].info, 0, 4), Span(spans[0].info, 5, 11)]
    dataset = ClipDataset([spans[1], *parts], replace(CONFIG, weighting="files"))
    drawn = [spec.span for spec in specs(dataset, 400)]
    assert 160 < drawn.count(spans[1]) < 240
    assert drawn.count(parts[1]) > 2 * drawn.count(parts[0]), "3 positions and 1 of one file"


def test_orientations_are_equally_likely_and_leave_the_other_draws(spans):
    square = replace(CONFIG, height=32, width=32)
    before = specs(ClipDataset(spans, square), 800)
    after = specs(ClipDataset(spans, replace(square, random_orientation=True)), 800)
    assert [replace(spec, upside_down=False, transpose=False) for spec in after] == before
    counts = Counter((spec.flip, spec.upside_down, spec.transpose) for spec in after)
    assert len(counts) == 8
    assert 75 < min(counts.values()) <= max(counts.values()) < 125


def test_flip_and_zoom_can_be_turned_off(spans):
    dataset = ClipDataset(spans[:1], PLAIN)
    for i in range(4):
        frames = read_clip(spans[0].info, dataset[i]["start"], 3)
        assert torch.equal(dataset[i]["video"], video_from_bytes(frames))


def test_clips_stay_inside_their_span(tmp_path):
    info = index_video(write_video(tmp_path / "numbered.mp4", numbered_frames(40), g="10"))
    dataset = ClipDataset([Span(info, 10, 20)], replace(PLAIN, stride=4))
    starts = set()
    for i in range(16):
        first, *others = numbers_of(bytes_from_video(dataset[i]["video"]))
        assert others == [first + 4, first + 8]
        starts.add(first)
    assert starts == {10, 11, 12}


@pytest.mark.parametrize("stride", [1, 2])
def test_each_step_has_one_size(spans, stride):
    config = replace(SEVERAL, stride=stride)
    dataset = ClipDataset(spans, config, seed=2)
    steps = range(100)
    sizes = [size_at(dataset, step) for step in steps]
    assert set(sizes) == {f"video-{bucket}" for bucket in BUCKETS}
    again = ClipDataset(spans, config, seed=2)
    other = ClipDataset(spans, config, seed=3)
    assert (
        [size_at(again, step) for step in steps]
        == sizes
        != [size_at(other, step) for step in steps]
    )
    last = {str(span.info.source): span.last_frame for span in spans}
    for step in range(8):
        for index in (7, 8):
            clip = dataset[step, index]
            _, num_frames, height, width = clip["video"].shape
            assert sizes[step] == f"video-{Bucket(num_frames, height, width)}"
            assert clip["start"] + (num_frames - 1) * stride <= last[clip["source"]]


def test_spans_shorter_than_a_clip(spans):
    dataset = ClipDataset(spans, replace(CONFIG, num_frames=13))
    assert list(dataset.spans) == spans[1:]
    assert file_names(dataset, 8) == {"long.mp4"}
    with pytest.raises(DataError, match="at least one span with a clip of 33 frames"):
        ClipDataset(spans, replace(CONFIG, num_frames=33))
    with pytest.raises(DataError, match="at least one span with a clip of 65 frames"):
        ClipDataset(spans, replace(CONFIG, buckets=(*BUCKETS, Bucket(65, 16, 16))))
    # A span that is long enough for one of the sizes is used.
    dataset = ClipDataset(spans, replace(CONFIG, buckets=(*BUCKETS, Bucket(13, 16, 16))))
    assert list(dataset.spans) == spans


@pytest.mark.parametrize("cache", [False, True])
def test_corrupt_clips_are_replaced_and_logged_once(tmp_path, caplog, cache):
    path = write_video(tmp_path / "damaged.mp4", moving_frames(60), "libx264", g="10")
    span = whole_video(index_video(damage(path, 0.45, 0.6)))
    config = replace(PLAIN, num_frames=2)
    dataset = ClipDataset([span], replace(config, cache=cache))
    items = [dataset[i] for i in range(8)]
    assert caplog.text.count("replacing clips that cannot be decoded") == 1
    assert caplog.text.count("damaged.mp4") == 1 + cache
    assert ("not cached: " in caplog.text) == cache
    again = ClipDataset([span], config)
    assert_same_clips(items, [again[i] for i in range(8)])


@pytest.mark.parametrize("cache", [False, True])
def test_files_that_disappear(tmp_path, spans, cache):
    gone = whole_video(index_video(write_video(tmp_path / "gone.mp4", moving_frames(20))))
    gone.info.source.unlink()
    config = replace(CONFIG, cache=cache)
    with pytest.raises(
        DataError, match="`data` must be decodable, but got 16 clips in a row that cannot"
    ):
        ClipDataset([gone], config)[0]
    assert file_names(ClipDataset([gone, spans[0]], config), 8) == {"short.mp4"}


@pytest.fixture
def images(tmp_path):
    return [whole_video(index_video(path)) for path in write_images(tmp_path / "images", 4)]


@pytest.mark.parametrize("cache", [False, True])
def test_images_are_clips_of_one_frame(images, cache):
    dataset = ClipDataset(images, replace(PLAIN, num_frames=17, cache=cache))
    assert file_names(dataset, 24) == {"0.png", "1.png", "2.png", "3.png"}
    clip = dataset[0]
    assert torch.equal(
        clip["video"], video_from_bytes(read_clip(index_video(clip["source"]), 0, 1))
    )


@pytest.mark.parametrize("ratio", [0.25, 1.0])
def test_image_ratio_is_the_fraction_of_steps_with_images(images, spans, ratio):
    buckets = (Bucket(5, 32, 40), Bucket(9, 16, 16))
    dataset = ClipDataset(spans + images, replace(CONFIG, image_ratio=ratio, buckets=buckets))
    sizes = [size_at(dataset, step) for step in range(500)]
    image_sizes = [size for size in sizes if size.startswith("image")]
    assert ratio - 0.05 < len(image_sizes) / 500 < ratio + 0.05
    assert set(image_sizes) == {"image-1x32x40", "image-1x16x16"}
    for step in range(12):
        assert (Path(dataset[step]["source"]).suffix == ".png") == (sizes[step] in image_sizes)


def test_steps_without_images_or_without_videos(images, spans, caplog):
    only_images = ClipDataset(spans + images, replace(CONFIG, num_frames=100, image_ratio=1.0))
    assert list(only_images.spans) == images, "no clip of 100 frames is needed"
    assert not caplog.text
    assert list(ClipDataset(images + spans, CONFIG).spans) == spans
    assert "4 images are not trained on, because `image_ratio` is 0" in caplog.text
    with pytest.raises(
        DataError, match=r"`image_ratio` must be 0 for data without images, but got 0\.5"
    ):
        ClipDataset(spans, replace(CONFIG, image_ratio=0.5))


def test_a_damaged_image_is_replaced_and_logged_once(tmp_path, caplog):
    paths = write_images(tmp_path, 2)
    paths.append(truncate(write_images(tmp_path / "cut", 1, ".jpg", 400, 400)[0], 0.6))
    dataset = ClipDataset([whole_video(index_video(path)) for path in paths], CONFIG)
    assert file_names(dataset, 20) == {"0.png", "1.png"}
    assert caplog.text.count(".jpg") == 1


def test_a_number_of_clips_comes_again(spans):
    config = replace(CONFIG, num_clips=3, buckets=(Bucket(5, 32, 40), Bucket(2, 32, 40)))
    dataset = ClipDataset(spans, config)
    endless = ClipDataset(spans, replace(config, num_clips=None))
    steps = {size_at(dataset, step): step for step in range(9)}
    assert len(steps) == 2
    all_names = set()
    for size, step in steps.items():
        assert torch.equal(dataset[step, 7]["video"], endless[step, 1]["video"])
        assert not torch.equal(dataset[step, 7]["video"], endless[step, 7]["video"])
        names = dataset.names_of([(step, index) for index in range(7)])
        assert names == [f"{size}-{index % 3}" for index in range(7)]
        all_names.update(names)
    assert len(all_names) == 6
    assert len(set(endless.names_of([(0, index) for index in range(7)]))) == 7


def test_draws_follow_the_weights():
    generator = torch.Generator().manual_seed(0)
    counts = Counter(draw_bucket(BUCKETS, generator) for _ in range(2000))
    assert set(counts) == set(BUCKETS)
    assert 1100 < counts[BUCKETS[0]] < 1300
    assert 330 < counts[BUCKETS[1]] < 470


def test_a_draw_at_the_end_of_the_range_is_the_last_bucket(monkeypatch):
    """The product of a draw below 1 and the total weight can round up to the total weight."""
    monkeypatch.setattr(
        torch, "rand", lambda *shape, **options: torch.tensor(1.0, dtype=torch.float64)
    )
    assert draw_bucket(BUCKETS, torch.Generator()) == BUCKETS[-1]


def test_the_cache_keeps_frames_once_for_each_resolution(spans):
    config = replace(PLAIN, buckets=(Bucket(3, 48, 64), Bucket(5, 48, 64), Bucket(3, 24, 32)))
    short = 12 * 3 * (48 * 64 + 24 * 32)
    for some in (spans[:1], spans):
        cache = DecodedCache(some, config)
        clips = [
            cache.read(span, span.first_frame, bucket) for span in some for bucket in config.buckets
        ]
        storages = [clip.untyped_storage() for clip in clips]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        assert len(sizes) == 2 * len(some), "clips of both lengths are views of the same frames"
        assert sum(sizes.values()) == num_cached_bytes(some, config)
    assert num_cached_bytes(spans, config) > num_cached_bytes(spans[:1], config) == short


def test_spans_and_tar_members_of_one_name_are_cached_separately(tmp_path):
    frames = numbered_frames(12)
    info = index_video(write_video(tmp_path / "a.mp4", frames))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for first, last in pairwise((0, 5, 10)):
            tar.add(write_video(tmp_path / "source.mp4", frames[first:last]), "same.mp4")
    members = [whole_video(index_video(member)) for member in tar_members(tmp_path / "a.tar")]
    spans = [Span(info, 0, 4), Span(info, 0, 6), Span(info, 4, 6), *members]
    cache = DecodedCache(spans, PLAIN)
    starts = (2, 4, 4, 0, 0)
    clips = [
        cache.read(span, start, PLAIN.val_bucket) for span, start in zip(spans, starts, strict=True)
    ]
    assert [numbers_of(clip)[0] for clip in clips] == [2, 4, 4, 0, 5]


def test_frames_that_do_not_fit_in_memory(spans, monkeypatch):
    with pytest.raises(
        ValueError, match=r"`cache` must be off .* GiB of decoded frames.*Turn it off"
    ):
        DecodedCache(spans, replace(PLAIN, height=1_000_000, width=1_000_000))
    # The frames of the short video take 12 * 3 * 48 * 64 = 110592 bytes, 0.8 of 138240, in each process of a machine.
    for num_processes in (1, 3):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_processes))
        monkeypatch.setattr(
            "telecine.data.decoded_cache.machine_memory",
            lambda number=num_processes: number * 138240,
        )
        DecodedCache(spans[:1], PLAIN)
        monkeypatch.setattr(
            "telecine.data.decoded_cache.machine_memory",
            lambda number=num_processes: number * 138240 - 1,
        )
        where = r"\. " if num_processes == 1 else r" in each of 3 processes\. "
        with pytest.raises(
            ValueError,
            match=rf"more than 80% of 0\.0 GiB of memory, but got .* decoded frames{where}",
        ):
            DecodedCache(spans[:1], PLAIN)
