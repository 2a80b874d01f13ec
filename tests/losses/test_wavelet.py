"""The Haar transform against a loop over blocks and Kronecker products; its loss against known values."""

import inspect
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.losses import haar, wavelet_l1

EVEN, ODD, IMAGE = (2, 3, 4, 6, 8), (2, 1, 5, 3, 7), (2, 3, 1, 6, 5)
shapes = pytest.mark.parametrize("shape", [EVEN, ODD, IMAGE])
sizes = st.tuples(*[st.integers(1, 5)] * 3)


def video(shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1


def naive_haar(x):
    """Return the coefficients of a single channel `(T, H, W)`, one by one."""
    halves = [math.ceil(size / 2) for size in x.shape]
    bands = torch.empty(8, *halves, dtype=x.dtype)
    for band, (t, h, w) in itertools.product(range(8), itertools.product(*map(range, halves))):
        high = (band >> 2 & 1, band >> 1 & 1, band & 1)
        total = 0.0
        for offset in itertools.product((0, 1), repeat=3):
            at = [min(2 * i + o, size - 1) for i, o, size in zip((t, h, w), offset, x.shape, strict=True)]
            sign = math.prod(-1 if is_high and o else 1 for is_high, o in zip(high, offset, strict=True))
            total += sign * x[tuple(at)].item()
        bands[band, t, h, w] = total / math.sqrt(8)
    return bands


def naive_loss(x, y, levels=1, weight=None):
    weight = [1.0] * len(x) if weight is None else weight.tolist()
    value = 0.0
    for sample, w in zip(x - y, weight, strict=True):
        channels = list(sample)
        for _ in range(levels):
            bands = [naive_haar(channel) for channel in channels]
            coefficients = [abs(c) for channel in bands for c in channel.flatten().tolist()]
            value += w * sum(coefficients) / len(coefficients) / levels / len(x)
            channels = [channel[0] / math.sqrt(8) for channel in bands]
    return value


def test_the_filters_by_hand():
    x = torch.arange(1.0, 9.0).reshape(1, 1, 2, 2, 2)  # width counts by 1, height by 2, time by 4
    expected = torch.tensor([36.0, -4.0, -8.0, 0.0, -16.0, 0.0, 0.0, 0.0]) / math.sqrt(8)
    torch.testing.assert_close(haar(x).flatten(), expected)


@settings(max_examples=15, deadline=None)
@given(size=sizes, seed=st.integers(0, 9))
def test_equals_a_loop_over_blocks(size, seed):
    x = video((2, 2, *size), seed)
    expected = torch.stack([torch.stack([naive_haar(c) for c in sample], 1) for sample in x])
    assert haar(x).shape == expected.shape == (2, 8, 2, *[math.ceil(n / 2) for n in size])
    torch.testing.assert_close(haar(x), expected)


def orthogonal(size):
    """Return the 1D transform of an even size as a matrix: the low band above the high one."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for k in range(size // 2):
        matrix[k, 2 * k : 2 * k + 2] = 0.5**0.5
        matrix[size // 2 + k, 2 * k : 2 * k + 2] = torch.tensor([0.5**0.5, -(0.5**0.5)])
    return matrix


def test_is_the_kronecker_product_of_three_orthogonal_matrices_whose_transpose_inverts_it():
    t, h, w = EVEN[2:]
    x = video(EVEN)
    matrix = torch.kron(torch.kron(orthogonal(t), orthogonal(h)), orthogonal(w))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(t * h * w, dtype=torch.float64))
    bands = haar(x).unflatten(1, (2, 2, 2)).permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(2)  # b c (t T) (h H) (w W)
    torch.testing.assert_close(bands, x.flatten(2) @ matrix.T)
    torch.testing.assert_close(bands @ matrix, x.flatten(2))


def test_even_sizes_keep_energy_and_inner_products():
    x, y = video(EVEN, 1), video(EVEN, 2)
    torch.testing.assert_close(haar(x).square().sum(), x.square().sum())
    torch.testing.assert_close((haar(x) * haar(y)).sum(), (x * y).sum())


@shapes
def test_a_constant_is_all_in_the_low_band(shape):
    bands = haar(torch.full(shape, 0.5, dtype=torch.float64))
    torch.testing.assert_close(bands[:, 0], torch.full_like(bands[:, 0], 0.5 * math.sqrt(8)))
    assert bands[:, 1:].eq(0).all()


def test_an_impulse_is_in_every_band_at_its_place():
    x = torch.zeros(1, 2, 4, 4, 4, dtype=torch.float64)
    x[0, 1, 2, 1, 3] = 1
    bands = haar(x)
    nonzero = bands.nonzero().tolist()
    assert nonzero == [[0, band, 1, 1, 0, 1] for band in range(8)]
    torch.testing.assert_close(bands.abs().sum(), torch.tensor(8 / math.sqrt(8), dtype=torch.float64))


@pytest.mark.parametrize(("axis", "band"), [(2, 4), (3, 2), (4, 1)])
def test_each_axis_has_its_band(axis, band):
    x = torch.zeros(1, 1, 4, 4, 4)
    x.index_fill_(axis, torch.tensor([0, 2]), 1.0)  # alternates along one axis
    filled = haar(x).flatten(2).abs().sum(2).nonzero()[:, 1].tolist()
    assert filled == [0, band]


def test_one_frame_has_no_temporal_detail():
    bands = haar(video(IMAGE))
    assert bands.shape == (2, 8, 3, 1, 3, 3)
    assert bands[:, 4:].eq(0).all()
    assert bands[:, :4].ne(0).any()


@settings(max_examples=10, deadline=None)
@given(size=sizes, levels=st.integers(1, 4), weighted=st.booleans())
def test_loss_equals_a_loop(size, levels, weighted):
    x, y = video((2, 2, *size), 1), video((2, 2, *size), 2)
    weight = torch.tensor([0.25, 3.0]) if weighted else None
    value = wavelet_l1(reconstruction=x, target=y, levels=levels, weight=weight)
    assert value.shape == ()
    assert value.item() == pytest.approx(naive_loss(x, y, levels, weight), rel=1e-10)


@shapes
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_a_constant_error_weighs_the_same_at_any_size_and_number_of_levels(shape, levels):
    x = video(shape)
    value = wavelet_l1(reconstruction=x + 0.4, target=x, levels=levels)
    assert value.item() == pytest.approx(0.4 / math.sqrt(8), rel=1e-9)


def test_a_weight_means_the_same_at_any_resolution():
    x, y = video((1, 2, 4, 4, 4), 1), video((1, 2, 4, 4, 4), 2)
    tiled = [tensor.repeat(1, 1, 2, 3, 2) for tensor in (x, y)]
    for levels in (1, 2):
        small = wavelet_l1(reconstruction=x, target=y, levels=levels)
        large = wavelet_l1(reconstruction=tiled[0], target=tiled[1], levels=levels)
        assert large.item() == pytest.approx(small.item(), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(size=sizes, levels=st.integers(1, 3), seed=st.integers(0, 99))
def test_stays_within_the_largest_error(size, levels, seed):
    x, y = video((1, 1, *size), seed), video((1, 1, *size), seed + 100)
    assert wavelet_l1(reconstruction=x, target=y, levels=levels) <= (x - y).abs().max() + 1e-12


def test_worst_case_is_2():
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (1, 1, 8, 8, 8), generator=generator) * 2.0 - 1
    assert wavelet_l1(reconstruction=signs, target=-signs) <= 2


def test_the_same_energy_loses_more_the_more_bands_it_is_spread_over():
    flat = torch.zeros(1, 1, 4, 4, 4)
    stripes = torch.ones_like(flat) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0)).sign()
    constant, one_band, all_bands = (
        wavelet_l1(reconstruction=error, target=flat).item() for error in (torch.ones_like(flat), stripes, noise)
    )
    assert constant == pytest.approx(one_band)
    assert all_bands > 1.5 * constant


@shapes
@pytest.mark.parametrize("fill", [-1.0, 0.0, 1.0, "noise"])
def test_identical_videos_lose_0_with_a_gradient_of_0(shape, fill):
    target = video(shape) if fill == "noise" else torch.full(shape, fill, dtype=torch.float64)
    x = target.clone().requires_grad_()
    value = wavelet_l1(reconstruction=x, target=target, levels=3)
    value.backward()
    assert value == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


@shapes
def test_symmetry_homogeneity_order(shape):
    x, y = video(shape, 1), video(shape, 2)
    value = wavelet_l1(reconstruction=x, target=y, levels=2)
    assert wavelet_l1(reconstruction=y, target=x, levels=2) == value
    half = wavelet_l1(reconstruction=(x + y) / 2, target=y, levels=2)
    assert half.item() == pytest.approx(value.item() / 2)


def test_gradcheck():
    x, y = (video((2, 1, 3, 2, 2), seed).requires_grad_() for seed in (1, 2))
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(haar, (x,))
    assert torch.autograd.gradcheck(
        lambda a, b, w: wavelet_l1(reconstruction=a, target=b, levels=2, weight=w), (x, y, weight)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_least_float32_also_under_autocast(dtype):
    x, y = video(EVEN, 1, dtype), video(EVEN, 2, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bands = haar(x)
        value = wavelet_l1(reconstruction=x, target=y, levels=2)
    wide = torch.promote_types(dtype, torch.float32)
    assert (bands.dtype, value.dtype) == (wide, wide)
    torch.testing.assert_close(bands, haar(x.to(wide)), rtol=0, atol=0)
    assert value.item() == pytest.approx(naive_loss(x.double(), y.double(), 2), rel=1e-5)


@pytest.mark.parametrize("levels", [0, -1, True])
def test_at_least_one_level(levels):
    x = video(EVEN)
    with pytest.raises(ValueError, match="`levels` must be an integer >= 1"):
        wavelet_l1(reconstruction=x, target=x, levels=levels)


def test_wrong_shapes():
    x = video(EVEN)
    with pytest.raises(ValueError, match="`weight` must be of shape"):
        wavelet_l1(reconstruction=x, target=x, weight=torch.ones(3))
    unchecked = inspect.unwrap(wavelet_l1)  # the shape types, which are checked in tests only, would speak first
    assert unchecked is not wavelet_l1
    with pytest.raises(ValueError, match="`reconstruction` must be of `target`'s shape"):
        unchecked(reconstruction=x[:, :, :2], target=x)


def test_nothing_waits_for_the_device():
    x = torch.empty(ODD, device="meta", requires_grad=True)
    value = wavelet_l1(reconstruction=x, target=x.detach(), levels=3, weight=torch.empty(2, device="meta"))
    value.backward()
    assert (value.shape, x.grad.shape) == ((), ODD)
