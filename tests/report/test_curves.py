"""The panels of a run's curves, and the PNG of them."""

import math

import pytest
from matplotlib.figure import Figure

from telecine.report.curves import columns_of, draw_curves, duplicates, panels
from telecine.settings import ObjectiveConfig

OTHER_LOSSES = "other losses, unweighted"
WEIGHTS = "scheduled weights"


@pytest.fixture
def axes_of(tmp_path, monkeypatch):
    """Return a function that draws records without rendering, and returns the axes by their titles."""

    def draw(records, perceptual_net=None):
        figures = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (figures.append(figure), path.touch()))
        draw_curves(records, tmp_path / "curves.png", perceptual_net)
        return {axes.get_title(): axes for axes in figures[0].axes}

    return draw


def labels(axes):
    return [line.get_label() for line in axes.lines]


@pytest.mark.slow
def test_a_png_is_written(tmp_path):
    draw_curves([{"step": 1, "train/mse": 0.1, "train/lr": 1.0}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_other_losses_and_weights_have_their_panels():
    weights = {f"train/{term.weight_key}" for term in ObjectiveConfig().all_terms().values()}
    losses = {"train/edges_loss", "train/gram_loss", "train/logvar", "train/recon_loss"}
    shown = {"train/mse", "train/gen_loss", "train/adaptive_weight", "val/psnr"}
    shown |= {"train/total_loss", "train/total_disc_loss"}
    found = {panel.title: set(panel.names) for panel in panels(weights | losses | shown)}
    assert found[OTHER_LOSSES] == losses
    assert found[WEIGHTS] == weights


def test_panels_without_data_are_not_drawn(axes_of, tmp_path):
    assert list(axes_of([{"step": 1, "train/lr": 1.0, "train/grad_norm": 0.0, "train/logvar": math.nan}])) == [
        "learning rate"
    ]
    draw_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_linear_baseline_has_one_line_style(axes_of):
    held_out = {"val/psnr": 20.0, "val/ssim": 0.8, "val/lpips_alex": 0.2}
    linear = {name.replace("val/", "linear/"): value for name, value in held_out.items()}
    plots = axes_of([{"step": 1, "train/mse": 0.1, **held_out, **linear}])
    found = [
        (line.get_label(), line.get_linestyle(), line.get_color()) for axes in plots.values() for line in axes.lines
    ]
    styles = [style for label, *style in found if label.endswith("linear baseline")]
    assert styles == 3 * [["--", "grey"]]
    assert all(style == "-" for label, style, _ in found if not label.endswith("linear baseline"))


def test_lpips_of_two_networks_has_two_panels(axes_of):
    record = {"step": 1, "train/perceptual_loss": 0.3, "val/lpips_alex": 0.2, "linear/lpips_alex": 0.25}
    other = {title: labels(axes) for title, axes in axes_of([record], "vgg").items()}
    held_out = ["LPIPS (Alex), held out", "LPIPS (Alex), linear baseline"]
    assert other == {
        "LPIPS (Alex), smaller is better": held_out,
        "LPIPS (VGG), smaller is better": ["LPIPS (VGG), training"],
    }
    same = {title: labels(axes) for title, axes in axes_of([record], "alex").items()}
    assert same == {"LPIPS (Alex), smaller is better": ["LPIPS (Alex), training", *held_out]}


def test_a_sum_of_one_term_is_a_duplicate():
    def found(**values):
        return duplicates(columns_of([{"step": 2, **{f"train/{name}": x for name, x in values.items()}}], None))

    assert found(mse=0.5, recon_loss=0.5000001) == {"train/recon_loss"}
    assert found(mse=0.5, recon_loss=0.6) == set()
    assert found(kl_loss=2.0, aux_losses=2.0) == {"train/aux_losses"}
    assert found(kl_loss=2.0, commitment_loss=1.0, aux_losses=3.0) == set()
    assert found(discr_loss=1.0, total_disc_loss=1.0, gen_loss=1.0) == {"train/total_disc_loss"}


def test_values_are_drawn_at_the_steps_that_logged_them(axes_of):
    plots = axes_of(
        [
            {"step": 1, "train/logvar": -0.5, "train/kl_loss": 3.0, "train/gram_loss_weight": 0.0, "train/lr": 1e-4},
            {"step": 2, "train/logvar": -0.6, "train/gram_loss": 0.5, "train/gram_loss_weight": 1.0, "train/mse": 0.04},
        ]
    )
    losses = plots[OTHER_LOSSES]
    assert labels(losses) == ["gram loss", "KL loss", "log variance"]
    assert [list(line.get_xdata()) for line in losses.lines] == [[2], [1], [1, 2]]
    assert labels(plots[WEIGHTS]) == ["gram loss weight"]
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
    assert labels(axes) == [f"{letter} loss" for letter in "abcdef"]
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


def test_names_are_no_formulas(tmp_path):
    draw_curves([{"step": 1, "train/of_$5_and_$6": 0.1, "val/lpips_$a_$": 0.2}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()
