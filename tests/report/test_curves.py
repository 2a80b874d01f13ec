"""The panels of a run's curves, and the PNG of them."""

import math

import pytest
from matplotlib.figure import Figure

from telecine.objective.config import ObjectiveConfig
from telecine.objective.weights import WeightSchedule
from telecine.report.curves import FIXED_PANELS, NUM_COLUMNS, draw_curves, panels

OTHER_LOSSES = "other losses, unweighted"
WEIGHTS = "scheduled weights"


@pytest.fixture
def axes_of(tmp_path, monkeypatch):
    """Return a function that draws records without rendering, and returns the axes by their titles."""

    def draw(records):
        figures = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (figures.append(figure), path.touch()))
        draw_curves(records, tmp_path / "curves.png")
        return {axes.get_title(): axes for axes in figures[0].axes}

    return draw


def labels(axes):
    return [line.get_label() for line in axes.lines]


@pytest.mark.slow
def test_a_png_is_written(tmp_path):
    draw_curves([{"step": 1, "train/mse": 0.1, "train/lr": 1.0}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_panels_fill_all_rows():
    assert len(panels([])) % NUM_COLUMNS == 0
    assert len(panels([])) == len(FIXED_PANELS) + 2


def test_other_losses_and_weights_have_their_panels():
    weights = {f"train/{name}" for name in WeightSchedule(ObjectiveConfig()).ramps}
    losses = {"train/edges_loss", "train/gram_loss", "train/logvar"}
    shown = {"train/mse", "train/gen_loss", "train/adaptive_weight", "train/recon_loss", "val/psnr"}
    shown |= {"train/total_loss", "train/total_disc_loss"}
    found = {panel.title: {name for name, _ in panel.series.values()} for panel in panels(weights | losses | shown)}
    assert found[OTHER_LOSSES] == losses
    assert found[WEIGHTS] == weights


def test_panels_without_data_contain_a_text(axes_of):
    texts = {title: axes.texts[0].get_text() for title, axes in axes_of([]).items()}
    assert texts.pop(WEIGHTS) == "no weight changes"
    assert set(texts.values()) == {"no data yet"}


def test_values_are_drawn_at_the_steps_that_logged_them(axes_of):
    plots = axes_of(
        [
            {"step": 1, "train/logvar": -0.5, "train/kl_loss": 3.0, "train/gram_loss_weight": 0.0, "train/lr": 1e-4},
            {"step": 2, "train/logvar": -0.6, "train/gram_loss": 0.5, "train/gram_loss_weight": 1.0, "train/mse": 0.04},
        ]
    )
    losses = plots[OTHER_LOSSES]
    assert labels(losses) == ["gram_loss", "kl_loss", "logvar"]
    assert [list(line.get_xdata()) for line in losses.lines] == [[2], [1], [1, 2]]
    assert labels(plots[WEIGHTS]) == ["gram_loss_weight"]
    (psnr,) = plots["PSNR (dB), larger is better"].lines
    assert list(psnr.get_ydata()) == [20.0]


def test_axes_are_logarithmic_where_needed(axes_of):
    similar = [{"step": step, "train/kl_loss": 1.0 + step, "train/grad_norm": step} for step in range(3)]
    plots = axes_of(similar)
    assert plots[OTHER_LOSSES].get_yscale() == "linear"
    norms = plots["adaptive weight and gradient norms"]
    assert norms.get_yscale() == "log"
    assert list(norms.lines[0].get_ydata()) == [1, 2], "a logarithmic axis has no 0"
    names = [f"{letter}_loss" for letter in "abcdef"]
    axes = axes_of([{"step": 1, **{f"train/{name}": -(10.0**-power) for power, name in enumerate(names)}}])[
        OTHER_LOSSES
    ]
    assert axes.get_yscale() == "symlog"
    assert labels(axes) == names
    bottom, top = axes.get_ylim()
    assert bottom < -1
    assert top >= -(10.0 ** (1 - len(names)))


def test_values_that_are_not_finite_are_left_out(axes_of):
    values = (1.0, math.inf, math.nan, 2.0, 0.0)
    axes = axes_of([{"step": step, "train/kl_loss": value} for step, value in enumerate(values)])[OTHER_LOSSES]
    assert list(axes.lines[0].get_xdata()) == [0, 3, 4]
    assert axes.get_yscale() == "linear"


def test_zeros_alone_are_drawn(axes_of):
    axes = axes_of([{"step": 1, "train/kl_loss": 0.0}])[OTHER_LOSSES]
    assert axes.get_yscale() == "linear"
    assert list(axes.lines[0].get_ydata()) == [0.0]
