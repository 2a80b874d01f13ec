"""The Haar transform equals a loop over blocks and a Kronecker product; its loss equals a loop over coefficients."""

import inspect
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.losses import haar, wavelet_l1

from .harness import LossCase, LossTester, random

EVEN, ODD, IMAGE = (2, 3, 4, 6, 8), (2, 1, 5, 3, 7), (2, 3, 1, 6, 5)
SMALL = [(2, 1, 3, 2, 4), (2, 2, 2, 3, 1), (1, 2, 1, 4, 3), (2, 1, 5, 1, 2)]
shapes = pytest.mark.parametrize("shape", [EVEN, ODD, IMAGE])
sizes = st.tuples(*[st.integers(1, 5)] * 3)


def loop_over_blocks(x):
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


def loop_over_coefficients(reconstruction, target, levels=1, weight=None):
    weights = [1.0] * len(target) if weight is None else weight.tolist()
    value = 0.0
    for sample, w in zip(reconstruction - target, weights, strict=True):
        channels = list(sample)
        for _ in range(levels):
            bands = [loop_over_blocks(channel) for channel in channels]
            coefficients = [abs(c) for channel in bands for c in channel.flatten().tolist()]
            value += w * sum(coefficients) / len(coefficients) / levels / len(target)
            channels = [channel[0] / math.sqrt(8) for channel in bands]
    return value


def example(seed):
    shape = SMALL[seed % len(SMALL)]
    inputs = {"reconstruction": random(shape, seed), "target": random(shape, seed + 100)}
    if seed % 2:
        inputs |= {"weight": 1 + random(shape[:1], seed + 200), "levels": 1 + seed % 3}
    return inputs


def constant(error, shape):
    x = random(shape, 0)
    return {"reconstruction": x + error, "target": x}


class TestWavelet(LossTester):
    cases = (
        LossCase(
            name="wavelet_l1",
            loss=wavelet_l1,
            example=example,
            reference=loop_over_coefficients,
            learns=("reconstruction", "target", "weight"),
            # A constant error has the same loss at any size and number of levels.
            known=tuple(
                ({**constant(0.4, shape), "levels": levels}, 0.4 / math.sqrt(8))
                for shape, levels in ((EVEN, 1), (ODD, 2), (IMAGE, 5))
            ),
            optima=tuple(
                ({"reconstruction": x, "target": x, "levels": 3}, 0.0)
                for x in (torch.full(ODD, 0.5), random(EVEN, 0), random(IMAGE, 1))
            ),
            increasing=tuple(constant(error, ODD) for error in (0, 0.1, 1)),
            large={"reconstruction": 6e4 * random(EVEN, 0).sign(), "target": -6e4 * random(EVEN, 0).sign()},
            errors=(
                *(
                    (
                        {"levels": levels},
                        f"`levels` must be a positive int, but got {levels!r} ({type(levels).__name__}). "
                        "One level is the usual choice.",
                    )
                    for levels in (0, -1, True)
                ),
                (
                    {"reconstruction": torch.zeros(2, 1, 3, 2, 2)},
                    "`reconstruction` must be of `target`'s shape (2, 1, 3, 2, 4), but got a torch.float32 tensor of "
                    "shape (2, 1, 3, 2, 2) on cpu. Crop or pad one to match the other.",
                ),
                (
                    {"weight": torch.ones(3)},
                    "`weight` must be of shape (2,), but got a torch.float32 tensor of shape (3,) on cpu. "
                    "Pass one weight per sample.",
                ),
            ),
            unchecked=inspect.unwrap(wavelet_l1),
        ),
        LossCase(
            name="haar",
            loss=lambda video: haar(video).square().sum() / 2 + haar(video).sum(),
            example=lambda seed: {"video": random(SMALL[seed % len(SMALL)], seed)},
            reference=lambda video: sum(
                (bands**2).sum() / 2 + bands.sum()
                for bands in (loop_over_blocks(channel) for sample in video for channel in sample)
            ),
            learns=("video",),
        ),
    )


def test_filters_by_hand():
    x = torch.arange(1.0, 9.0).reshape(1, 1, 2, 2, 2)  # width counts by 1, height by 2, time by 4
    expected = torch.tensor([36.0, -4.0, -8.0, 0.0, -16.0, 0.0, 0.0, 0.0]) / math.sqrt(8)
    torch.testing.assert_close(haar(x).flatten(), expected)


@settings(max_examples=15, deadline=None)
@given(size=sizes, seed=st.integers(0, 9))
def test_haar_equals_a_loop_over_blocks(size, seed):
    x = random((2, 2, *size), seed)
    expected = torch.stack([torch.stack([loop_over_blocks(channel) for channel in sample], 1) for sample in x])
    assert haar(x).shape == expected.shape == (2, 8, 2, *[math.ceil(n / 2) for n in size])
    torch.testing.assert_close(haar(x), expected)


def orthogonal(size):
    """Return the 1D transform of an even size as a matrix: low-pass rows above high-pass rows."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for k in range(size // 2):
        matrix[k, 2 * k : 2 * k + 2] = 0.5**0.5
        matrix[size // 2 + k, 2 * k : 2 * k + 2] = torch.tensor([0.5**0.5, -(0.5**0.5)])
    return matrix


def test_haar_is_the_kronecker_product_of_three_orthogonal_matrices():
    t, h, w = EVEN[2:]
    x = random(EVEN, 0)
    matrix = torch.kron(torch.kron(orthogonal(t), orthogonal(h)), orthogonal(w))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(t * h * w, dtype=torch.float64))
    bands = haar(x).unflatten(1, (2, 2, 2)).permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(2)  # b c (t T) (h H) (w W)
    torch.testing.assert_close(bands, x.flatten(2) @ matrix.T)


@shapes
def test_a_constant_video_has_only_the_low_pass_band(shape):
    bands = haar(torch.full(shape, 0.5, dtype=torch.float64))
    torch.testing.assert_close(bands[:, 0], torch.full_like(bands[:, 0], 0.5 * math.sqrt(8)))
    assert bands[:, 1:].eq(0).all()


def test_an_impulse_appears_in_every_band_at_its_position():
    x = torch.zeros(1, 2, 4, 4, 4, dtype=torch.float64)
    x[0, 1, 2, 1, 3] = 1
    assert haar(x).nonzero().tolist() == [[0, band, 1, 1, 0, 1] for band in range(8)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_haar_of_half_precision_is_computed_in_float32(dtype):
    x = random(EVEN, 1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bands = haar(x)
    torch.testing.assert_close(bands, haar(x.float()), rtol=0, atol=0)


def test_a_weight_means_the_same_at_any_resolution():
    pair = {"reconstruction": random((1, 2, 4, 4, 4), 1), "target": random((1, 2, 4, 4, 4), 2)}
    tiled = {name: tensor.repeat(1, 1, 2, 3, 2) for name, tensor in pair.items()}
    for levels in (1, 2):
        assert wavelet_l1(**tiled, levels=levels).item() == pytest.approx(wavelet_l1(**pair, levels=levels).item())


@settings(max_examples=20, deadline=None)
@given(size=sizes, levels=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_loss_is_at_most_the_largest_error(size, levels, seed):
    x, y = random((1, 1, *size), seed), random((1, 1, *size), seed + 100)
    assert wavelet_l1(reconstruction=x, target=y, levels=levels) <= (x - y).abs().max() + 1e-12


def test_an_error_of_the_same_energy_costs_more_in_more_bands():
    flat = torch.zeros(1, 1, 4, 4, 4)
    stripes = torch.ones_like(flat) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    noise = random(flat.shape, 0).sign()
    uniform, one_band, all_bands = (
        wavelet_l1(reconstruction=error, target=flat).item() for error in (torch.ones_like(flat), stripes, noise)
    )
    assert uniform == pytest.approx(one_band)
    assert all_bands > 1.5 * uniform
