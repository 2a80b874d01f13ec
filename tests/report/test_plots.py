"""Logged values as data for the page."""

import math
import random
import re
from dataclasses import replace

import pytest

from telecine.report.page import _page_environment
from telecine.report.plots import _MAX_POINTS, Plot, _columns_of, _duplicates, _label_of, _panels, _plot, as_curve
from telecine.report.plots import plots_of as plots_of_runs
from telecine.report.run import ReportedRun
from telecine.settings import ObjectiveConfig

from .runs import records
from .test_summary import CLIPS, SUMMARY


def plots(runs, nets=None):
    """Return the plots of runs with these records, and these networks of the perceptual loss."""
    settings = [{} if net is None else {"objective.perceptual.net": net} for net in nets or [None] * len(runs)]
    pairs = zip(runs, settings, strict=True)
    return plots_of_runs([ReportedRun("", lines, values, {}, None, []) for lines, values in pairs])


class TestCurves:
    def test_few_points_stay_unchanged(self):
        curve = as_curve(1, [(0, 1.0), (5, 2.123456), (7, -3.0)])
        assert curve == {"run": 1, "steps": [0, 5, 7], "values": [1.0, 2.12346, -3.0], "num_left_out": 0}

    def test_many_points_become_buckets_that_keep_extremes(self):
        rng = random.Random(0)
        points = [(step, rng.gauss(0, 1)) for step in range(10_007)]
        points[5_000] = (5_000, 99.0)
        points[7_001] = (7_001, -99.0)
        curve = as_curve(0, points)
        assert len(curve["steps"]) == len(curve["values"]) == len(curve["low"]) == len(curve["high"]) == _MAX_POINTS
        assert curve["steps"] == sorted(curve["steps"])
        assert (max(curve["high"]), min(curve["low"])) == (99.0, -99.0)
        peak = curve["steps"][curve["high"].index(99.0)]
        assert abs(peak - 5_000) < 20
        assert all(
            low <= value <= high for low, value, high in zip(curve["low"], curve["values"], curve["high"], strict=True)
        )
        mean = sum(value for _, value in points) / len(points)
        assert sum(curve["values"]) / _MAX_POINTS == pytest.approx(mean, abs=0.01)

    def test_values_that_are_not_finite_are_counted(self):
        curve = as_curve(0, [(0, 1.0), (1, math.nan), (2, math.inf)])
        assert (curve["steps"], curve["values"], curve["num_left_out"]) == ([0], [1.0], 2)


class TestPlots:
    def test_every_logged_value_is_plotted(self):
        lines = [*records(40), {"step": 41, "train/kl_loss": 2.0, "health/accuracy_real": 0.5}]
        all_plots = {plot.title: plot for plot in plots([lines])}
        logged = {name for line in lines for name in line} - {"step"}
        assert logged - {series.key for plot in all_plots.values() for series in plot.series} == {"train/recon_loss"}
        assert "scheduled weights" not in all_plots, "plots without data are left out"
        losses = all_plots["all losses"]
        assert next(iter(all_plots)) == losses.title
        assert [series.label for series in losses.series] == ["KL loss", "mean squared error", "perceptual loss"]
        assert all_plots["health accuracy real"].series[0].curves[0]["values"] == [0.5]

    def test_a_value_has_one_label_in_all_plots(self):
        found = {}
        for plot in plots([records(40)], ["alex"]):
            for series in plot.series:
                found.setdefault((series.key, series.curves[0]["values"][-1]), set()).add(series.label)
        assert len(found) > 8
        assert [labels for labels in found.values() if len(labels) > 1] == []

    def test_lpips_of_different_networks_is_never_on_one_axis(self):
        lines = [{"step": 1, "train/perceptual_loss": 0.3, "train/mse": 0.1, "val/lpips_alex": 0.2}]
        for plot in (same := plots([lines], ["alex"])) + plots([lines, lines], ["vgg", "alex"]):
            assert len({s.label.partition(",")[0] for s in plot.series if "LPIPS" in s.label}) < 2, plot.title
        assert [s.label for s in same[0].series] == ["mean squared error", "LPIPS (Alex), training"]

    def test_a_sum_is_plotted_if_it_differs_in_a_run(self):
        lines = [{"step": 1, "train/mse": 0.1, "train/recon_loss": value} for value in (0.1, 0.3)]
        labels = [[s.label for s in plots(runs)[0].series] for runs in ([lines[:1]], [lines[:1], lines[1:]])]
        assert labels == [["mean squared error"], ["mean squared error", "reconstruction loss"]]

    def test_held_out_values_of_other_clips_are_marked(self):
        lines = [{"step": 1, "val/psnr": 20.0, "train/lr": 0.1}]
        summaries = [SUMMARY, replace(SUMMARY, validation=replace(CLIPS, num_clips=3))]
        runs = [ReportedRun(n, lines, {}, {}, None, [], summary=s) for n, s in zip("ab", summaries, strict=True)]
        notes = {plot.title: plot.note for plot in plots_of_runs(runs)}
        assert notes == {
            "PSNR (dB), larger is better": "Held-out values do not compare. a and b: num_clips 12 and 3.",
            "learning rate": "",
        }
        assert {plot.note for plot in plots_of_runs([runs[0], replace(runs[1], summary=SUMMARY)])} == {""}

    def test_a_value_that_is_never_finite_has_no_plot(self):
        assert plots([[{"step": 1, "train/lr": math.nan}]]) == []

    def test_gradients_of_frames_share_a_plot(self):
        (plot,) = plots([[{"step": 1, "train/frame_gradient_000": 0.9, "train/frame_gradient_001": 1.1}]])
        assert plot.title == "gradient of each frame / mean"
        assert [series.label for series in plot.series] == ["frame 0", "frame 1"]

    def test_several_runs_share_plots(self):
        all_plots = plots([records(5), records(8), [{"step": 1, "other": 1.0}]])
        (lr,) = next(plot for plot in all_plots if plot.title == "learning rate").series
        assert [(curve["run"], len(curve["steps"])) for curve in lr.curves] == [(0, 5), (1, 8)]
        (other,) = next(plot for plot in all_plots if plot.title == "other").series
        assert [curve["run"] for curve in other.curves] == [2]

    def test_without_values_there_is_no_plot(self):
        assert plots([[], []]) == []

    def test_schedules_are_not_smoothed(self):
        lines = [{"step": step, "train/lr": 1e-3, "train/lecam_weight": step, "train/mse": 0.5} for step in (1, 2)]
        assert {plot.title for plot in plots([lines]) if not plot.is_smoothed} == {"learning rate", "scheduled weights"}


def rows(all_plots):
    """Return the cells of the rows that the page has for the curves."""
    text = _page_environment().get_template("curves.html").render(plots=all_plots, runs=["the only run"])
    cells = [re.findall(r"<t[dh][^>]*>(?:<code>)?([^<]*)", row) for row in text.split("<tr>")]
    return cells[2:]


class TestTable:
    def test_rows_describe_the_curves(self):
        found = rows(plots([[{"step": step, "train/lr": float(step)} for step in (3, 9, 5)]]))
        assert found == [["learning rate", "learning rate", "train/lr", "3", "5", "3", "9", "0"]]

    def test_curves_in_buckets_have_exact_ends(self):
        num = 3 * _MAX_POINTS
        (row,) = rows(plots([[{"step": step, "train/lr": step / 4} for step in range(num)]]))
        assert row[3:7] == ["0", f"{(num - 1) / 4:.4g}", "0", f"{(num - 1) / 4:.4g}"]


def test_other_losses_and_weights_have_their_panels():
    weights = {f"train/{term.weight_key}" for term in ObjectiveConfig().all_terms().values()}
    losses = {"train/edges_loss", "train/gram_loss", "train/logvar", "train/recon_loss"}
    shown = {"train/mse", "train/gen_loss", "train/adaptive_weight", "val/psnr"}
    shown |= {"train/total_loss", "train/total_disc_loss"}
    found = {panel.title: set(panel.names) for panel in _panels(weights | losses | shown)}
    assert found["other losses, unweighted"] == losses
    assert found["scheduled weights"] == weights


def test_a_sum_of_one_term_is_a_duplicate():
    def found(**values):
        return _duplicates(_columns_of([{"step": 2, **{f"train/{name}": x for name, x in values.items()}}], None))

    assert found(mse=0.5, recon_loss=0.5000001) == {"train/recon_loss"}
    assert found(mse=0.5, recon_loss=0.6) == set()
    assert found(kl_loss=2.0, aux_losses=2.0) == {"train/aux_losses"}
    assert found(kl_loss=2.0, commitment_loss=1.0, aux_losses=3.0) == set()
    assert found(discr_loss=1.0, total_disc_loss=1.0, gen_loss=1.0) == {"train/total_disc_loss"}


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
    assert _label_of(name) == label


def test_keys_are_those_of_the_records():
    columns = {name: [(0, 1.0)] for name in ("train/psnr", "train/lpips_vgg", "val/psnr")}
    found = _plot(Plot("all", [*columns]), [columns], {*columns}, "").series
    assert [each.key for each in found] == ["train/mse", "train/perceptual_loss", "val/psnr"]
