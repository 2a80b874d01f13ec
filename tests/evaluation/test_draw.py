"""The pictures show what they are given."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from telecine.evaluation.difference import Difference
from telecine.evaluation.draw import draw_differences, draw_frames


@pytest.fixture
def figures(monkeypatch):
    """Collect the figures that are saved."""
    seen = []
    save = Figure.savefig

    def remember(figure, *arguments, **options):
        seen.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return seen


def test_a_panel_for_each_metric_and_a_line_for_each_evaluation(figures, tmp_path):
    curves = {"A": {"psnr": [30.0, 29.0], "ssim": [0.9, 0.8]}, "B": {"psnr": [31.0, 30.5]}}
    draw_frames(curves, tmp_path / "frames.png")
    psnr, ssim = figures[0].axes
    assert [line.get_label() for line in psnr.lines] == ["A", "B"]
    assert [list(line.get_ydata()) for line in psnr.lines] == [[30.0, 29.0], [31.0, 30.5]]
    assert [list(line.get_ydata()) for line in ssim.lines] == [[0.9, 0.8]]
    assert psnr.get_title() == "psnr, larger is better"
    with Image.open(tmp_path / "frames.png") as picture:
        assert picture.width > picture.height


def test_differences_that_nobody_sees_look_small(figures, tmp_path):
    draw_frames({"": {"psnr": [30.0, 30.01], "ssim": [0.5, 0.9]}}, tmp_path / "frames.png")
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
def test_right_of_the_line_means_that_b_is_better(figures, tmp_path, larger_is_better, interval, colour):
    difference = Difference("psnr", 30.0, 32.0, 2.0, interval, larger_is_better)
    draw_differences([difference], "a title", tmp_path / "differences.png")
    (axes,) = figures[0].axes
    zero, bar, point = axes.lines
    place = axes.transData.transform
    assert (place((2, 0))[0] > place((0, 0))[0]) == larger_is_better
    assert tuple(bar.get_xdata()) == (interval or (2.0, 2.0))
    assert (list(point.get_xdata()), list(zero.get_xdata())) == ([2.0], [0, 0])
    assert point.get_color() == colour
    assert axes.texts[0].get_text() == difference.in_words()


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_equal_figures_and_nan_are_drawn(tmp_path, value):
    draw_differences([Difference("psnr", 30.0, value, value, (value, value), True)], "a title", tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width == 800
