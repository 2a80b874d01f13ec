"""Differences of evaluations and their confidence intervals."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from telecine.evaluation.difference import (
    bootstrap_interval,
    comparison_name,
    comparison_value,
    paired_differences,
    set_difference,
)


def clips(name, values):
    return [{name: value} for value in values]


def draws(num=60, seed=0, offset=0.0):
    return (torch.randn(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset).tolist()


def test_the_interval_equals_scipy():
    values = torch.tensor(draws(offset=0.3))
    low, high = bootstrap_interval(values[:, None])
    reference = bootstrap(
        (values.numpy(),), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (low.item(), high.item()) == pytest.approx((reference.low, reference.high), abs=0.01)


def test_the_interval_is_deterministic_and_independent_for_each_column():
    values = torch.tensor([draws(seed=0), draws(seed=1)]).T
    low, high = bootstrap_interval(values)
    again = bootstrap_interval(values[:, 1:])
    torch.testing.assert_close((low[1], high[1]), (again[0][0], again[1][0]))
    assert all(map(torch.equal, bootstrap_interval(values), (low, high)))


@pytest.mark.slow
def test_the_interval_covers_the_mean_in_19_of_20_cases():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, 400, generator=generator, dtype=torch.float64)
    low, high = bootstrap_interval(values)
    covered = ((low <= 0) & (high >= 0)).double().mean()
    assert 0.90 < covered < 0.98


@pytest.mark.parametrize(
    ("name", "shift", "better"),
    [
        ("psnr", 1.0, "B"),
        ("psnr", -1.0, "A"),
        ("psnr", 0.0, "undecided"),
        ("lpips_alex", 1.0, "A"),
        ("lpips_alex", -1.0, "B"),
        ("sharpness", 0.3, "B"),  # from 0.5 to 0.8
        ("sharpness", 1.3, "A"),  # from 0.5 to 1.8
        ("grid_8", -0.2, "B"),
        ("grid_8", -1.2, "A"),
    ],
)
def test_which_evaluation_is_better(name, shift, better):
    first = [0.5 + 0.01 * value for value in draws()]
    second = [0.5 + shift + 0.01 * value for value in draws(seed=1)]
    (difference,) = paired_differences(clips(name, first), clips(name, second), names=[name])
    assert difference.better == better
    assert difference.mean == pytest.approx(difference.second - difference.first)
    assert difference.interval[0] < difference.mean < difference.interval[1]


def test_pairing_removes_the_variance_between_clips():
    """Clips differ by 10 dB, the two evaluations of each clip by 0.1."""
    first = [30 + 10 * value for value in draws()]
    (difference,) = paired_differences(
        clips("psnr", first), clips("psnr", [value + 0.1 for value in first]), names=["psnr"]
    )
    assert difference.interval == pytest.approx((0.1, 0.1))
    assert difference.better == "B"


def test_a_single_clip_has_no_interval():
    (difference,) = paired_differences(clips("psnr", [30.0]), clips("psnr", [31.0]), names=["psnr"])
    assert (difference.interval, difference.better, difference.text()) == (None, "undecided", "+1")


def test_frechet_distances_have_no_interval():
    difference = set_difference("fvd", {"fvd": 90.0}, {"fvd": 80.0})
    assert (difference.mean, difference.interval, difference.better) == (-10, None, "undecided")


def test_metrics_that_are_best_near_a_number_are_compared_by_their_distance_from_it():
    assert [comparison_value("sharpness", 0.8), comparison_value("grid_4", -0.5)] == pytest.approx([0.2, 0.5])
    assert comparison_value("psnr", 30.0) == 30.0
    assert [comparison_name(name) for name in ("sharpness", "grid_4", "psnr")] == [
        "|sharpness - 1|",
        "|grid_4|",
        "psnr",
    ]


def test_nan_is_undecided():
    first, second = clips("psnr", [30.0, 31.0]), clips("psnr", [math.nan, 32.0])
    (difference,) = paired_differences(first, second, names=["psnr"])
    assert math.isnan(difference.mean)
    assert difference.better == "undecided"
