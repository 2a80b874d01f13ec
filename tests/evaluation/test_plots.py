"""Plots contain the given data."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from telecine.evaluation.difference import Difference
from telecine.evaluation.plots import plot_differences, plot_frames


@pytest.fixture
def figures(monkeypatch):
    """Collect the figures that are saved."""
    saved = []
    save = Figure.savefig

    def record(figure, *arguments, **options):
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    return saved


def test_one_panel_per_metric_and_one_line_per_evaluation(figures, tmp_path):
    curves = {"A": {"psnr": [30.0, 29.0], "ssim": [0.9, 0.8]}, "B": {"psnr": [31.0, 30.5]}}
    plot_frames(curves, tmp_path / "frames.png")
    psnr, ssim = figures[0].axes
    assert [line.get_label() for line in psnr.lines] == ["A", "B"]
    assert [list(line.get_ydata()) for line in psnr.lines] == [[30.0, 29.0], [31.0, 30.5]]
    assert [list(line.get_ydata()) for line in ssim.lines] == [[0.9, 0.8]]
    assert psnr.get_title() == "psnr, larger is better"
    with Image.open(tmp_path / "frames.png") as picture:
        assert picture.width > picture.height


def test_the_value_range_has_a_minimum(figures, tmp_path):
    plot_frames({"": {"psnr": [30.0, 30.01], "ssim": [0.5, 0.9]}}, tmp_path / "frames.png")
    heights = [np.ptp(axes.get_ylim()) for axes in figures[0].axes]
    assert heights == pytest.approx([1.0, 0.44])


@pytest.mark.parametrize(
    ("larger_is_better", "interval", "colour"),
    [
        (True, (1.0, 3.0), "#0072b2"),
        (False, (1.0, 3.0), "#d55e00"),
        (True, (-1.0, 5.0), "#707070"),
        (True, None, "#707070"),
    ],
)
def test_b_is_better_to_the_right_of_0(figures, tmp_path, larger_is_better, interval, colour):
    difference = Difference("psnr", 30.0, 32.0, 2.0, interval, larger_is_better)
    plot_differences([difference], "a title", tmp_path / "differences.png")
    (axes,) = figures[0].axes
    zero, bar, point = axes.lines
    place = axes.transData.transform
    assert (place((2, 0))[0] > place((0, 0))[0]) == larger_is_better
    assert tuple(bar.get_xdata()) == (interval or (2.0, 2.0))
    assert (list(point.get_xdata()), list(zero.get_xdata())) == ([2.0], [0, 0])
    assert point.get_color() == colour
    assert axes.texts[0].get_text() == difference.text()


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_equal_figures_and_nan_are_plotted(tmp_path, value):
    plot_differences([Difference("psnr", 30.0, value, value, (value, value), True)], "a title", tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width == 800
