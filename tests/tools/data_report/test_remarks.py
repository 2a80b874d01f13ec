"""Measures of frames on videos for which the answer is known."""

from itertools import pairwise

import torch

from telecine.data import index_video, read_clip, sample_videos
from telecine.tools.data_report import inspect
from telecine.tools.data_report.inspect import DEFINITIONS, _brightness, _changes, _copies, _cuts, _frame_hash, _remarks

from .conftest import moving_frames


def test_brightness_is_that_of_the_picture():
    frames = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    frames[1, :32] = 255
    grid = _brightness(frames)
    assert grid.shape == (2, 32, 32)
    torch.testing.assert_close(grid[1], torch.cat([torch.ones(16, 32), torch.zeros(16, 32)]))


def test_black_and_static_clips():
    def remarks(frames):
        return list(_remarks(_brightness(frames)))

    assert remarks(moving_frames(6)) == []
    assert remarks(moving_frames(1).expand(6, -1, -1, -1)) == ["static"]
    assert remarks(moving_frames(6) // 16) == ["black"]
    assert remarks(moving_frames(1)) == [], "an image is not static"


def found_cuts(frames):
    return _cuts(_changes(_brightness(frames)).tolist())


def test_cuts_are_found_where_they_are():
    first, second = moving_frames(7, seed=1), moving_frames(5, seed=2)
    assert found_cuts(torch.cat([first, second])) == [7]
    assert found_cuts(torch.cat([first, second, first])) == [7, 12]
    assert found_cuts(first) == []
    assert found_cuts(first[:1]) == []


def test_cuts_of_real_videos():
    infos = [index_video(path) for path in sample_videos()]
    clips = [read_clip(info, 40, 17, size=(64, 96)) for info in infos]
    assert [found_cuts(clip) for clip in clips] == [[], [], [], []]
    assert found_cuts(read_clip(infos[1], 25, 17, size=(64, 96))) == [5], "a van, then a man"
    joined = [torch.cat([a[:9], b[:8]]) for a, b in pairwise(clips)]
    assert [found_cuts(clip) for clip in joined] == [[9], [9], [9]]


def test_copies_are_found_by_their_frames():
    frames = [moving_frames(1, 72, 64, seed)[0] for seed in range(3)]
    noisy = (frames[1].float() + 6 * torch.randn(frames[1].shape)).clamp(0, 255).to(torch.uint8)
    hashes = [(_frame_hash(frame),) for frame in (*frames, noisy)]
    assert _copies(hashes) == [[1, 3]]
    assert _copies([*hashes[:2], (*hashes[1], 0)]) == [], "an image is no copy of a video"
    assert _frame_hash(torch.full((72, 64, 3), 9, dtype=torch.uint8)) is None


def test_the_definitions_state_the_limits():
    assert list(DEFINITIONS) == ["black", "static", "cut", "copies"]
    assert f"above {inspect._DARK:.0%}" in DEFINITIONS["black"]
    assert f"more than {inspect._STILL:.1%} on" in DEFINITIONS["static"]
    assert (
        f"more than {inspect._CUT:.0%} on average, and by more than {inspect._CUT_RATIO:g} times" in DEFINITIONS["cut"]
    )
    assert f"at most {inspect._MAX_BITS} bits" in DEFINITIONS["copies"]
