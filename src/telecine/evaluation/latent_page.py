"""The page about latent spaces, in the look of the report: one HTML file that works offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from telecine import __version__
from telecine.base.files import atomic_write, write_json
from telecine.evaluation.latents import DEFINITIONS, Channels, LatentReport, LatentSpace
from telecine.report.page import page_environment, short, timestamp

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinguishable with red-green colour blindness.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


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
    template = page_environment().get_template("latents.html")
    return template.render(
        titles=[space.title for space in spaces],
        summary=[(name, [short(line[name]) if name in line else "-" for line in lines]) for name in names],
        plots=_plots(spaces),
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


def _plots(spaces: Sequence[LatentSpace]) -> list[dict[str, str]]:
    """Return the title, the hint and the SVG (base64) of each plot, with a line for each model."""
    drawn: list[tuple[str, str, Callable[[Axes, LatentSpace, str], None]]] = [
        ("Spectrum", f"{DEFINITIONS['spectrum']}. Dashed: the scaled-down video.", _draw_spectrum),
        ("Eigenvalues", "Of the channels' covariance, the largest first, as shares of their sum.", _draw_eigenvalues),
        ("Autocorrelation", f"{DEFINITIONS['autocorrelation']}. Dashed: the scaled-down video.", _draw_autocorrelation),
        ("Equivariance", f"{DEFINITIONS['equivariance']}. Smaller is better.", _draw_equivariance),
        ("Noise", f"{DEFINITIONS['noise']}. Larger is better.", _draw_noise),
    ]
    if any(space.drift for space in spaces):
        drawn.append(("Drift", DEFINITIONS["drift"], _draw_drift))
    return [
        {"title": title, "hint": hint[0].upper() + hint[1:], "svg": _svg(spaces, draw)} for title, hint, draw in drawn
    ]


def _svg(spaces: Sequence[LatentSpace], draw: Callable[[Axes, LatentSpace, str], None]) -> str:
    from matplotlib.figure import Figure  # takes a second to import, which `telecine --help` must not spend

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for index, space in enumerate(spaces):
        draw(axes, replace(space, title=_plot_label(space.title)), COLOURS[index % len(COLOURS)])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    text = io.BytesIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return base64.b64encode(text.getvalue()).decode("ascii")


def _draw_spectrum(axes: Axes, space: LatentSpace, colour: str) -> None:
    spectrum = space.spectrum
    axes.plot(spectrum.frequency, spectrum.latent, "o-", markersize=3, color=colour, label=space.title)
    axes.plot(spectrum.frequency, spectrum.video, "--", color=colour)
    axes.set(xlabel="cycles per position", ylabel="share of the power", yscale="log")


def _draw_eigenvalues(axes: Axes, space: LatentSpace, colour: str) -> None:
    total = sum(space.eigenvalues) or 1.0
    shares = [value / total for value in space.eigenvalues]
    label = f"{space.title}, effective rank {space.effective_rank:.1f}"
    axes.plot(range(1, len(shares) + 1), shares, "o-", markersize=3, color=colour, label=label)
    axes.set(xlabel="eigenvalue", ylabel="share")


def _draw_autocorrelation(axes: Axes, space: LatentSpace, colour: str) -> None:
    for name, marker in (("space", "o"), ("time", "s")):
        for prefix, style in (("", "-"), ("video_", "--")):
            values = space.autocorrelation[f"{prefix}{name}"]
            label = None if prefix else f"{space.title}, {name}"
            lags = range(1, len(values) + 1)
            axes.plot(lags, values, style, marker=marker, markersize=3, color=colour, label=label)
    axes.set(xlabel="distance in positions", ylabel="correlation")


def _draw_equivariance(axes: Axes, space: LatentSpace, colour: str) -> None:
    values = [value["mse"] for value in space.equivariance.values()]
    axes.plot(list(space.equivariance), values, "o", color=colour, label=space.title)
    axes.set(ylabel="mean squared error", yscale="log")
    axes.tick_params(axis="x", labelsize=8)


def _draw_noise(axes: Axes, space: LatentSpace, colour: str) -> None:
    sizes = [float(size) for size in space.noise_psnr]
    axes.plot(sizes, list(space.noise_psnr.values()), "o-", markersize=3, color=colour, label=space.title)
    axes.set(xlabel="noise / standard deviation", ylabel="PSNR, dB")


def _draw_drift(axes: Axes, space: LatentSpace, colour: str) -> None:
    correlation = space.drift.get("correlation", [])
    assert isinstance(correlation, list)
    label = f"{space.title}, relative error {space.drift.get('relative_error', 0):.2g}"
    axes.plot(range(len(correlation)), correlation, "o", color=colour, label=label)
    axes.set(xlabel="channel", ylabel="correlation with the base")


def _plot_label(text: str) -> str:
    """Return a text that matplotlib shows in the legend as it is: not as a formula, not hidden, and in UTF-8."""
    escaped = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped  # matplotlib hides labels that begin with it
