"""The Haar transform equals a loop over blocks and a Kronecker product; its loss equals a loop over coefficients."""

import inspect
import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.losses import haar, wavelet_l1

from .harness import LossCase, LossTester, random

EVEN, ODD, IMAGE = (2, 3, 4, 6, 8), (2, 1, 5, 3, 7), (2, 3, 1, 6, 5)
SMALL = [(2, 1, 3, 2, 4), (2, 2, 2, 3, 1), (1, 2, 1, 4, 3), (2, 1, 5, 1, 2)]
sizes = st.tuples(*[st.integers(1, 5)] * 3)


def loop_over_blocks(x):
    """Return the coefficients of a single channel `(T, H, W)`, one by one."""
    halves = [math.ceil(size / 2) for size in x.shape]
    bands = torch.empty(8, *halves, dtype=x.dtype)
    for band, (t, h, w) in itertools.product(range(8), itertools.product(*map(range, halves))):
        high = (band >> 2 & 1, band >> 1 & 1, band & 1)
        total = 0.0
        for offset in itertools.product((0, 1), repeat=3):
            at = [
                min(2 * i + o, size - 1)
                for i, o, size in zip((t, h, w), offset, x.shape, strict=True)
            ]
            sign = math.prod(
                -1 if is_high and o else 1 for is_high, o in zip(high, offset, strict=True)
            )
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
            large={
                "reconstruction": 6e4 * random(EVEN, 0).sign(),
                "target": -6e4 * random(EVEN, 0).sign(),
            },
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
                    "the sample weights must be of shape (2,), but got a torch.float32 tensor of shape (3,) on cpu. "
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


@settings(max_examples=15, deadline=None)
@given(size=sizes, seed=st.integers(0, 9))
def test_haar_equals_a_loop_over_blocks(size, seed):
    x = random((2, 2, *size), seed)
    expected = torch.stack(
        [torch.stack([loop_over_blocks(channel) for channel in sample], 1) for sample in x]
    )
    assert haar(x).shape == expected.shape == (2, 8, 2, *[math.ceil(n / 2) for n in size])
    torch.testing.assert_close(haar(x), expected)
