"""The page about the speed of models: quality over decoding time with its Pareto front, and what each model needs."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from telecine.base.files import write_json, write_text
from telecine.evaluation.comparable import read_several, shared_metrics
from telecine.evaluation.compare_speed import ComparedSpeeds
from telecine.evaluation.evaluation_record import describe_clips
from telecine.evaluation.metrics.metric import DIRECTIONS
from telecine.evaluation.result import METRICS_FILE, SavedEvaluation
from telecine.evaluation.speed import SPEED_FILE, PartSpeed, Speed
from telecine.report.chart_data import Chart, Curve, Series, XAxis, charts_data, make_curve
from telecine.report.html import render_page, short
from telecine.report.logged_charts import metric_label

PAGE_FILE = "speed.html"
_NO_RUN = -1


def write_speeds(folders: Sequence[str | Path], speeds: ComparedSpeeds, output: str | Path) -> None:
    """Write speed.html and speed.json about the models of several evaluations.

    Args:
        folders: The output folders of two or more evaluations of the same clips.
        speeds: The speeds of their models.
        output: The folder of the page.

    Raises:
        FileNotFoundError: A folder lacks a file of an evaluation.
        ValueError: A file is damaged, or the evaluations did not measure the same clips.
    """
    evaluations = read_several(folders)
    titles = [str(folder) for folder in folders]
    values = [asdict(speed) for speed in speeds.speeds]
    Path(output).mkdir(parents=True, exist_ok=True)
    models = dict(zip(titles, values, strict=True))
    write_json(Path(output) / SPEED_FILE, {"protocol": speeds.conditions, "models": models})
    write_text(Path(output) / PAGE_FILE, render_speeds(titles, evaluations, speeds))


def render_speeds(
    titles: Sequence[str], evaluations: Sequence[SavedEvaluation], speeds: ComparedSpeeds
) -> str:
    """Return the page about the speed of models as HTML.

    Args:
        titles: What each model is called.
        evaluations: The evaluation of each model.
        speeds: Their speeds.
    """
    record = evaluations[0].protocol
    rows: list[tuple[str, list[str]]] = []
    for name in ("encode", "decode"):
        parts = [speed.parts[name] for speed in speeds.speeds]
        rows.append((f"{name}, frames/s", [_frames_per_second(part) for part in parts]))
        rows.append((f"{name}, GFLOP", [short(part.flops / 1e9) for part in parts]))
        rows.append((f"{name}, MiB", [short(part.memory / 2**20) for part in parts]))
        rows.append((f"{name}, weights", [f"{part.weights:,}" for part in parts]))
    charts = []
    for name in shared_metrics(evaluations):
        values = [short(evaluation.metrics[name]) for evaluation in evaluations]
        better = record["better"][name]
        rows.append((f"{metric_label(name)}, {better} is better", values))
        if not DIRECTIONS[better].has_limit:
            charts.append(_chart(name, evaluations, speeds.speeds))
    return render_page(
        "speed.html",
        titles=titles,
        columns=titles,
        data=charts_data(charts, runs=titles, file=METRICS_FILE),
        rows=rows,
        clips=describe_clips(record),
        protocol=speeds.conditions,
    )


def pareto_front(
    points: Sequence[tuple[float, float]], *, larger: bool
) -> list[tuple[float, float]]:
    """Return the points `(time, quality)` than which no other one is as fast and better, or faster and as good.

    Args:
        points: The points, in any order.
        larger: Whether larger qualities are better, or smaller ones.

    Returns:
        The front, the fastest point first. A point that is not finite is left out.
    """
    sign = 1.0 if larger else -1.0
    front: list[tuple[float, float]] = []
    best = float("-inf")
    for seconds, quality in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if sign * quality > best:
            front.append((seconds, quality))
            best = sign * quality
    return front


def _frames_per_second(part: PartSpeed) -> str:
    return f"{short(part.frames_per_second)} ({short(part.slowest)} to {short(part.fastest)})"


def _chart(name: str, evaluations: Sequence[SavedEvaluation], speeds: Sequence[Speed]) -> Chart:
    """Return the chart of a metric over the time to decode a frame."""
    better = evaluations[0].protocol["better"][name]
    points: list[tuple[float, float]] = []
    curves: list[Curve] = []
    for index, (evaluation, speed) in enumerate(zip(evaluations, speeds, strict=True)):
        point = (1e3 / speed.decode.frames_per_second, evaluation.metrics[name])
        points.append(point)
        curves.append(make_curve(index, [point]))
    front = pareto_front(points, larger=DIRECTIONS[better].larger_is_better)
    if front:  # it also shows to the right of the best model
        slowest = max(milliseconds for milliseconds, _ in points)
        front.append((slowest, front[-1][1]))
    return Chart(
        title=f"{metric_label(name)} over decoding time, {better} is better",
        series=[
            Series("Pareto front", name, [make_curve(_NO_RUN, front)], is_front=True),
            Series(metric_label(name), name, curves),
        ],
        x=XAxis("milliseconds to decode a frame", scale="log"),
    )
