"""Sampling frames, picking them, and the checks of a pair of frames."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.base.shapes import check_frame_pair
from telecine.losses.perceptual import pick_frames, sample_frame_indices

FRAMES = torch.zeros(2, 3, 4, 5)


def clips(batch, time, height=1, width=1):
    return torch.zeros(batch, 1, time, height, width)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(batch=st.integers(1, 4), time=st.integers(1, 9), num_frames=st.one_of(st.integers(1, 12), st.just("all")))
@settings(max_examples=60, deadline=None)
def test_indices_are_different_sorted_frames_of_the_clip(batch, time, num_frames):
    indices = sample_frame_indices(clips(batch, time), num_frames)
    expected = time if num_frames == "all" else min(num_frames, time)
    assert indices.shape == (batch, expected)
    assert indices.dtype == torch.int64
    assert (indices[:, 1:] > indices[:, :-1]).all()
    assert indices.min() >= 0
    assert indices.max() < time


@pytest.mark.parametrize("num_frames", ["all", 5, 6])
def test_all_frames_are_in_order(num_frames):
    assert sample_frame_indices(clips(2, 5), num_frames).tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("num_frames", [1, 3])
def test_every_frame_is_drawn_equally_often(num_frames):
    num_clips, time = 20_000, 7
    counts = sample_frame_indices(clips(num_clips, time), num_frames, seeded()).flatten().bincount(minlength=time)
    share = num_frames / time
    deviation = (num_clips * share * (1 - share)) ** 0.5
    assert ((counts - num_clips * share).abs() < 4 * deviation).all()


@pytest.mark.parametrize("num_frames", [1, 3, 6, "all"])
def test_the_frames_with_the_largest_noise_are_selected(num_frames):
    ours, theirs = seeded(5), seeded(5)
    indices = sample_frame_indices(clips(8, 6), num_frames, ours)
    if num_frames in (1, 3):
        largest = torch.rand(8, 6, generator=theirs).topk(num_frames, dim=1).indices
        assert torch.equal(indices, largest.sort(dim=1).values)
    assert torch.equal(ours.get_state(), theirs.get_state())
    assert torch.equal(indices, sample_frame_indices(clips(8, 6), num_frames, seeded(5)))


# Independence, reproducibility, gradients


def test_clips_are_independent():
    num_pairs, time = 16_000, 4
    first, second = sample_frame_indices(clips(2 * num_pairs, time), 1, seeded()).view(num_pairs, 2).unbind(1)
    counts = (first * time + second).bincount(minlength=time**2)
    deviation = (num_pairs / 16 * 15 / 16) ** 0.5
    assert ((counts - num_pairs / 16).abs() < 4 * deviation).all()


def test_generator_makes_the_draw_reproducible():
    video = clips(8, 30)
    first, second = (sample_frame_indices(video, 4, seeded(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, sample_frame_indices(video, 4, seeded(4)))
    generator = seeded(3)
    assert not torch.equal(*(sample_frame_indices(video, 4, generator) for _ in range(2)))
    state = generator.get_state()
    sample_frame_indices(video, 4)
    assert torch.equal(generator.get_state(), state)


@given(batch=st.integers(1, 3), time=st.integers(1, 6), num_frames=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_picks_clip_by_clip(batch, time, num_frames, seed):
    video = torch.rand(batch, 3, time, 4, 5, generator=seeded(seed))
    indices = sample_frame_indices(video, num_frames, seeded(seed))
    frames = pick_frames(video, indices)
    expected = [video[clip, :, frame] for clip, row in enumerate(indices.tolist()) for frame in row]
    assert torch.equal(frames, torch.stack(expected))
    assert frames.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradient_reaches_the_picked_frames_only(dtype):
    video = torch.rand(2, 3, 5, 4, 4, dtype=dtype).requires_grad_()
    indices = torch.tensor([[1, 4], [0, 0]])  # a frame that is picked twice
    frames = pick_frames(video, indices)
    assert frames.dtype == dtype
    frames.sum().backward()
    expected = torch.zeros_like(video)
    expected[0, :, [1, 4]], expected[1, :, 0] = 1, 2
    assert torch.equal(video.grad, expected)


def test_gradcheck():
    video = torch.rand(2, 1, 3, 2, 2, dtype=torch.float64).requires_grad_()
    indices = torch.tensor([[0, 2], [1, 2]])
    assert torch.autograd.gradcheck(lambda video: pick_frames(video, indices), (video,))
    assert torch.autograd.gradgradcheck(lambda video: pick_frames(video, indices).square(), (video,))


def test_stays_on_the_device():
    # Meta tensors have no values: code that reads one raises.
    video = torch.zeros(2, 3, 5, 8, 8, device="meta")
    for num_frames in (1, 3, "all"):
        indices = sample_frame_indices(video, num_frames)
        assert indices.device.type == "meta"
        assert pick_frames(video, indices).shape == (2 * indices.shape[1], 3, 8, 8)


@pytest.mark.parametrize("num_frames", [0, "some", 1.0, None, True, [1]])
def test_wrong_number_of_frames(num_frames):
    with pytest.raises(ValueError, match=r'`num_frames` must be a positive int or "all", but got .*\(\w+\). Use 1 for'):
        sample_frame_indices(clips(1, 4), num_frames)


def test_wrong_video():
    for function in (lambda video: sample_frame_indices(video, 1), lambda video: pick_frames(video, torch.zeros(1, 1))):
        with pytest.raises(ValueError, match="`video` must be"):
            function(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    "indices", [torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64), [[0], [0]]]
)
def test_wrong_indices(indices):
    with pytest.raises(ValueError, match=r"`indices` must be an int64 tensor of shape \(2, k\) on cpu"):
        pick_frames(clips(2, 4), indices)


def test_generator_of_another_device():
    video = torch.zeros(1, 3, 4, 8, 8, device="meta")
    with pytest.raises(ValueError, match=r'`generator` must be on meta, but got .* on cpu. .*Generator\("meta"'):
        sample_frame_indices(video, 1, seeded())


# Pairs of frames


def test_a_pair_of_any_precision_number_and_channels():
    for frames in (FRAMES, FRAMES.half(), FRAMES[:0], FRAMES[:, :1], FRAMES.to("meta")):
        check_frame_pair(reconstruction=frames, target=frames.double())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (FRAMES[0], r"`target` must be a floating-point tensor of shape \(N, C, H, W\)"),
        (FRAMES[:1], r"`target` must be of `reconstruction`'s shape \(2, 3, 4, 5\)"),
        (FRAMES.to("meta"), "`target` must be on the same device as `reconstruction`, cpu"),
    ],
)
def test_wrong_pair(target, message):
    with pytest.raises(ValueError, match=message):
        check_frame_pair(reconstruction=FRAMES, target=target)


def test_wrong_reconstruction():
    with pytest.raises(ValueError, match=r"`reconstruction` must be a floating-point tensor of shape \(N, C, H, W\)"):
        check_frame_pair(reconstruction=FRAMES.byte(), target=FRAMES)
