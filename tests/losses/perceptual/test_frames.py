"""Sampling frames, picking them, and the checks of a pair of frames."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.base.shapes import check_frame_pair
from telecine.losses.perceptual import pick_frames, sample_frame_indices


def clips(batch, time, height=1, width=1):
    return torch.zeros(batch, 1, time, height, width)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(
    batch=st.integers(1, 4),
    time=st.integers(1, 9),
    num_frames=st.one_of(st.integers(1, 12), st.just("all")),
)
@settings(max_examples=60, deadline=None)
def test_indices_are_different_sorted_frames_of_the_clip(batch, time, num_frames):
    indices = sample_frame_indices(clips(batch, time), num_frames)
    num_expected = time if num_frames == "all" else min(num_frames, time)
    assert indices.shape == (batch, num_expected)
    assert indices.dtype == torch.int64
    assert (indices.diff(dim=1) > 0).all()
    assert indices.min() >= 0
    assert indices.max() < time


@pytest.mark.parametrize("num_frames", [1, 3, 6, "all"])
def test_the_frames_with_the_largest_noise_are_selected(num_frames):
    ours = seeded(5)
    theirs = seeded(5)
    indices = sample_frame_indices(clips(8, 6), num_frames, ours)
    if num_frames in (1, 3):
        largest = torch.rand(8, 6, generator=theirs).topk(num_frames, dim=1).indices
        assert torch.equal(indices, largest.sort(dim=1).values)
    assert torch.equal(ours.get_state(), theirs.get_state()), (
        "all frames are selected without a draw"
    )
    sample_frame_indices(clips(8, 6), num_frames)
    assert torch.equal(ours.get_state(), theirs.get_state())


@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 6),
    num_frames=st.integers(1, 6),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_picks_clip_by_clip(batch, time, num_frames, seed):
    video = torch.rand(batch, 3, time, 4, 5, generator=seeded(seed))
    indices = sample_frame_indices(video, num_frames, seeded(seed))
    frames = pick_frames(video, indices)
    expected = [video[clip, :, frame] for clip, row in enumerate(indices.tolist()) for frame in row]
    assert torch.equal(frames, torch.stack(expected))
    assert frames.is_contiguous()


def test_gradcheck_with_a_frame_that_is_picked_twice():
    video = torch.rand(2, 1, 3, 2, 2, dtype=torch.float64).requires_grad_()
    indices = torch.tensor([[0, 2], [1, 1]])
    assert torch.autograd.gradcheck(lambda video: pick_frames(video, indices), (video,))
    assert torch.autograd.gradgradcheck(
        lambda video: pick_frames(video, indices).square(), (video,)
    )


def test_stays_on_the_device():
    # Meta tensors have no values: code that reads one raises.
    video = torch.zeros(2, 3, 5, 8, 8, device="meta")
    for num_frames in (1, 3, "all"):
        indices = sample_frame_indices(video, num_frames)
        assert indices.device.type == "meta"
        assert pick_frames(video, indices).shape == (2 * indices.shape[1], 3, 8, 8)


@pytest.mark.parametrize("num_frames", [0, "some", 1.0, None, True, [1]])
def test_wrong_number_of_frames(num_frames):
    with pytest.raises(
        ValueError,
        match=r'`num_frames` must be a positive int or "all", but got .*\(\w+\). Use 1 for',
    ):
        sample_frame_indices(clips(1, 4), num_frames)


def test_wrong_video():
    for function in (
        lambda video: sample_frame_indices(video, 1),
        lambda video: pick_frames(video, torch.zeros(1, 1)),
    ):
        with pytest.raises(ValueError, match="`video` must be"):
            function(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    "indices",
    [
        torch.zeros(2, 1),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(3, 1, dtype=torch.int64),
        [[0], [0]],
    ],
)
def test_wrong_indices(indices):
    with pytest.raises(
        ValueError, match=r"`indices` must be an int64 tensor of shape \(2, k\) on cpu"
    ):
        pick_frames(clips(2, 4), indices)


def test_frames_of_another_device():
    frames = torch.zeros(2, 3, 4, 5)
    with pytest.raises(
        ValueError, match="`target` must be on the same device as `reconstruction`, cpu"
    ):
        check_frame_pair(reconstruction=frames, target=frames.to("meta"))
