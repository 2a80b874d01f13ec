"""Which logged values are drawn together, and what they are called."""

import math

import pytest

from telecine.base.logged_values import LOGGED_VALUES
from telecine.report.logged_charts import (
    TRAINING_CHARTS,
    chart_definitions,
    charts_of_runs,
    label_of,
)
from telecine.report.reported_run import ReportedRun
from telecine.settings import ObjectiveConfig

from .runs import records
from .test_summary import SUMMARY


def charts_of(*runs, nets=None, summaries=None):
    """Return the charts of runs with these records, networks of the perceptual loss, and summaries, by title."""
    reported = []
    for index, lines in enumerate(runs):
        settings = {} if nets is None else {"objective.perceptual.net": nets[index]}
        summary = None if summaries is None else summaries[index]
        reported.append(ReportedRun("ab"[index % 2], lines, settings, {}, None, [], summary))
    return {chart.title: chart for chart in charts_of_runs(reported)}


def labels(chart):
    return [series.label for series in chart.series]


def keys(chart):
    return [series.key for series in chart.series]


def test_each_logged_value_is_in_a_chart():
    lines = [*records(40), {"step": 41, "train/kl_loss": 2.0, "health/accuracy_real": 0.5}]
    charts = charts_of(lines)
    logged = {name for line in lines for name in line} - {"step"}
    drawn = {key for chart in charts.values() for key in keys(chart)}
    assert logged - drawn == {"train/recon_loss"}
    assert "scheduled weights" not in charts, "charts without data are left out"
    assert next(iter(charts)) == "all losses"
    assert labels(charts["all losses"]) == ["KL loss", "mean squared error", "perceptual loss"]
    assert charts["health accuracy real"].series[0].curves[0].values == [0.5]


def test_charts_of_training_draw_logged_values():
    drawn = {name for definition in TRAINING_CHARTS for name in definition.names}
    assert len(drawn) > 18
    assert drawn <= {value.key for value in LOGGED_VALUES.values()}


def test_a_value_has_one_label_in_all_charts():
    labels = {}
    for chart in charts_of(records(40), nets=["alex"]).values():
        for series in chart.series:
            labels.setdefault((series.key, series.curves[0].values[-1]), set()).add(series.label)
    assert len(labels) > 8
    assert [names for names in labels.values() if len(names) > 1] == []


def test_lpips_of_different_networks_is_never_on_one_axis():
    lines = [{"step": 1, "train/perceptual_loss": 0.3, "train/mse": 0.1, "val/lpips_alex": 0.2}]
    same = charts_of(lines, nets=["alex"])
    for chart in [*same.values(), *charts_of(lines, lines, nets=["vgg", "alex"]).values()]:
        assert len({label.partition(",")[0] for label in labels(chart) if "LPIPS" in label}) < 2, (
            chart.title
        )
    assert labels(same["all losses"]) == ["mean squared error", "LPIPS (Alex), training"]
    assert keys(same["LPIPS (Alex)"]) == ["train/perceptual_loss", "val/lpips_alex"]


@pytest.mark.parametrize(
    ("values", "left_out"),
    [
        ({"mse": 0.5, "recon_loss": 0.5000001}, {"train/recon_loss"}),
        ({"mse": 0.5, "recon_loss": 0.6}, set()),
        ({"kl_loss": 2.0, "aux_losses": 2.0}, {"train/aux_losses"}),
        ({"kl_loss": 2.0, "commitment_loss": 1.0, "aux_losses": 3.0}, set()),
        ({"discr_loss": 1.0, "total_disc_loss": 1.0, "gen_loss": 1.0}, {"train/total_disc_loss"}),
    ],
)
def test_a_sum_of_one_term_is_left_out(values, left_out):
    logged = {f"train/{name}": value for name, value in values.items()}
    drawn = {key for chart in charts_of([{"step": 2, **logged}]).values() for key in keys(chart)}
    assert logged.keys() - drawn == left_out


def test_a_sum_is_drawn_if_it_differs_in_a_run():
    equal, other = (
        [{"step": 1, "train/mse": 0.1, "train/recon_loss": value}] for value in (0.1, 0.3)
    )
    assert labels(charts_of(equal, other)["all losses"]) == [
        "mean squared error",
        "reconstruction loss",
    ]
    longer = [*equal, {"step": 2, "train/mse": 0.1}]
    assert labels(charts_of(longer)["all losses"]) == ["mean squared error", "reconstruction loss"]


def test_held_out_values_of_other_clips_are_marked():
    lines = [{"step": 1, "val/psnr": 20.0, "train/lr": 0.1}]
    charts = charts_of(lines, lines, summaries=[SUMMARY, None])
    assert charts["PSNR (dB)"].note == (
        "Held-out values do not compare. a and b: the held-out clips of b were not recorded."
    )
    assert charts["learning rate"].note == ""
    assert charts_of(lines, lines, summaries=[SUMMARY, SUMMARY])["PSNR (dB)"].note == ""
    other = charts_of(lines, [{"step": 1, "train/lr": 0.1}], summaries=[SUMMARY, None])
    assert other["PSNR (dB)"].note == "", "only one run has the value"


def test_a_value_that_is_never_finite_has_no_chart():
    assert charts_of([{"step": 1, "train/lr": math.nan}]) == {}
    assert charts_of([], []) == {}
    assert charts_of() == {}


def test_gradients_of_frames_share_a_chart():
    charts = charts_of(
        [{"step": 1, "train/frame_gradient_000": 0.9, "train/frame_gradient_001": 1.1}]
    )
    assert list(charts) == ["gradient of each frame / mean"]
    assert labels(charts["gradient of each frame / mean"]) == ["frame 0", "frame 1"]


def test_several_runs_share_charts():
    charts = charts_of(records(5), records(8), [{"step": 1, "other": 1.0}])
    (rate,) = charts["learning rate"].series
    assert [(curve.run, len(curve.steps)) for curve in rate.curves] == [(0, 5), (1, 8)]
    (other,) = charts["other"].series
    assert [curve.run for curve in other.curves] == [2]


def test_other_losses_and_weights_have_their_charts():
    weights = {f"train/{term.weight_key}" for term in ObjectiveConfig().term_schedules().values()}
    losses = {"train/edges_loss", "train/gram_loss", "train/logvar", "train/recon_loss"}
    shown = {"train/mse", "train/gen_loss", "train/adaptive_weight", "val/psnr"}
    shown |= {"train/total_loss", "train/total_disc_loss"}
    definitions = chart_definitions(sorted(weights | losses | shown))
    names = {definition.title: set(definition.names) for definition in definitions}
    assert names["other losses, unweighted"] == losses
    assert names["scheduled weights"] == weights


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("train/psnr", "PSNR, training"),
        ("val/lpips_alex", "LPIPS (Alex), held out"),
        ("linear/ssim", "SSIM, linear baseline"),
        ("train/lpips_mine.distance", "perceptual distance (mine.distance), training"),
        ("train/gen_loss", "generator loss"),
        ("train/gen_loss_discr_3d", "generator loss, discr_3d"),
        ("train/logits_real_std_discr", "spread of logits, real, discr"),
        ("train/grad_penalty_loss_weight", "grad penalty loss weight"),
        ("train/adaptive_weight", "adaptive weight"),
        ("train/edges_loss", "edges loss"),
        ("train/frame_gradient_007", "frame 7"),
        ("latent/effective_rank", "latent effective rank"),
        ("other", "other"),
    ],
)
def test_labels(name, label):
    assert label_of(name) == label
