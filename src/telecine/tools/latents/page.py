"""The page about latent spaces, in the look of the report: one HTML file that works offline."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from telecine.base.files import write_json, write_text
from telecine.base.yaml_files import read_package_yaml
from telecine.report.charts import Chart, Series, charts_data, make_curve
from telecine.report.html import render_page, short
from telecine.tools.latents.denoising import LEVELS
from telecine.tools.latents.measures import DEFINITIONS, TRANSFORMS, Channels, LatentReport, LatentSpace

_PLOTS: dict[str, tuple[str, str, str]] = read_package_yaml("telecine.evaluation", "definitions.yaml")["latent_plots"]
_LABELS = ("latent", "scaled-down video")
_TRANSFORMS = ["none", *TRANSFORMS]


def write_latents(report: LatentReport, folder: Path) -> Path:
    """Write latents.json and latents.html into a folder, which is created if needed, and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "latents.json", asdict(report))
    write_text(page := folder / "latents.html", _render_latents(report))
    return page


def _render_latents(report: LatentReport) -> str:
    spaces, titles = report.models, [space.title for space in report.models]
    left_out: list[object] = [None, [{} for _ in spaces], DEFINITIONS]  # no base model, no samplers; said elsewhere
    most = max(len(space.channels.std) for space in spaces)
    charts = _charts(spaces, [str(index) for index in range(most)])
    return render_page(
        "latents.html",
        titles=titles,
        data=charts_data(charts, runs=titles, file="latents.json"),
        summary=report.summary(),
        probes=[(space.title, space.probe) for space in spaces if space.probe],
        channels=[(str(index), [_channel(space.channels, index) for space in spaces]) for index in range(most)],
        protocol=[(name, value) for name, value in report.protocol.items() if value not in left_out],
        definitions=DEFINITIONS,
    )


def _channel(channels: Channels, index: int) -> str:
    if index >= len(channels.std):
        return "-"
    values = (channels.mean[index], channels.std[index], channels.kurtosis[index])
    return ", ".join(map(short, values)) + (", dead" if index in channels.dead else "")


def _charts(spaces: Sequence[LatentSpace], channels: list[str]) -> list[Chart]:
    """Return a chart for each measure that a model has, with the latent and, if measured, the scaled-down video."""
    points = [_points(space) for space in spaces]
    names = {"transform": _TRANSFORMS, "channel": channels}
    charts = []
    for measure, (title, x, scale) in _PLOTS.items():
        series = []
        for position, label in enumerate(_LABELS):
            curves = []
            for index, measures in enumerate(points):
                if position < len(measures[measure]):
                    curves.append(make_curve(index, measures[measure][position]))
            if curves:
                series.append(Series(label, measure, curves, is_reference=position > 0))
        explanation = DEFINITIONS.get(measure.partition(".")[0], "of the channels' covariance, as shares of their sum")
        if any(curve.values for one in series for curve in one.curves):
            chart = Chart(
                title=title,
                series=series,
                scale=scale,
                explanation=f"{explanation[0].upper()}{explanation[1:]}.",
                x=x,
                x_names=names.get(x, []),
            )
            charts.append(chart)
    return charts


def _points(space: LatentSpace) -> dict[str, list[Iterable[tuple[float, float]]]]:
    """Return the positions and values of each measure: of the latent, then of the scaled-down video if it has it."""
    spectrum, correlation, total = space.spectrum, space.autocorrelation, sum(space.eigenvalues) or 1.0
    return {
        "spectrum": [zip(spectrum.frequency, each, strict=True) for each in (spectrum.latent, spectrum.video)],
        "eigenvalues": [enumerate((value / total for value in space.eigenvalues), 1)],
        "autocorrelation.space": [enumerate(correlation[name], 1) for name in ("space", "video_space")],
        "autocorrelation.time": [enumerate(correlation[name], 1) for name in ("time", "video_time")],
        "equivariance": [((_TRANSFORMS.index(name), value["mse"]) for name, value in space.equivariance.items())],
        "noise": [((float(size), value) for size, value in space.noise_psnr.items())],
        "probe": [zip(LEVELS, space.probe.shares() if space.probe else (), strict=False)],
        "drift": [enumerate(cast(list[float], space.drift.get("correlation", [])))],
    }
