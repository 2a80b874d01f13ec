"""Comparison of two evaluations: protocols that do not match, differences, their confidence intervals and plots."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from telecine.evaluation import EvaluationRecord
from telecine.evaluation.comparable import MUST_MATCH, check_protocols
from telecine.evaluation.compare import Difference, compare, plot_differences
from telecine.evaluation.metrics import METRICS
from telecine.evaluation.paper_table import make_table
from telecine.evaluation.result import Evaluation, SavedEvaluation

from .evaluations import write_evaluation

NUM_CLIPS = 15


def evaluation_with_psnr(folder, psnr):
    """Write an evaluation with this mean PSNR, and other metrics that agree with it."""
    noise = torch.randn(NUM_CLIPS, generator=torch.Generator().manual_seed(0)).tolist()
    clips = [
        {"psnr": psnr + value, "ssim": psnr / 50, "lpips_alex": 1 - psnr / 50, "grid_4": 30 - psnr}
        for value in noise
    ]
    per_frame = {name: [clips[0][name]] * 2 for name in ("psnr", "ssim", "lpips_alex")}
    for index, clip in enumerate(clips):
        clip["source"] = f"{index}.mp4"
    return write_evaluation(
        folder, clips, per_frame, backbones={"lpips_alex": f"sha256 {'1' * 64}"}
    )


@pytest.fixture(scope="module")
def worse(tmp_path_factory):
    return evaluation_with_psnr(tmp_path_factory.mktemp("evaluations") / "worse", 20.0)


@pytest.fixture(scope="module")
def better(tmp_path_factory):
    return evaluation_with_psnr(tmp_path_factory.mktemp("evaluations") / "better", 30.0)


def read_protocol(folder):
    return json.loads((folder / "protocol.json").read_text())


@pytest.mark.slow
def test_the_better_evaluation_is_named_and_written(worse, better, tmp_path):
    comparison = compare(worse, better, output=tmp_path)
    better_by_name = {difference.name: difference.better for difference in comparison.differences}
    assert better_by_name == dict.fromkeys(("psnr", "ssim", "lpips_alex", "|grid_4|"), "B")
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert (written["A"], written["B"]) == (str(worse), str(better))
    assert (written["confidence"], written["num_clips"]) == (0.95, NUM_CLIPS)
    psnr = written["metrics"]["psnr"]
    assert (psnr["mean"], psnr["verdict"]) == (pytest.approx(10), "B")
    means = [
        json.loads((folder / "metrics.json").read_text())["psnr"] for folder in (worse, better)
    ]
    assert [psnr["first"], psnr["second"]] == pytest.approx(means)
    for name in ("comparison.png", "comparison_frames.png"):
        with Image.open(tmp_path / name) as picture:
            assert len(set(picture.convert("L").tobytes())) > 20
    console = Console(record=True, width=200)
    replace(comparison, warnings=["data: a and b"], num_videos=1).print_to(console)
    lines = console.export_text().splitlines()
    assert lines[-4:] == [
        f"A: {worse}",
        f"B: {better}",
        "undecided: clips of one video have no interval over videos",
        "differs: data: a and b",
    ]


def test_an_evaluation_that_does_not_say_what_is_better_is_refused(worse, tmp_path):
    other = shutil.copytree(worse, tmp_path / "other")
    protocol = read_protocol(other)
    del protocol["better"]
    (other / "protocol.json").write_text(json.dumps(protocol))
    for compared in (compare, lambda *folders: make_table(folders)):
        with pytest.raises(ValueError, match=r"no value as `better` .*Evaluate again"):
            compared(worse, other)


@pytest.mark.parametrize("name", MUST_MATCH)
def test_different_clips_or_settings_raise(worse, name):
    protocol = read_protocol(worse)
    with pytest.raises(
        ValueError, match=rf"with the same protocol, but got {name}: .* and something else"
    ):
        check_protocols(protocol, protocol | {name: "something else"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"backbones": {"lpips_alex": "sha256 0"}},
            r"backbones\.lpips_alex: sha256 1+ and sha256 0",
        ),
        ({"metrics": {}}, "share a metric"),
        ({"metrics": None}, "evaluations with `metrics` in their protocol, but got None"),
    ],
)
def test_other_networks_and_metrics_raise(worse, fields, message):
    protocol = read_protocol(worse)
    with pytest.raises(ValueError, match=message):
        check_protocols(protocol, protocol | fields)


def test_other_differences_are_warnings(worse):
    protocol = read_protocol(worse)
    fewer = {name: protocol["metrics"][name] for name in ("psnr", "ssim")}
    other = protocol | {"data": "elsewhere", "versions": {"torch": "1"}, "metrics": fewer}
    warnings = check_protocols(protocol, other)
    assert warnings[0] == "data: videos and elsewhere"
    assert {line.partition(":")[0] for line in warnings[1:-1]} == {
        f"versions.{name}" for name in protocol["versions"]
    }
    assert any(
        line.startswith(f"versions.torch: {torch.__version__.split('+')[0]}") for line in warnings
    )
    assert warnings[-1] == "only one has grid_4, lpips_alex"


def test_an_older_evaluation_does_not_say_whether_it_had_tf32(worse):
    """It still compares, with a warning."""
    protocol = read_protocol(worse)
    assert protocol["tf32"] is False
    older = {name: value for name, value in protocol.items() if name != "tf32"}
    assert check_protocols(older, protocol) == check_protocols(protocol, older)
    (warning,) = check_protocols(older, protocol)
    assert warning == "tf32: off in one, not recorded in the other"
    assert check_protocols(older, older) == []


def test_frechet_distances_are_compared_without_an_interval(tmp_path):
    for name, value, only_here in (("A", 90.0, "ssim"), ("B", 70.0, "lpips_alex")):
        metrics = {metric: METRICS[metric].describe() for metric in ("psnr", "fvd", only_here)}
        folder = write_evaluation(
            tmp_path / name, [{"psnr": 0.0, only_here: 0.0}] * 2, metrics=metrics
        )
        (folder / "metrics.json").write_text(
            json.dumps({"psnr": 0.0, "fvd": value, only_here: 0.0})
        )
    psnr, fvd = compare(tmp_path / "A", tmp_path / "B").differences
    assert psnr.name == "psnr"
    assert (fvd.name, fvd.mean, fvd.interval, fvd.better) == ("fvd", -20, None, "undecided")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("clips.json", "", r"clips\.json` must be JSON, but got other text \(Expecting value"),
        (
            "clips.json",
            "[]",
            "` must be an evaluation as it was written, but got other clips or metrics than",
        ),
        (
            "clips.json",
            json.dumps([{"source": "a", "psnr": 1.0}] * NUM_CLIPS),
            "but got other clips or metrics than",
        ),
        ("clips.json", "{}", "but got {} .* as `per_clip` "),
        ("metrics.json", '{"psnr": 1}', "but got other clips or metrics than"),
        ("protocol.json", "{}", "protocol.json` must be .*, but got no value as `data` "),
    ],
)
def test_damaged_evaluations_are_named(worse, tmp_path, name, content, message):
    other = shutil.copytree(worse, tmp_path / "other")
    (other / name).write_text(content)
    for compared in (compare, lambda *folders: make_table(folders)):
        with pytest.raises(ValueError, match=f"^`.*other.*{message}"):
            compared(worse, other)


def test_no_protocol_is_left_beside_the_figures_of_another(worse, tmp_path):
    folder = shutil.copytree(worse, tmp_path / "other")
    (folder / "frames.json").unlink()
    (folder / "frames.json").mkdir()  # which cannot be replaced by a file
    saved = SavedEvaluation.read(worse)
    protocol = EvaluationRecord("", 1, 1, 1, 1, "", "", {}, {})
    with pytest.raises(OSError, match="frames"):
        Evaluation(saved.metrics, saved.per_clip, {}, protocol).write(folder)
    assert not (folder / "protocol.json").exists()


def test_a_folder_without_an_evaluation_raises(worse, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"protocol\.json"):
        compare(worse, tmp_path)


def draws(num=60, seed=0, offset=0.0):
    return (
        torch.randn(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        + offset
    ).tolist()


@pytest.fixture
def compared(tmp_path):
    """Return a function that compares the values of a metric in two evaluations of the same clips."""

    def compare_values(name, first, second, num_videos=None):
        num_videos = num_videos or len(first)
        for label, values in (("first", first), ("second", second)):
            clips = [
                {name: value, "source": f"{index % num_videos}.mp4"}
                for index, value in enumerate(values)
            ]
            write_evaluation(tmp_path / label, clips)
        (difference,) = compare(tmp_path / "first", tmp_path / "second").differences
        return difference

    return compare_values


def test_the_interval_is_that_of_scipy_on_the_differences_of_clips(compared):
    """Clips differ by 10 dB, the two evaluations of each by much less."""
    from scipy.stats import bootstrap

    first = [30 + 10 * value for value in draws(seed=1)]
    changes = draws(offset=0.3)
    difference = compared("psnr", first, [a + b for a, b in zip(first, changes, strict=True)])
    reference = bootstrap(
        (np.array(changes),),
        np.mean,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert difference.interval == pytest.approx((reference.low, reference.high), abs=0.01)


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
def test_which_evaluation_is_better(compared, name, shift, better):
    first = [0.5 + 0.01 * value for value in draws()]
    second = [0.5 + shift + 0.01 * value for value in draws(seed=1)]
    difference = compared(name, first, second)
    assert difference.better == better
    assert difference.mean == pytest.approx(difference.second - difference.first)
    assert difference.interval[0] < difference.mean < difference.interval[1]


def test_clips_of_one_video_are_drawn_together(compared):
    """Each video's clips are equal: the interval is that of one clip for each video."""
    values = draws(offset=0.3)
    clips = compared("psnr", [0.0] * len(values), values)
    repeated = 4 * values
    videos = compared("psnr", [0.0] * len(repeated), repeated, num_videos=len(values))
    assert videos.interval == pytest.approx(clips.interval)


@pytest.mark.parametrize("num_clips", [1, 2, 20])
def test_a_single_video_names_no_winner(compared, num_clips):
    difference = compared("psnr", [30.0] * num_clips, [31.0] * num_clips, num_videos=1)
    assert (difference.interval, difference.better, difference.text()) == (None, "undecided", "+1")


@pytest.mark.parametrize(("num_videos", "is_warned"), [(1, False), (3, True), (10, False)])
def test_a_line_says_that_few_videos_have_intervals_that_are_too_narrow(
    tmp_path, num_videos, is_warned
):
    clips = [{"psnr": 30.0 + number, "source": f"{number}.mp4"} for number in range(num_videos)]
    folder = write_evaluation(tmp_path, clips)
    console = Console(record=True, width=120)
    compare(folder, folder).print_to(console)
    assert ("few videos: the intervals over 3" in console.export_text()) == is_warned


@pytest.mark.parametrize(
    ("name", "first", "second", "label", "figures"),
    [
        ("sharpness", 0.8, 1.5, "|sharpness - 1|", (0.2, 0.5)),
        ("grid_4", -0.5, 0.1, "|grid_4|", (0.5, 0.1)),
        ("psnr", 30.0, 31.0, "psnr", (30.0, 31.0)),
    ],
)
def test_metrics_that_are_best_near_a_number_are_compared_by_their_distance_from_it(
    compared, name, first, second, label, figures
):
    difference = compared(name, [first], [second])
    assert difference.name == label
    assert (difference.first, difference.second) == pytest.approx(figures)


def test_nan_is_undecided(compared):
    difference = compared("psnr", [30.0, 31.0], [math.nan, 32.0])
    assert math.isnan(difference.mean)
    assert difference.better == "undecided"


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


def test_the_lines_of_both_evaluations_are_their_values(figures, tmp_path):
    folders = []
    curves = {
        "A": {"psnr": [30.0, 32.0, 31.0]},
        "B": {"psnr": [20.0, 21.0, 25.0], "ssim": [0.5, 0.6, 0.9]},
    }
    for label, per_frame in curves.items():
        folders.append(write_evaluation(tmp_path / label, [{"psnr": 1.0}] * 2, per_frame))
    compare(*folders, output=tmp_path)
    psnr, ssim = figures[-1].axes
    first, second = psnr.lines
    (only,) = ssim.lines
    assert (first.get_label(), second.get_label(), only.get_label()) == ("A", "B", "B")
    for line, values in (
        (first, curves["A"]["psnr"]),
        (second, curves["B"]["psnr"]),
        (only, curves["B"]["ssim"]),
    ):
        assert list(line.get_ydata()) == values
        assert list(line.get_xdata()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("larger_is_better", "mean", "interval", "colour"),
    [
        (True, 2.0, (1.0, 3.0), "#0072b2"),
        (False, 2.0, (1.0, 3.0), "#d55e00"),
        (True, 2.0, (-1.0, 5.0), "#707070"),
        (True, 2.0, None, "#707070"),
        (True, 0.0, (0.0, 0.0), "#707070"),
        (True, math.nan, (math.nan, math.nan), "#707070"),
    ],
)
def test_b_is_better_to_the_right_of_0(figures, tmp_path, larger_is_better, mean, interval, colour):
    difference = Difference("psnr", 30.0, 30.0 + mean, mean, interval, larger_is_better)
    plot_differences([difference], "a title", tmp_path / "differences.png")
    (axes,) = figures[0].axes
    zero, bar, point = axes.lines
    place = axes.transData.transform
    assert (place((2, 0))[0] > place((0, 0))[0]) == larger_is_better
    assert tuple(bar.get_xdata()) == pytest.approx(interval or (2.0, 2.0), nan_ok=True)
    assert list(point.get_xdata()) == pytest.approx([mean], nan_ok=True)
    assert (list(zero.get_xdata()), point.get_color()) == ([0, 0], colour)
    assert axes.texts[0].get_text() == difference.text()


@pytest.mark.parametrize("mean", [3e-6, 0.0035, 1.7, 23456.0])
def test_an_axis_of_differences_has_few_numbers_and_no_factor(figures, tmp_path, mean):
    difference = Difference("mse", 1.0, 1.0 + mean, mean, (0.5 * mean, 1.5 * mean), False)
    plot_differences([difference], "a title", tmp_path / "differences.png")
    (axes,) = figures[0].axes
    low, high = sorted(axes.get_xlim())
    ticks = axes.xaxis.get_major_ticks()
    shown = [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high]
    assert 3 <= len(shown) <= 5
    assert f"{0:g}" in shown
    assert axes.xaxis.get_offset_text().get_text() == ""
