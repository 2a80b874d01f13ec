"""Time and memory of an update over frames, pixels, batch size and perceptual frames: a Markdown table and a plot.

    python benchmarks/scaling.py -o scaling.png

Each is varied alone, from the same base. The measured step is an update with the gradient penalty, the most expensive
one; `--step` selects another. Times are medians of interleaved rounds of telecine and of the plain baseline. Memory is
the extra peak.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from cases import BASELINE, TELECINE, UPDATE_PENALTY, VIDEO_STEPS, Setup, parse_option, step_of
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from measure import extra_peak, interleaved, machine, median_ratio, ratio, table, table_row

BASE = Setup(dim=8, size=64, num_frames=16, batch_size=1)
SMOKE = Setup(dim=1, size=16, num_frames=4, batch_size=1)
# The baseline is not safe at all odd batch sizes, see `baseline_discriminators.py`.
AXES: dict[str, Sequence[int]] = {
    "num_frames": (4, 8, 16, 32),
    "size": (32, 64, 128),
    "batch_size": (1, 2, 4, 8),
    "num_perceptual_frames": (1, 2, 4, 8, 16),
}
SMOKE_AXES: dict[str, Sequence[int]] = {
    "num_frames": (2, 4),
    "size": (16,),
    "batch_size": (1,),
    "num_perceptual_frames": (1, 4),
}
LABELS = {
    "num_frames": "frames",
    "size": "height and width, pixels",
    "batch_size": "clips in a batch",
    "num_perceptual_frames": "perceptual frames of a clip",
}
NAMES = (TELECINE, BASELINE)


@dataclass(frozen=True)
class Point:
    """The cost of an update at one size, by implementation."""

    seconds: dict[str, list[float]]
    """Of each round."""
    peak: dict[str, int]
    """Extra peak in bytes."""


@cache
def measure(setup: Setup, step: str, rounds: int) -> Point:
    """Measure time and memory of both implementations; the base, which is on all axes, only once."""
    seconds = interleaved({name: step_of(name, setup, step) for name in NAMES}, rounds=rounds)
    return Point(seconds, {name: extra_peak(step_of, name, setup, step) for name in NAMES})


def row(axis: str, value: int, point: Point) -> list[str]:
    """Return a row of the table."""
    times = [f"{statistics.median(point.seconds[name]):#.3g}" for name in NAMES]
    time_ratio = median_ratio(point.seconds[BASELINE], point.seconds[TELECINE])
    peaks = [f"{point.peak[name] / 1e6:.1f}" for name in NAMES]
    peak_ratio = point.peak[TELECINE] / point.peak[BASELINE]
    return [f"{LABELS[axis]}: {value}", *times, ratio(time_ratio), *peaks, ratio(peak_ratio)]


def draw(points: dict[str, dict[int, Point]], title: str, path: str) -> None:
    """Draw time and memory over each axis on logarithmic scales, where a power law is a straight line."""
    figure = Figure(figsize=(4 * len(points), 6.4), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=11)
    quantities: dict[str, Callable[[Point, str], float]] = {
        "seconds": lambda point, name: statistics.median(point.seconds[name]),
        "extra peak memory, MB": lambda point, name: point.peak[name] / 1e6,
    }
    grid = figure.subplots(2, len(points), sharex="col", sharey="row", squeeze=False)
    for panels, (label, quantity) in zip(grid, quantities.items(), strict=True):
        panels[0].set_ylabel(label)
        for panel, by_value in zip(panels, points.values(), strict=True):
            draw_panel(panel, {name: {v: quantity(p, name) for v, p in by_value.items()} for name in NAMES})
    for panel, axis in zip(grid[-1], points, strict=True):
        panel.set_xlabel(LABELS[axis])
        panel.set_xticks(list(points[axis]), labels=[str(value) for value in points[axis]])
        panel.minorticks_off()
    grid[0, 0].legend()
    figure.savefig(path, format="png")


def draw_panel(panel: Any, lines: dict[str, dict[int, float]]) -> None:
    """Draw one line per implementation."""
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.3)
    for (name, values), marker in zip(lines.items(), "os", strict=True):
        panel.plot(list(values), list(values.values()), label=name, marker=marker, markersize=4, linewidth=1.4)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Print and draw the cost of an update over its sizes.")
    parser.add_argument("-o", "--output", required=True, help="path of the PNG file")
    parser.add_argument("--step", choices=VIDEO_STEPS, default=UPDATE_PENALTY, help="the measured step")
    parser.add_argument("--rounds", type=int, default=5, help="number of measured rounds")
    parser.add_argument("--option", action="append", type=parse_option, default=[], metavar="[GROUP.]KEY=VALUE")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and one round, to test the command")
    arguments = parser.parse_args()
    arguments.base, arguments.axes = (SMOKE, SMOKE_AXES) if arguments.smoke else (BASE, AXES)
    arguments.base = replace(arguments.base, options=dict(arguments.option))
    arguments.rounds = 1 if arguments.smoke else arguments.rounds
    return arguments


def main() -> None:
    """Measure along all axes, print each row when it is complete, and draw the plot."""
    arguments = parse_arguments()
    options = "".join(f", {key}={value!r}" for key, value in arguments.option)
    title = f"{arguments.step}; {arguments.base.title}{options}; {machine()}"
    print(f"{title}\n")
    seconds, peaks = ([f"{name}, {unit}" for name in NAMES] for unit in ("s", "MB"))
    print(table(["", *seconds, f"{BASELINE} / {TELECINE}", *peaks, f"{TELECINE} / {BASELINE}"], []))
    points: dict[str, dict[int, Point]] = {axis: {} for axis in arguments.axes}
    for axis, values in arguments.axes.items():
        for value in values:
            points[axis][value] = measure(replace(arguments.base, **{axis: value}), arguments.step, arguments.rounds)
            print(table_row(row(axis, value, points[axis][value])), flush=True)
    draw(points, title, arguments.output)


if __name__ == "__main__":
    main()
