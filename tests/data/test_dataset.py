"""A training clip depends only on the seed, the step and the index."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from telecine.data import (
    ClipDataset,
    DataError,
    Span,
    bytes_from_video,
    index_video,
    read_clip,
    video_from_bytes,
    whole_video,
)
from telecine.data.dataset import draw_bucket
from telecine.data.image import read_image
from telecine.models import CausalVAE
from telecine.models.interface import check_buckets
from telecine.settings import Bucket, CausalVAEConfig, ClipConfig

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


def size_at(dataset: ClipDataset, step: int) -> str:
    """Return the kind and size of the items of a step, such as "video-5x32x40"."""
    return dataset.names_of([(step, 0)])[0].removesuffix("-0")


def file_names(dataset: ClipDataset, count: int) -> set[str]:
    """Return the names of the files that the first clips are read from."""
    return {Path(dataset[i]["source"]).name for i in range(count)}


def test_items_depend_only_on_seed_and_index(spans: list[Span]) -> None:
    dataset, again = ClipDataset(spans, CONFIG, seed=3), ClipDataset(spans, CONFIG, seed=3)
    items = [dataset[i] for i in (5, 0, 10**12)]
    assert_same_clips(items, [again[i] for i in (5, 0, 10**12)])
    assert {item["video"].shape for item in items} == {(3, 5, 32, 40)}
    assert all(-1 <= item["video"].min() < item["video"].max() <= 1 for item in items)
    assert [dataset.source_at(i, i) for i in (5, 0, 10**12)] == [item["source"] for item in items]
    assert_same_clips([dataset[5]], [dataset[5, 5]])
    other = ClipDataset(spans, CONFIG, seed=4)
    assert any(not torch.equal(dataset[i]["video"], other[i]["video"]) for i in range(3))
    assert not torch.equal(dataset[0]["video"], dataset[1]["video"])


def test_worker_processes_read_the_same_items(spans: list[Span]) -> None:
    dataset = ClipDataset(spans, CONFIG, seed=1)
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, sampler=range(4), num_workers=1)
    assert_same_clips(list(loader), [dataset[i] for i in range(4)])


def test_a_dataset_that_is_sent_to_another_process_shares_its_cache(spans: list[Span]) -> None:
    """As to the workers where the system cannot fork."""
    dataset = ClipDataset(spans, replace(CONFIG, cache=True), seed=1)
    sent = pickle.loads(ForkingPickler.dumps(dataset))
    assert_same_clips([sent[i] for i in range(4)], [dataset[i] for i in range(4)])
    assert dataset.cache is not None
    for here, there in zip(dataset.cache._frames.values(), sent.cache._frames.values(), strict=True):
        here[0, 0, 0, 0] += 1
        assert torch.equal(here, there), "in shared memory"


@pytest.mark.parametrize("config", [replace(CONFIG, stride=2), SEVERAL])
def test_cached_clips_equal_decoded_ones(spans: list[Span], config: ClipConfig) -> None:
    cached, decoded = ClipDataset(spans, replace(config, cache=True)), ClipDataset(spans, config)
    assert cached.cache is not None
    assert decoded.cache is None
    assert_same_clips([cached[i] for i in range(4)], [decoded[i] for i in range(4)])


def test_clips_stay_inside_their_span(tmp_path: Path) -> None:
    info = index_video(write_video(tmp_path / "numbered.mp4", numbered_frames(40), g="10"))
    config = ClipConfig(num_frames=3, stride=4, height=48, width=64, num_workers=0)
    dataset = ClipDataset([Span(info, 10, 20)], config)
    starts = set()
    for i in range(16):
        numbers = numbers_of(bytes_from_video(dataset[i]["video"]))
        assert numbers == [numbers[0], numbers[0] + 4, numbers[0] + 8]
        starts.add(numbers[0])
    assert starts == {10, 11, 12}


def test_all_positions_are_equally_likely(spans: list[Span]) -> None:
    dataset = ClipDataset(spans, CONFIG)
    specs = [dataset.spec_at(i, i) for i in range(1800)]
    counts = Counter((spec.span.info.path.name, spec.start) for spec in specs)
    assert set(counts) == {("short.mp4", i) for i in range(8)} | {("long.mp4", i) for i in range(4, 32)}
    assert 25 < min(counts.values()) <= max(counts.values()) < 75
    assert 825 < sum(spec.flip for spec in specs) < 975
    for values, low, high in (
        ([spec.crop_scale for spec in specs], 1.0, 1.5),
        ([spec.top for spec in specs], 0.0, 1.0),
        ([spec.left for spec in specs], 0.0, 1.0),
    ):
        margin = 0.01 * (high - low)
        assert low <= min(values) < low + margin
        assert high - margin < max(values) <= high


def test_orientations_are_equally_likely_and_leave_the_other_draws(spans: list[Span]) -> None:
    square = replace(CONFIG, height=32, width=32)
    plain, turned = ClipDataset(spans, square), ClipDataset(spans, replace(square, random_orientation=True))
    before, after = ([each.spec_at(i, i) for i in range(800)] for each in (plain, turned))
    assert [replace(spec, upside_down=False, transpose=False) for spec in after] == before
    counts = Counter((spec.flip, spec.upside_down, spec.transpose) for spec in after)
    assert len(counts) == 8
    assert 75 < min(counts.values()) <= max(counts.values()) < 125


def test_flip_and_zoom_can_be_turned_off(spans: list[Span]) -> None:
    config = ClipConfig(num_frames=5, height=48, width=64, random_flip=False, num_workers=0)
    dataset = ClipDataset(spans[:1], config)
    for i in range(4):
        frames = read_clip(spans[0].info, dataset[i]["start"], 5)
        assert torch.equal(dataset[i]["video"], video_from_bytes(frames))


def test_each_step_has_one_size(spans: list[Span]) -> None:
    dataset, again = ClipDataset(spans, SEVERAL, seed=2), ClipDataset(spans, SEVERAL, seed=2)
    steps = range(100)
    assert {size_at(dataset, step) for step in steps} == {f"video-{bucket}" for bucket in BUCKETS}
    assert [size_at(dataset, step) for step in steps] == [size_at(again, step) for step in steps]
    other = ClipDataset(spans, SEVERAL, seed=3)
    assert [size_at(dataset, step) for step in steps] != [size_at(other, step) for step in steps]
    for step in range(8):
        for index in (7, 8):
            _, *shape = dataset[step, index]["video"].shape
            assert size_at(dataset, step) == f"video-{Bucket(*shape)}"


@pytest.mark.parametrize("stride", [1, 2])
def test_clips_of_each_size_stay_inside_their_span(spans: list[Span], stride: int) -> None:
    dataset = ClipDataset(spans, replace(SEVERAL, stride=stride))
    last = {str(span.info.path): span.last_frame for span in spans}
    for step in range(10):
        clip = dataset[step]
        assert clip["start"] + (clip["video"].shape[1] - 1) * stride <= last[clip["source"]]


def test_spans_shorter_than_a_clip(spans: list[Span]) -> None:
    dataset = ClipDataset(spans, replace(CONFIG, num_frames=13))
    assert dataset.spans == spans[1:]
    assert file_names(dataset, 8) == {"long.mp4"}
    with pytest.raises(DataError, match="at least one span of 33 frames"):
        ClipDataset(spans, replace(CONFIG, num_frames=33))
    with pytest.raises(DataError, match="at least one span of 65 frames"):
        ClipDataset(spans, replace(CONFIG, buckets=(*BUCKETS, Bucket(65, 16, 16))))
    # A span that is long enough for one of the sizes is used.
    assert ClipDataset(spans, replace(CONFIG, buckets=(*BUCKETS, Bucket(13, 16, 16)))).spans == spans


def test_corrupt_clips_are_replaced_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "damaged.mp4", moving_frames(60), "libx264", g="10")
    span = whole_video(index_video(damage(path, 0.45, 0.6)))
    config = ClipConfig(num_frames=2, height=32, width=32, num_workers=0)
    dataset, again = ClipDataset([span], config), ClipDataset([span], config)
    items = [dataset[i] for i in range(8)]
    assert caplog.text.count("damaged.mp4") == 1
    assert_same_clips(items, [again[i] for i in range(8)])


@pytest.mark.parametrize("cache", [False, True])
def test_files_that_disappear(tmp_path: Path, spans: list[Span], cache: bool) -> None:
    gone = whole_video(index_video(write_video(tmp_path / "gone.mp4", moving_frames(20))))
    (tmp_path / "gone.mp4").unlink()
    config = replace(CONFIG, cache=cache)
    with pytest.raises(DataError, match=r"`data` must be decodable, but got (16 clips in a row|1 files) that cannot"):
        ClipDataset([gone], config)[0]
    assert file_names(ClipDataset([gone, spans[0]], config), 8) == {"short.mp4"}


@pytest.fixture
def images(tmp_path: Path) -> list[Span]:
    return [whole_video(index_video(path)) for path in write_images(tmp_path / "images", 4)]


@pytest.mark.parametrize("cache", [False, True])
def test_images_are_clips_of_one_frame(images: list[Span], cache: bool) -> None:
    config = ClipConfig(num_frames=17, height=48, width=64, num_workers=0, random_flip=False, cache=cache)
    dataset = ClipDataset(images, config)
    assert dataset[0]["video"].shape == (3, 1, 48, 64)
    assert file_names(dataset, 24) == {"0.png", "1.png", "2.png", "3.png"}
    clip = dataset[0]
    assert torch.equal(clip["video"], video_from_bytes(read_image(Path(clip["source"]))[None]))


@pytest.mark.parametrize("ratio", [0.25, 1.0])
def test_image_ratio_is_the_fraction_of_steps_with_images(images: list[Span], spans: list[Span], ratio: float) -> None:
    buckets = (Bucket(5, 32, 40), Bucket(9, 16, 16))
    dataset = ClipDataset(spans + images, replace(CONFIG, image_ratio=ratio, buckets=buckets))
    sizes = [size_at(dataset, step) for step in range(500)]
    of_images = {"image-1x32x40", "image-1x16x16"}
    assert ratio - 0.05 < sum(size in of_images for size in sizes) / 500 < ratio + 0.05
    assert {size for size in sizes if size.startswith("image")} == of_images
    for step in range(12):
        assert (Path(dataset[step]["source"]).suffix == ".png") == (sizes[step] in of_images)


def test_a_clip_of_several_frames_is_not_needed_if_all_steps_have_images(images: list[Span], spans: list[Span]) -> None:
    dataset = ClipDataset(spans + images, replace(CONFIG, num_frames=100, image_ratio=1.0))
    assert dataset.spans == images


def test_images_that_are_not_trained_on_are_logged(
    images: list[Span], spans: list[Span], caplog: pytest.LogCaptureFixture
) -> None:
    assert ClipDataset(images + spans, CONFIG).spans == spans
    assert "4 images are not trained on, because `image_ratio` is 0" in caplog.text
    with pytest.raises(DataError, match=r"`image_ratio` must be 0 for data without images, but got 0\.5"):
        ClipDataset(spans, replace(CONFIG, image_ratio=0.5))


def test_a_damaged_image_is_replaced_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = write_images(tmp_path, 2)
    paths.append(truncate(write_images(tmp_path / "cut", 1, ".jpg", 400, 400)[0], 0.6))
    dataset = ClipDataset([whole_video(index_video(path)) for path in paths], CONFIG)
    assert {Path(dataset[i]["source"]).suffix for i in range(20)} == {".png"}
    assert caplog.text.count(".jpg") == 1


def test_a_number_of_clips_comes_again(spans: list[Span]) -> None:
    config = replace(CONFIG, num_clips=3, buckets=(Bucket(5, 32, 40), Bucket(2, 32, 40)))
    dataset, endless = ClipDataset(spans, config), ClipDataset(spans, replace(config, num_clips=None))
    steps = {size_at(dataset, step): step for step in range(9)}
    assert len(steps) == 2
    for step in steps.values():
        assert torch.equal(dataset[step, 7]["video"], endless[step, 1]["video"])
        assert not torch.equal(dataset[step, 7]["video"], endless[step, 7]["video"])
    names = [dataset.names_of([(step, index) for index in range(7)]) for step in steps.values()]
    assert [len({*each}) for each in names] == [3, 3]
    assert len({*names[0], *names[1]}) == 6
    assert names[0][1] == f"{next(iter(steps))}-1"
    assert len({*endless.names_of([(0, index) for index in range(7)])}) == 7


WEIGHTED_BUCKETS = (Bucket(5, 32, 40, weight=3), Bucket(3, 48, 32), Bucket(9, 16, 16))


def test_draws_follow_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = Counter(draw_bucket(WEIGHTED_BUCKETS, generator) for _ in range(2000))
    assert set(counts) == set(WEIGHTED_BUCKETS)
    assert 1100 < counts[WEIGHTED_BUCKETS[0]] < 1300
    assert 330 < counts[WEIGHTED_BUCKETS[1]] < 470


@settings(deadline=None, max_examples=30)
@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5), seed=st.integers(0, 2**40))
def test_a_draw_is_one_of_the_buckets(weights: list[float], seed: int) -> None:
    buckets = [Bucket(1, 8, 8, weight) for weight in weights]
    assert draw_bucket(buckets, torch.Generator().manual_seed(seed)) in buckets


def test_a_draw_at_the_end_of_the_range_is_the_last_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product of a draw below 1 and the total weight can round up to the total weight."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.tensor(1.0, dtype=torch.float64))
    assert draw_bucket(WEIGHTED_BUCKETS, torch.Generator()) == WEIGHTED_BUCKETS[-1]


def test_a_model_is_checked_for_every_bucket() -> None:
    model = CausalVAE(
        CausalVAEConfig(
            time_compression=4,
            spatial_compression=4,
            latent_channels=4,
            patch_size=2,
            base_channels=8,
            blocks_per_level=1,
        )
    )
    valid = [Bucket(17, 32, 32), Bucket(1, 64, 32)]
    check_buckets(valid, model, images=True)
    with pytest.raises(ValueError, match=r"a clip of 16x32x32\. .*17.*next larger accepted size is 17x32x32\."):
        check_buckets([*valid, Bucket(16, 32, 32)], model, images=False)
    with pytest.raises(ValueError, match=r"a clip of 17x30x32\. .*accepted size is 17x32x32"):
        check_buckets([*valid, Bucket(17, 30, 32)], model, images=False)


class VideoOnly:
    """Accepts clips of 4 frames or more."""

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        if num_frames < 4:
            raise ValueError(f"{num_frames} frames are too few.")

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        return max(4, num_frames), height, width


def test_a_model_is_checked_for_images() -> None:
    check_buckets([Bucket(8, 32, 32)], VideoOnly(), images=False)
    message = r"but got an image of 1x32x32\. 1 frames are too few\. .*accepted size is 4x32x32"
    with pytest.raises(ValueError, match=message):
        check_buckets([Bucket(8, 32, 32)], VideoOnly(), images=True)


def test_files_may_be_drawn_equally_often(spans: list[Span]) -> None:
    long, parts = spans[1], [Span(spans[0].info, 0, 4), Span(spans[0].info, 5, 11)]
    by = {name: ClipDataset([long, *parts], replace(CONFIG, weighting=name), seed=0) for name in ("frames", "files")}
    drawn = {name: [dataset.spec_at(index, index).span for index in range(400)] for name, dataset in by.items()}
    counts = {name: [found.count(span) for span in (long, *parts)] for name, found in drawn.items()}
    assert counts["frames"][0] > 300, "28 of 32 positions"
    assert 160 < counts["files"][0] < 240
    assert counts["files"][2] > 2 * counts["files"][1], "3 positions and 1 of one file"
