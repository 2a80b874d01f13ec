"""The page about latent spaces, in the look of the report: one HTML file that works offline."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from telecine.base.files import write_json, write_text
from telecine.report.chart_data import Chart, Series, XAxis, charts_data, make_curve
from telecine.report.html import render_page, short
from telecine.tools.latents.charts import LATENT_CHARTS, LatentChart, channel_names
from telecine.tools.latents.space import DEFINITIONS, Channels, LatentReport, LatentSpace


def write_latents(report: LatentReport, folder: Path) -> Path:
    """Write latents.json and latents.html into a folder, which is created if needed, and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "latents.json", asdict(report))
    page = folder / "latents.html"
    write_text(page, render_latents(report))
    return page


def render_latents(report: LatentReport) -> str:
    """Return the page about latent spaces as HTML."""
    titles = [space.title for space in report.models]
    channel_rows = []
    for index, name in enumerate(channel_names(report.models)):
        channel_rows.append((name, [_channel(space.channels, index) for space in report.models]))
    protocol = []
    no_samplers: list[object] = [{} for _ in report.models]
    for name, value in report.protocol.items():
        if name != "definitions" and value is not None and value != no_samplers:
            protocol.append((name, value))
    return render_page(
        "latents.html",
        titles=titles,
        data=charts_data(_charts(report.models), runs=titles, file="latents.json"),
        summary=report.summary(),
        probes=[(space.title, space.probe) for space in report.models if space.probe is not None],
        channels=channel_rows,
        protocol=protocol,
        definitions=DEFINITIONS,
    )


def _channel(channels: Channels, index: int) -> str:
    if index >= len(channels.std):
        return "-"
    values = (channels.mean[index], channels.std[index], channels.kurtosis[index])
    text = ", ".join(short(value) for value in values)
    return f"{text}, dead" if index in channels.dead else text


def _charts(spaces: Sequence[LatentSpace]) -> list[Chart]:
    """Return a chart for each measure that a model has."""
    charts = []
    for definition in LATENT_CHARTS:
        series = _series(definition, spaces)
        if any(curve.values for one in series for curve in one.curves):
            chart = Chart(
                title=definition.title,
                series=series,
                scale=definition.scale,
                explanation=f"{definition.definition[0].upper()}{definition.definition[1:]}.",
                x=XAxis(definition.x, names=definition.x_names(spaces)),
            )
            charts.append(chart)
    return charts


def _series(definition: LatentChart, spaces: Sequence[LatentSpace]) -> list[Series]:
    """Return the curves of the latents and, if the chart has them, of the scaled-down videos."""
    curves = [make_curve(index, definition.points(space)) for index, space in enumerate(spaces)]
    series = [Series("latent", definition.name, curves)]
    if definition.video_points is not None:
        curves = [
            make_curve(index, definition.video_points(space)) for index, space in enumerate(spaces)
        ]
        series.append(Series("scaled-down video", definition.name, curves, is_reference=True))
    return series
