import math

from matplotlib.figure import Figure

from telecine.report.curves import NUM_COLUMNS, OTHER_TERMS, PANELS, WEIGHTS, draw_curves
from telecine.training import ObjectiveConfig


def axes_of(records, tmp_path, monkeypatch):
    """Draw into a file and return the plots by their titles."""
    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k)))
    draw_curves(records, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    return {axes.get_title(): axes for axes in figures[0].axes}


def labels(axes):
    return [line.get_label() for line in axes.lines]


def test_the_picture_is_full():
    assert len(PANELS) % NUM_COLUMNS == 0


def test_every_weight_that_may_change_is_drawn():
    assert set(WEIGHTS) == set(ObjectiveConfig().ramps())


def test_without_data_each_panel_says_so(tmp_path, monkeypatch):
    plots = axes_of([], tmp_path, monkeypatch)
    assert len(plots) == len(PANELS)
    said = {title: axes.texts[0].get_text() for title, axes in plots.items()}
    assert said.pop("weights that change") == "none changes"
    assert set(said.values()) == {"no data yet"}


def test_terms_and_weights_are_drawn_where_they_were_logged(tmp_path, monkeypatch):
    records = [
        {"step": 1, "train/logvar": -0.5, "train/kl_loss": 3.0, "train/gram_loss_weight": 0.0, "train/lr": 1e-4},
        {"step": 2, "train/logvar": -0.6, "train/gram_loss": 0.5, "train/gram_loss_weight": 1.0, "train/mse": 0.04},
    ]
    plots = axes_of(records, tmp_path, monkeypatch)
    terms = plots["other terms, without their weights"]
    assert labels(terms) == ["gram_loss", "logvar", "kl_loss"]
    assert [list(line.get_xdata()) for line in terms.lines] == [[2], [1, 2], [1]]
    assert labels(plots["weights that change"]) == ["gram_loss_weight"]
    (psnr,) = plots["PSNR (dB), larger is better"].lines
    assert list(psnr.get_ydata()) == [20.0]


def test_values_of_every_size_and_sign_have_a_place(tmp_path, monkeypatch):
    near = [{"step": step, "train/kl_loss": 1.0 + step, "train/grad_norm": step} for step in range(3)]
    plots = axes_of(near, tmp_path, monkeypatch)
    assert plots["other terms, without their weights"].get_yscale() == "linear"
    norms = plots["adaptive weight and gradient norms"]
    assert norms.get_yscale() == "log"
    assert list(norms.lines[0].get_ydata()) == [1, 2], "0 has no place on it"
    far = [{"step": 1, **{f"train/{name}": -(10.0**-power) for power, name in enumerate(OTHER_TERMS)}}]
    axes = axes_of(far, tmp_path, monkeypatch)["other terms, without their weights"]
    assert axes.get_yscale() == "symlog"
    assert labels(axes) == list(OTHER_TERMS)
    bottom, top = axes.get_ylim()
    assert bottom < -1
    assert top >= -(10.0 ** (1 - len(OTHER_TERMS)))


def test_what_is_not_finite_has_no_place(tmp_path, monkeypatch):
    lines = [{"step": step, "train/kl_loss": value} for step, value in enumerate((1.0, math.inf, math.nan, 2.0))]
    axes = axes_of(lines, tmp_path, monkeypatch)["other terms, without their weights"]
    assert list(axes.lines[0].get_xdata()) == [0, 3]
    assert axes.get_yscale() == "linear"


def test_zeros_alone_are_drawn(tmp_path, monkeypatch):
    axes = axes_of([{"step": 1, "train/kl_loss": 0.0}], tmp_path, monkeypatch)["other terms, without their weights"]
    assert axes.get_yscale() == "linear"
