"""Curves of a size that a browser handles."""

import math
import random

import pytest

from telecine.report.chart_data import MAX_POINTS, Curve, make_curve


def test_few_points_stay_unchanged():
    curve = make_curve(1, [(0, 1.0), (5, 2.123456), (7, -3.0)])
    assert curve == Curve(run=1, steps=[0, 5, 7], values=[1.0, 2.12346, -3.0], first=1.0, last=-3.0)
    assert (curve.minimum, curve.maximum) == (-3.0, 2.12346)


def test_many_points_become_buckets_that_keep_extremes_and_ends():
    rng = random.Random(0)
    points = [(step, rng.gauss(0, 1)) for step in range(10_007)]
    points[0] = (0, 0.25)
    points[5_000] = (5_000, 99.0)
    points[7_001] = (7_001, -99.0)
    points[-1] = (10_006, 0.75)
    curve = make_curve(0, points)
    assert len(curve.steps) == len(curve.values) == len(curve.low) == len(curve.high) == MAX_POINTS
    assert curve.steps == sorted(curve.steps)
    assert (curve.first, curve.last, curve.minimum, curve.maximum) == (0.25, 0.75, -99.0, 99.0)
    assert abs(curve.steps[curve.high.index(99.0)] - 5_000) < 20
    for low, value, high in zip(curve.low, curve.values, curve.high, strict=True):
        assert low <= value <= high
    mean = sum(value for _, value in points) / len(points)
    assert sum(curve.values) / MAX_POINTS == pytest.approx(mean, abs=0.01)


def test_values_that_are_not_finite_are_counted():
    curve = make_curve(0, [(0, 1.0), (1, math.nan), (2, math.inf)])
    assert (curve.steps, curve.values, curve.num_left_out) == ([0], [1.0], 2)
    assert make_curve(0, [(0, math.nan)]) == Curve(run=0, num_left_out=1)
