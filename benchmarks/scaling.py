"""How time and memory of an update grow with frames, pixels, batch and perceptual frames: a Markdown table and a plot.

    python benchmarks/scaling.py -o scaling.png

Each is varied alone, from the same base. An update is both steps with the gradient penalty, the largest there is;
`--step` takes another. Times are medians of interleaved rounds of ours and of the plain twin, memory is the extra peak.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from cases import OURS, TWIN, UPDATE_PENALTY, VIDEO_STEPS, Setup, parse_option, step_of
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from memory import extra_peak
from tables import table, times
from timing import interleaved, machine, median_ratio

BASE = Setup(dim=8, size=64, frames=16, batch=1)
SMOKE = Setup(dim=1, size=16, frames=4, batch=1)
# The twin's double backward is not safe at all odd batches, see `twin.py`.
AXES: dict[str, Sequence[int]] = {
    "frames": (4, 8, 16, 32),
    "size": (32, 64, 128),
    "batch": (1, 2, 4, 8),
    "perceptual_frames": (1, 2, 4, 8, 16),
}
SMOKE_AXES: dict[str, Sequence[int]] = {
    "frames": (2, 4),
    "size": (16, 32),
    "batch": (1, 2),
    "perceptual_frames": (1, 4),
}
LABELS = {
    "frames": "frames",
    "size": "height and width, pixels",
    "batch": "clips in a batch",
    "perceptual_frames": "perceptual frames of a clip",
}
NAMES = (OURS, TWIN)


@dataclass(frozen=True)
class Point:
    """What an update costs at one size."""

    seconds: dict[str, list[float]]
    """Of each round, by contestant."""
    peak: dict[str, int]
    """Extra peak in bytes, by contestant."""


@cache
def measure(setup: Setup, step: str, rounds: int) -> Point:
    """Time ours and the twin, and measure the memory of each; once for the base, which lies on all axes."""
    seconds = interleaved({name: step_of(name, setup, step) for name in NAMES}, rounds=rounds)
    return Point(seconds, {name: extra_peak(step_of, name, setup, step) for name in NAMES})


def row(axis: str, value: int, point: Point) -> list[str]:
    """Return a line of the table."""
    time_cells = [f"{statistics.median(point.seconds[name]):#.3g}" for name in NAMES]
    faster = median_ratio(point.seconds[TWIN], point.seconds[OURS])
    memory_cells = [f"{point.peak[name] / 1e6:.1f}" for name in NAMES]
    smaller = point.peak[OURS] / point.peak[TWIN]
    return [f"{LABELS[axis]}: {value}", *time_cells, times(faster), *memory_cells, times(smaller)]


def draw(points: dict[str, dict[int, Point]], title: str, path: str) -> None:
    """Draw time and memory over each of the axes, in logarithms, so that a power law is a straight line."""
    figure = Figure(figsize=(4 * len(points), 6.4), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=11)
    figures_of: dict[str, Callable[[Point, str], float]] = {
        "seconds": lambda point, name: statistics.median(point.seconds[name]),
        "extra peak memory, MB": lambda point, name: point.peak[name] / 1e6,
    }
    grid = figure.subplots(2, len(points), sharex="col", sharey="row", squeeze=False)
    for axes_row, (quantity, figure_of) in zip(grid, figures_of.items(), strict=True):
        axes_row[0].set_ylabel(quantity)
        for axes, by_value in zip(axes_row, points.values(), strict=True):
            draw_panel(axes, {name: {v: figure_of(p, name) for v, p in by_value.items()} for name in NAMES})
    for axes, axis in zip(grid[-1], points, strict=True):
        axes.set_xlabel(LABELS[axis])
        axes.set_xticks(list(points[axis]), labels=[str(value) for value in points[axis]])
        axes.minorticks_off()
    grid[0, 0].legend()
    figure.savefig(path, format="png")


def draw_panel(axes: Any, lines: dict[str, dict[int, float]]) -> None:
    """Draw one line a contestant."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    for (name, values), marker in zip(lines.items(), "os", strict=True):
        axes.plot(list(values), list(values.values()), label=name, marker=marker, markersize=4, linewidth=1.4)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Print and draw how the cost of an update grows.")
    parser.add_argument("-o", "--output", required=True, help="the PNG to write")
    parser.add_argument("--step", choices=VIDEO_STEPS, default=UPDATE_PENALTY, help="what is measured")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--option", action="append", type=parse_option, default=[], metavar="KEY=VALUE")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and one round, to see that it runs")
    arguments = parser.parse_args()
    arguments.base, arguments.axes = (SMOKE, SMOKE_AXES) if arguments.smoke else (BASE, AXES)
    arguments.base = replace(arguments.base, options=dict(arguments.option))
    arguments.rounds = 1 if arguments.smoke else arguments.rounds
    return arguments


def main() -> None:
    """Measure along all axes, print a line as soon as it is there, and draw them."""
    arguments = parse_arguments()
    options = "".join(f", {key}={value!r}" for key, value in arguments.option)
    title = f"{arguments.step}; {arguments.base.title}{options}; {machine()}"
    print(f"{title}\n")
    header = ["", "ours, s", "twin, s", "twin / ours", "ours, MB", "twin, MB", "ours / twin"]
    print(table(header, []))
    points: dict[str, dict[int, Point]] = {axis: {} for axis in arguments.axes}
    for axis, values in arguments.axes.items():
        for value in values:
            setup = replace(arguments.base, **{axis: value})
            points[axis][value] = measure(setup, arguments.step, arguments.rounds)
            print(f"| {' | '.join(row(axis, value, points[axis][value]))} |", flush=True)
    draw(points, title, arguments.output)


if __name__ == "__main__":
    main()
