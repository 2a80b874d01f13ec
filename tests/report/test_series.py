import math
import random

import pytest

from telecine.report.curves import PANELS
from telecine.report.series import MAX_POINTS, as_curve, plots, table

from .runs import records


def same(value):
    return value


def test_few_points_stay_as_they_are():
    curve = as_curve(1, [(0, 1.0), (5, 2.123456), (7, -3.0)], lambda value: 2 * value)
    assert (curve.run, curve.steps, curve.values) == (1, [0, 5, 7], [2.0, 4.24691, -6.0])
    assert (curve.low, curve.high, curve.ends, curve.num_left_out) == ([], [], [], 0)


def test_many_points_become_buckets_that_keep_every_extreme():
    rng = random.Random(0)
    points = [(step, rng.gauss(0, 1)) for step in range(10_007)]
    points[5_000] = (5_000, 99.0)
    points[7_001] = (7_001, -99.0)
    curve = as_curve(0, points, same)
    assert len(curve.steps) == len(curve.values) == len(curve.low) == len(curve.high) == MAX_POINTS
    assert curve.steps == sorted(curve.steps)
    assert (max(curve.high), min(curve.low)) == (99.0, -99.0)
    near = curve.steps[curve.high.index(99.0)]
    assert abs(near - 5_000) < 20
    assert all(low <= value <= high for low, value, high in zip(curve.low, curve.values, curve.high, strict=True))
    mean = sum(value for _, value in points) / len(points)
    assert sum(curve.values) / MAX_POINTS == pytest.approx(mean, abs=0.01)


def test_what_is_not_finite_is_counted():
    curve = as_curve(0, [(0, 1.0), (1, math.nan), (2, math.inf)], same)
    assert (curve.steps, curve.values, curve.num_left_out) == ([0], [1.0], 2)


def test_every_logged_value_has_a_place():
    lines = [*records(40), {"step": 41, "train/kl_loss": 2.0, "health/accuracy_real": 0.5}]
    drawn = {plot.title: plot for plot in plots([lines])}
    logged = {name for line in lines for name in line} - {"step"}
    assert {series.name for plot in drawn.values() for series in plot.series} == logged
    assert len(logged) == 15
    assert "weights that change" not in drawn, "nothing was logged for it"
    assert list(drawn)[1:-2] == [panel.title for panel in PANELS if panel.title in drawn]
    terms = drawn["every loss term, on one scale"]
    assert [series.label for series in terms.series] == ["kl_loss", "mse", "perceptual_loss", "recon_loss"]
    assert drawn["health/accuracy_real"].series[0].curves[0].values == [0.5]


def test_all_frames_share_a_plot():
    drawn = plots([[{"step": 1, "train/frame_gradient_000": 0.9, "train/frame_gradient_001": 1.1}]])
    (plot,) = drawn
    assert plot.title == "gradient of each frame, 1 is an even share"
    assert [series.label for series in plot.series] == ["frame_gradient_000", "frame_gradient_001"]


def test_runs_lie_over_each_other():
    drawn = plots([records(5), records(8), [{"step": 1, "other": 1.0}]])
    (lr,) = next(plot for plot in drawn if plot.title == "learning rate").series
    assert [(curve.run, len(curve.steps)) for curve in lr.curves] == [(0, 5), (1, 8)]
    (other,) = next(plot for plot in drawn if plot.title == "other").series
    assert [curve.run for curve in other.curves] == [2]


def test_the_table_says_what_the_curves_show():
    rows = table(plots([[{"step": step, "train/lr": float(step)} for step in (3, 9, 5)]]), ["name"])
    expected = {"first": 3.0, "last": 5.0, "least": 3.0, "greatest": 9.0, "left_out": 0, "run": "name"}
    assert rows == [{"plot": "learning rate", "series": "autoencoder", **expected}]


def test_the_table_has_the_first_and_last_value_of_a_curve_in_buckets():
    num = 3 * MAX_POINTS
    (row,) = table(plots([[{"step": step, "train/lr": step / 4} for step in range(num)]]), ["name"])
    assert [row[name] for name in ("first", "least", "last", "greatest")] == [0.0, 0.0, (num - 1) / 4, (num - 1) / 4]


def test_nothing_logged_is_no_plot():
    assert plots([[], []]) == []
