"""The page about round trips: error, colours, sharpness and latent over the passes, and their table."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from telecine.base.files import write_text
from telecine.evaluation.evaluation_record import describe_clips
from telecine.evaluation.metrics import METRICS
from telecine.evaluation.metrics.round_trips import ROUND_TRIP_LATENT, ROUND_TRIP_PSNR
from telecine.evaluation.result import ROUND_TRIPS_FILE, ROUND_TRIPS_PAGE, Evaluation
from telecine.report.chart_data import Chart, Series, XAxis, charts_data, make_curve
from telecine.report.html import render_page

# The order of the first colours of a chart, so that each channel has about its colour.
_CHANNELS_OF_COLOURS = ("blue", "red", "green")


def write_round_trips(evaluation: Evaluation, output: str | Path) -> None:
    """Write round_trips.html about an evaluation of round trips into its folder.

    Args:
        evaluation: The evaluation, with `per_pass`.
        output: The folder of the evaluation.
    """
    record = evaluation.protocol
    measured = [name for name in evaluation.per_pass if name in METRICS]
    channels = [name for name in evaluation.per_pass if name not in METRICS]
    if set(_CHANNELS_OF_COLOURS) <= set(channels):
        others = [name for name in channels if name not in _CHANNELS_OF_COLOURS]
        channels = [*_CHANNELS_OF_COLOURS, *others]
    charts = []
    for name in measured:
        metric = METRICS[name]
        title = name.removeprefix("round_trip_")
        if metric.unit:
            title = f"{title} ({metric.unit})"
        charts.append(_chart(evaluation, f"{title}, {metric.better} is better", [name]))
    charts.append(_chart(evaluation, "change of the mean, levels of 8 bits", channels))
    clips = describe_clips(asdict(record))
    protocol = {
        "data": record.data,
        "clips": clips,
        "round trips": record.backbones[ROUND_TRIP_PSNR.name],
    }
    if ROUND_TRIP_LATENT.name in record.absent:
        protocol["no latent"] = record.absent[ROUND_TRIP_LATENT.name]
    page = render_page(
        "round_trips.html",
        titles=[record.subject],
        columns=evaluation.pass_columns(),
        data=charts_data(charts, runs=[record.subject], file=ROUND_TRIPS_FILE),
        rows=evaluation.pass_rows(),
        clips=clips,
        protocol=protocol,
    )
    write_text(Path(output) / ROUND_TRIPS_PAGE, page)


def _chart(evaluation: Evaluation, title: str, names: Sequence[str]) -> Chart:
    """Return the chart of some values over the passes."""
    series = []
    for name in names:
        points = enumerate(evaluation.per_pass[name], start=1)
        label = name.removeprefix("round_trip_")
        series.append(Series(label, name, [make_curve(0, points)]))
    return Chart(title=title, series=series, x=XAxis("pass"))
