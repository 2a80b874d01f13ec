"""Settings of clips."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.settings import Bucket, ClipConfig, MeasuredClips
from telecine.settings.data import CONTENT, MEASURED, READING, settings_marked
from telecine.settings.upgrade import DEFAULTS_OF_OLD_RUNS

BUCKETS = (Bucket(5, 32, 40, weight=3), Bucket(3, 48, 32), Bucket(9, 16, 16))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_frames", 0),
        ("height", 2.5),
        ("width", -1),
        ("weight", 0.0),
        ("weight", float("nan")),
        ("weight", float("inf")),
    ],
)
def test_invalid_bucket(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .*, but got {value}"):
        Bucket(**{"num_frames": 1, "height": 8, "width": 8, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_frames", 0),
        ("height", 0),
        ("width", -4),
        ("stride", 0),
        ("num_workers", -1),
        ("num_clips", 0),
        ("max_pixels", 0),
        ("max_pixels", 178_956_971),
        ("timeout", 0.0),
        ("scale_jitter", 0.9),
        ("scale_jitter", 8.1),
        ("scale_jitter", float("nan")),
        ("val_fraction", 0.0),
        ("val_fraction", 0.6),
        ("holdout", "'somehow'"),
        ("holdout", "'column:'"),
        ("layout", "'HW H W'"),
        ("image_ratio", -0.1),
        ("image_ratio", 1.5),
    ],
)
def test_invalid_setting(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .*, but got {value}"):
        ClipConfig(**{name: value.strip("'") if isinstance(value, str) else value})


def test_limits_are_valid():
    ClipConfig(num_workers=0, scale_jitter=8.0, val_fraction=0.5, image_ratio=1.0)
    Bucket(1, 1, 1)


def test_the_buckets_must_include_the_validation_size():
    assert ClipConfig(num_frames=5, height=32, width=40, buckets=BUCKETS).train_buckets == BUCKETS
    assert ClipConfig().train_buckets == (ClipConfig().val_bucket,) == (Bucket(17, 256, 256),)
    message = r"`buckets` must be clip sizes that include 17x256x256, but got 5x32x40, .*Set num_frames, height and"
    with pytest.raises(ValueError, match=message):
        ClipConfig(buckets=BUCKETS)


def test_only_square_clips_are_turned():
    with pytest.raises(
        ValueError,
        match=r"`random_orientation` must be false .*\. Set it to false, or make 17x64x48",
    ):
        ClipConfig(height=64, width=48, random_orientation=True)


def test_buckets_are_instances_or_dicts():
    buckets = [{"num_frames": 17, "height": 256, "width": 256}]
    assert ClipConfig(buckets=buckets).buckets == (Bucket(17, 256, 256),)
    with pytest.raises(
        ValueError, match=r"`buckets.0.heigth` is not a setting. Did you mean `buckets.0.height`"
    ):
        ClipConfig(buckets=[{"num_frames": 17, "heigth": 256, "width": 256}])


def test_frames_are_chosen_by_time_or_by_number():
    with pytest.raises(
        ValueError, match="`fps` must be left out with a `stride` above 1, but got 24"
    ):
        ClipConfig(fps=24, stride=2)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    crop=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    zoom=st.floats(1, 2),
)
def test_the_decode_size_covers_the_crop(size, crop, zoom):
    height, width = Bucket(1, *crop).decode_size(*size, zoom)
    assert height >= crop[0]
    assert width >= crop[1]
    # One side fits exactly, up to rounding and the zoom, so no frame is decoded larger than needed.
    assert height <= crop[0] * zoom + 1 or width <= crop[1] * zoom + 1
    # The aspect ratio stays, up to rounding.
    assert (
        abs(height * size[1] - width * size[0]) <= max(size) + 1
        or height == crop[0]
        or width == crop[1]
    )


def test_whether_pixels_are_varied():
    assert not ClipConfig(random_flip=False).augments
    for change in ({"random_flip": True}, {"random_orientation": True}, {"scale_jitter": 1.5}):
        assert ClipConfig(**{"random_flip": False, **change}).augments


@pytest.mark.parametrize("other", [{"cache": True}, {"holdout": "earlier"}])
def test_what_needs_all_videos_is_refused_with_a_lazy_index(other):
    with pytest.raises(
        ValueError, match=f"`index` must be ahead with `{next(iter(other))}`.* 'lazy'"
    ):
        ClipConfig(index="lazy", **other)


def test_the_identity_of_clips_has_what_changes_them():
    read_otherwise = ClipConfig(
        num_clips=3, num_workers=5, timeout=9.0, cache=True, max_pixels=10**6, val_fraction=0.3
    )
    assert read_otherwise.identity() == ClipConfig().identity()
    # As folders of latents have them: another name would refuse those of earlier versions.
    assert [*ClipConfig(**DEFAULTS_OF_OLD_RUNS).identity()] == [
        *("num_frames", "height", "width", "buckets", "image_ratio", "stride"),
        *("random_flip", "random_orientation", "scale_jitter", "weighting"),
    ]
    zoomed = ClipConfig(scale_jitter=2.0, **DEFAULTS_OF_OLD_RUNS)
    assert zoomed.identity() != replace(zoomed, cache=True).identity(), (
        "which is resized from other frames"
    )
    assert ClipConfig(stride=2).identity() != ClipConfig().identity()


def test_each_setting_is_marked_as_changing_clips_or_not():
    content = settings_marked(CONTENT)
    reading = settings_marked(READING)
    assert sorted(content + reading) == sorted(item.name for item in fields(ClipConfig))
    measured = settings_marked(MEASURED)
    assert len(measured) == 5
    assert set(measured) < {item.name for item in fields(MeasuredClips)}
