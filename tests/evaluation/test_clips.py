"""Which clips are measured."""

import pytest

from telecine.data import ClipConfig, find_videos, index_videos
from telecine.evaluation.clips import plan_clips, read_place


@pytest.fixture(scope="module")
def infos(videos):
    return index_videos(find_videos(videos))[0]


def starts(places):
    return [(place.info.path.stem, place.first_frame) for place in places]


def test_all_clips_without_overlap(infos):
    places = plan_clips(infos, ClipConfig(num_frames=5, stride=2, height=32, width=32), 100)
    assert starts(places) == [(name, start) for name in ("three", "one", "two") for start in (0, 9)]


def test_fewer_are_spread_evenly(infos):
    config = ClipConfig(num_frames=5, height=32, width=32)
    assert starts(plan_clips(infos, config, 3)) == [("three", 10), ("one", 10), ("two", 10)]
    assert starts(plan_clips(infos, config, 1)) == [("one", 10)]


def test_a_place_is_read_as_it_was_planned(infos):
    config = ClipConfig(num_frames=5, stride=2, height=32, width=32)
    clip = read_place(plan_clips(infos, config, 100)[3], config)
    assert (clip["source"], clip["start"]) == (str(infos[1].path), 9)
    assert clip["video"].shape == (3, 5, 32, 32)


@pytest.mark.parametrize(
    ("num_frames", "max_clips", "message"), [(27, 1, "at least 27 frames.*at most 26"), (5, 0, "`max_clips` must be")]
)
def test_refusals(infos, num_frames, max_clips, message):
    with pytest.raises(ValueError, match=message):
        plan_clips(infos, ClipConfig(num_frames=num_frames), max_clips)
