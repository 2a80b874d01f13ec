"""The temporal difference against a loop over frames, and what it sees and does not see."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.losses import l1, temporal_difference


def video(shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1


def naive(x, y, weight=None):
    weight = [1.0] * len(x) if weight is None else weight.tolist()
    value = 0.0
    for a, b, w in zip(x, y, weight, strict=True):
        steps = [
            abs(p - q)
            for t in range(x.shape[2] - 1)
            for p, q in zip(
                (a[:, t + 1] - a[:, t]).flatten().tolist(), (b[:, t + 1] - b[:, t]).flatten().tolist(), strict=True
            )
        ]
        value += w * sum(steps) / len(steps) / len(x)
    return value


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 5), st.integers(1, 3), st.integers(1, 3)),
    weighted=st.booleans(),
)
def test_equals_a_loop(shape, weighted):
    x, y = video(shape, 1), video(shape, 2)
    weight = torch.linspace(0, 2, shape[0]) if weighted else None
    value = temporal_difference(reconstruction=x, target=y, weight=weight)
    assert value.shape == ()
    assert value.item() == pytest.approx(naive(x, y, weight), rel=1e-10, abs=1e-12)


def test_by_hand():
    x = torch.tensor([0.0, 1.0, -1.0]).reshape(1, 1, 3, 1, 1)
    y = torch.tensor([0.0, 0.5, 0.5]).reshape(1, 1, 3, 1, 1)
    assert temporal_difference(reconstruction=x, target=y).item() == (abs(1 - 0.5) + abs(-2 - 0)) / 2


def test_the_worst_case_is_4():
    flicker = torch.tensor([1.0, -1.0, 1.0]).reshape(1, 1, 3, 1, 1)
    assert temporal_difference(reconstruction=flicker, target=-flicker) == 4


def test_is_blind_to_what_stays_and_sees_flicker_of_the_same_size():
    x = video((2, 3, 6, 4, 4))
    still = 0.1 * video((2, 3, 1, 4, 4), 1)
    flicker = still * torch.tensor([1.0, -1.0] * 3).reshape(1, 1, 6, 1, 1)
    assert temporal_difference(reconstruction=x + still, target=x).item() == pytest.approx(0, abs=1e-15)
    seen = temporal_difference(reconstruction=x + flicker, target=x).item()
    assert seen == pytest.approx(2 * l1(reconstruction=x + flicker, target=x).item())


@pytest.mark.parametrize("weight", [None, torch.ones(2)])
def test_one_frame_is_exactly_0_with_a_gradient_of_0(weight):
    x, y = video((2, 3, 1, 4, 4), 1).requires_grad_(), video((2, 3, 1, 4, 4), 2)
    value = temporal_difference(reconstruction=x, target=y, weight=weight)
    value.backward()
    assert value == 0
    assert value.dtype == torch.float64
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("fill", [-1.0, 0.0, 1.0, "noise"])
def test_identical_videos_lose_0_with_a_gradient_of_0(frames, fill):
    shape = (2, 3, frames, 4, 4)
    target = video(shape) if fill == "noise" else torch.full(shape, fill, dtype=torch.float64)
    x = target.clone().requires_grad_()
    value = temporal_difference(reconstruction=x, target=target)
    value.backward()
    assert value == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_symmetry_homogeneity():
    x, y = video((2, 1, 4, 3, 3), 1), video((2, 1, 4, 3, 3), 2)
    value = temporal_difference(reconstruction=x, target=y).item()
    assert temporal_difference(reconstruction=y, target=x).item() == value
    assert temporal_difference(reconstruction=(x + y) / 2, target=y).item() == pytest.approx(value / 2)


def test_gradcheck():
    x, y = (video((2, 1, 3, 2, 1), seed).requires_grad_() for seed in (1, 2))
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b, w: temporal_difference(reconstruction=a, target=b, weight=w), (x, y, weight)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("frames", [1, 3])
def test_at_least_float32_also_under_autocast(dtype, frames):
    x, y = (video((2, 1, frames, 3, 3), seed, dtype) for seed in (1, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = temporal_difference(reconstruction=x, target=y)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value.item() == pytest.approx(naive(x.double(), y.double()) if frames > 1 else 0, rel=1e-5)


def test_wrong_shapes():
    x = video((2, 1, 3, 2, 2))
    with pytest.raises(ValueError, match="`weight` must be of shape"):
        temporal_difference(reconstruction=x, target=x, weight=torch.ones(3))
    unchecked = inspect.unwrap(
        temporal_difference
    )  # the shape types, which are checked in tests only, would speak first
    assert unchecked is not temporal_difference
    with pytest.raises(ValueError, match="`reconstruction` must be of `target`'s shape"):
        unchecked(reconstruction=x[:, :, :1], target=x)


@pytest.mark.parametrize("frames", [1, 4])
def test_nothing_waits_for_the_device(frames):
    x = torch.empty(2, 3, frames, 4, 4, device="meta", requires_grad=True)
    value = temporal_difference(reconstruction=x, target=x.detach(), weight=torch.empty(2, device="meta"))
    value.backward()
    assert value.shape == ()


def test_a_mask_leaves_out_steps_of_which_a_frame_is_masked():
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 5, 4, 4), torch.randn(2, 3, 5, 4, 4)
    frames = torch.tensor([True, True, False, True, True]).view(1, 1, 5, 1, 1)
    steps = [temporal_difference(reconstruction=x[:, :, t : t + 2], target=y[:, :, t : t + 2]) for t in (0, 3)]
    masked = temporal_difference(reconstruction=x, target=y, mask=frames)
    torch.testing.assert_close(masked, sum(steps) / 2)
    everything = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
    plain = temporal_difference(reconstruction=x, target=y)
    torch.testing.assert_close(temporal_difference(reconstruction=x, target=y, mask=everything), plain)
    assert temporal_difference(reconstruction=x, target=y, mask=~everything) == 0
