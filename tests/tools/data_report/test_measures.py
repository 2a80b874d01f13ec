"""Measures of frames on videos for which the answer is known."""

from itertools import pairwise

import pytest
import torch

from telecine.data import index_video, read_clip, sample_videos
from telecine.tools.data_report.measures import (
    brightness,
    changes,
    find_cuts,
    find_flaws,
    frame_hash,
    group_copies,
)

from ...data.videos import moving_frames


def cuts_of(frames):
    return find_cuts(changes(brightness(frames)).tolist())


def test_brightness_is_that_of_the_picture():
    frames = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    frames[1, :32] = 255
    grid = brightness(frames)
    assert grid.shape == (2, 32, 32)
    torch.testing.assert_close(grid[1], torch.cat([torch.ones(16, 32), torch.zeros(16, 32)]))


@pytest.mark.parametrize(
    ("frames", "flaws"),
    [
        (moving_frames(6), []),
        (moving_frames(1).expand(6, -1, -1, -1), ["static"]),
        (moving_frames(6) // 16, ["black"]),
        (moving_frames(1), []),  # an image is not static
        (torch.cat([moving_frames(7, seed=1), moving_frames(5, seed=2)]), ["cut before frame 7"]),
    ],
)
def test_what_is_unusual_about_a_clip(frames, flaws):
    assert find_flaws(frames) == flaws


def test_cuts_are_found_where_they_are():
    first = moving_frames(7, seed=1)
    second = moving_frames(5, seed=2)
    assert cuts_of(torch.cat([first, second, first])) == [7, 12]
    assert cuts_of(first) == cuts_of(first[:1]) == []


def test_cuts_of_real_videos():
    infos = [index_video(path) for path in sample_videos()]
    clips = [read_clip(info, 40, 17, size=(64, 96)) for info in infos]
    assert [cuts_of(clip) for clip in clips] == [[], [], [], []]
    assert cuts_of(read_clip(infos[1], 25, 17, size=(64, 96))) == [5], "a van, then a man"
    joined = [torch.cat([a[:9], b[:8]]) for a, b in pairwise(clips)]
    assert [cuts_of(clip) for clip in joined] == [[9], [9], [9]]


def test_copies_are_found_by_their_frames():
    frames = [moving_frames(1, 72, 64, seed)[0] for seed in range(3)]
    noisy = (frames[1].float() + 6 * torch.randn(frames[1].shape)).clamp(0, 255).to(torch.uint8)
    hashes = [(frame_hash(frame),) for frame in (*frames, noisy)]
    assert group_copies(hashes) == [[1, 3]]
    assert group_copies([*hashes[:2], (*hashes[1], 0)]) == [], "an image is no copy of a video"
    eight_bits = 0b11111111
    video = (0, 0, 0)
    assert group_copies([video, (eight_bits, 0, 0)]) == [[0, 1]], "as strong compression does"
    assert group_copies([video, (eight_bits << 1 | 1, 0, 0)]) == []
    assert group_copies([video[:1], (eight_bits,)]) == [], "an image has one frame alone"
    assert frame_hash(torch.full((72, 64, 3), 9, dtype=torch.uint8)) is None
