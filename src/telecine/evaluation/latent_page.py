"""The page about latent spaces, in the look of the report: one HTML file that works offline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeAlias, cast

from telecine import __version__
from telecine.base.files import atomic_write, write_json
from telecine.evaluation.latents import DEFINITIONS, Channels, LatentReport, LatentSpace
from telecine.report.page import page_environment, plot_data, short, timestamp
from telecine.report.plots import Plot, Series, as_curve

# The positions and values of a model's curve.
_Points: TypeAlias = Callable[[LatentSpace], Iterable[tuple[float, float]]]


def write_latents(report: LatentReport, folder: Path) -> Path:
    """Write latents.json and latents.html into a folder, which is created if needed, and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "latents.json", asdict(report))
    html = _render_latents(report).encode("utf-8", "backslashreplace")  # names may have other bytes
    page = folder / "latents.html"
    atomic_write(page, lambda partial: partial.write_bytes(html))
    return page


def _render_latents(report: LatentReport) -> str:
    """Return the page as HTML."""
    spaces = report.models
    lines = [space.figures() for space in spaces]
    names = dict.fromkeys(name for line in lines for name in line)
    most = max(len(space.channels.std) for space in spaces)
    titles = [space.title for space in spaces]
    data = {"runs": titles, "file": "latents.json", "plots": [plot_data(plot) for plot in _plots(spaces)]}
    template = page_environment().get_template("latents.html")
    return template.render(
        titles=titles,
        data=data,
        summary=[(name, [short(line[name]) if name in line else "-" for line in lines]) for name in names],
        channels=[(str(index), [_channel(space.channels, index) for space in spaces]) for index in range(most)],
        protocol=[(name, value) for name, value in report.protocol.items() if name != "definitions"],
        definitions=DEFINITIONS,
        version=__version__,
        made=timestamp(),
    )


def _channel(channels: Channels, index: int) -> str:
    if index >= len(channels.std):
        return "-"
    values = (channels.mean[index], channels.std[index], channels.kurtosis[index])
    return ", ".join(map(short, values)) + (", dead" if index in channels.dead else "")


def _plots(spaces: Sequence[LatentSpace]) -> list[Plot]:
    """Return a plot of each measure that has several values, with the curves of all models."""
    channels = [str(index) for index in range(max(len(space.channels.std) for space in spaces))]
    plots = [
        _plot(
            Plot("Spectrum: share of the power", "log", [], x="cycles per position", hint=DEFINITIONS["spectrum"]),
            spaces,
            lambda space: zip(space.spectrum.frequency, space.spectrum.latent, strict=True),
            lambda space: zip(space.spectrum.frequency, space.spectrum.video, strict=True),
        ),
        _plot(
            Plot(
                "Eigenvalues", "linear", [], x="eigenvalue", hint="of the channels' covariance, as shares of their sum"
            ),
            spaces,
            lambda space: enumerate((value / (sum(space.eigenvalues) or 1) for value in space.eigenvalues), 1),
        ),
        *(
            _plot(
                Plot(f"Autocorrelation, {axis}", "linear", [], x="distance", hint=DEFINITIONS["autocorrelation"]),
                spaces,
                lambda space, axis=axis: enumerate(space.autocorrelation[axis], 1),
                lambda space, axis=axis: enumerate(space.autocorrelation[f"video_{axis}"], 1),
            )
            for axis in ("space", "time")
        ),
        _plot(
            Plot(
                "Equivariance, smaller is better",
                "log",
                [],
                x="transform",
                x_names=[*spaces[0].equivariance],
                hint=DEFINITIONS["equivariance"],
            ),
            spaces,
            lambda space: enumerate(value["mse"] for value in space.equivariance.values()),
        ),
        _plot(
            Plot(
                "Noise: PSNR (dB), larger is better",
                "linear",
                [],
                x="noise / standard deviation",
                hint=DEFINITIONS["noise"],
            ),
            spaces,
            lambda space: ((float(size), value) for size, value in space.noise_psnr.items()),
        ),
        _plot(
            Plot(
                "Drift: correlation with the base",
                "linear",
                [],
                x="channel",
                x_names=channels,
                hint=DEFINITIONS["drift"],
            ),
            spaces,
            lambda space: enumerate(cast(list[float], space.drift.get("correlation", []))),
        ),
    ]
    return [plot for plot in plots if plot.series]


def _plot(plot: Plot, spaces: Sequence[LatentSpace], latent: _Points, video: _Points | None = None) -> Plot:
    """Return a plot with the values of all models' latents and, as the reference, those of the scaled-down video."""
    found = [("latent", latent, False), *([] if video is None else [("scaled-down video", video, True)])]
    series = [
        Series(label, plot.title, [as_curve(index, points(space)) for index, space in enumerate(spaces)], is_reference)
        for label, points, is_reference in found
    ]
    hint = f"{plot.hint[0].upper()}{plot.hint[1:]}."
    return replace(plot, hint=hint, series=[each for each in series if any(curve.values for curve in each.curves)])
