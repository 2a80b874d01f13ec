"""The blur against a loop over positions in every mode, and the properties of a low-pass filter."""

import itertools

import pytest
import torch

from telecine.discriminators import Blur

MODES = {"both": {}, "space": {"space_only": True}, "time": {"time_only": True}}
AXES = {"both": (True, True, True), "space": (False, True, True), "time": (True, False, False)}


def naive_blur(x, mode):
    """Sum over a 3 x 3 x 3 neighbourhood whose positions are clamped to the video."""
    out = torch.zeros_like(x)
    sizes = x.shape[-3:]
    reaches = [(-1, 0, 1) if active else (0,) for active in AXES[mode]]
    for position in itertools.product(*map(range, sizes)):
        weights = 0
        for shift in itertools.product(*reaches):
            weight = 1
            for step, reach in zip(shift, reaches, strict=True):
                weight *= (2 if step == 0 else 1) if len(reach) == 3 else 1
            near = [min(max(p + s, 0), size - 1) for p, s, size in zip(position, shift, sizes, strict=True)]
            out[(..., *position)] += weight * x[(..., *near)]
            weights += weight
        out[(..., *position)] /= weights
    return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 3, 4, 3, 5), (1, 2, 2, 1, 4), (1, 1, 1, 5, 2)])
def test_videos_equal_a_loop(mode, shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(Blur().double()(x, **MODES[mode]), naive_blur(x, mode))


@pytest.mark.parametrize("flags", [{}, {"space_only": True}])
def test_images_are_blurred_in_space(flags):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(Blur()(x, **flags), naive_blur(x[:, :, None], "space")[:, :, 0])


def test_known_values_of_an_impulse():
    x = torch.zeros(1, 1, 3, 3, 3)
    x[..., 1, 1, 1] = 64
    kernel = torch.tensor([1.0, 2.0, 1.0])
    assert torch.equal(Blur()(x)[0, 0], torch.einsum("i,j,k->ijk", kernel, kernel, kernel))
    assert torch.equal(Blur()(x, space_only=True)[0, 0, 1], 4 * torch.outer(kernel, kernel))
    assert torch.equal(Blur()(x, time_only=True)[0, 0, :, 1, 1], 16 * kernel)
    assert Blur()(x, space_only=True)[0, 0, [0, 2]].abs().sum() == 0


def test_edges_are_replicated():
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert Blur()(ramp)[0, 0, 0].tolist() == [0.25, 1.0, 2.0, 2.75]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_constant_stays(mode, dtype):
    x = torch.full((1, 2, 3, 4, 5), 0.5, dtype=dtype)
    out = Blur()(x, **MODES[mode])
    assert out.dtype == dtype
    assert torch.equal(out, x)


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck_and_gradgradcheck(mode):
    torch.manual_seed(0)
    x = torch.randn(1, 1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    blur = Blur().double()
    assert torch.autograd.gradcheck(lambda x: blur(x, **MODES[mode]), (x,))
    # A linear map has no second derivative of its own; behind a square there is one.
    assert torch.autograd.gradgradcheck(lambda x: blur(x, **MODES[mode]) ** 2, (x,))


def test_the_kernel_is_in_the_state_dict():
    assert Blur().state_dict()["f"].tolist() == [1.0, 2.0, 1.0]
    assert not list(Blur().parameters())


def test_errors():
    with pytest.raises(ValueError, match=r"`space_only` and `time_only` must not both be set. Set neither"):
        Blur()(torch.zeros(1, 1, 2, 2, 2), space_only=True, time_only=True)
    with pytest.raises(ValueError, match=r"`time_only` must come with a video .*\(1, 1, 2, 2\)"):
        Blur()(torch.zeros(1, 1, 2, 2), time_only=True)
