"""Time, extra peak memory and work of the objective's steps, ours against a plain twin: Markdown tables.

    python benchmarks/objective.py

Each size has five steps of a discriminator of videos with LPIPS on a frame of each clip (the autoencoder's, the
discriminators' with and without the gradient penalty, and an update of both) and three of the discriminator of single
frames on four of them, without LPIPS. The twin (`twin.py`) computes the same in the plain way; for single
frames magvit2-pytorch's own discriminator and penalty stand beside it where that package is installed.

Times are medians of interleaved rounds, ratios medians of the rounds' ratios. Memory is the peak of a step above what
was there before it, in a process of its own. `--option` sets an argument of our loss, so that variants can be compared.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cases import (
    AUTOENCODER,
    FRAME_STEPS,
    LAZY,
    MAGVIT2,
    OURS,
    SINGLE_FRAMES,
    TWIN,
    UPDATE,
    UPDATE_PENALTY,
    VIDEO_STEPS,
    Setup,
    contestants_of,
    parse_option,
    parse_setup,
    step_of,
    steps_of,
)
from memory import extra_peak
from tables import NOTHING, table, times
from timing import interleaved, machine, median_ratio
from work import count_flops, share_outside

SETUPS = ("16,64,8,2", "16,64,8,4", "8,128,8,1", "16,128,16,1")
SMOKE = "1,16,4,1"
PARTS = ("time", "memory", "work")
# For each step, for each contestant, one figure or one a round.
Seconds = Mapping[str, Mapping[str, list[float]]]
Peaks = Mapping[str, Mapping[str, int]]
OUTSIDE = "time outside convolutions and matrix products"
PROFILED_ROUNDS = 3
LAZY_ROW = f"update, penalty at every {LAZY}th step of ours, every step of the twin"


def both_kinds(setup: Setup) -> list[tuple[Setup, Sequence[str], str]]:
    """Return the setups of videos and of single frames, the steps of each, and what stands before these in a row."""
    frames = replace(setup, discriminator="Discriminator")
    return [(setup, VIDEO_STEPS, ""), (frames, FRAME_STEPS, f"{SINGLE_FRAMES} single frames: ")]


def measure_times(setup: Setup, rounds: int) -> Seconds:
    """Return the seconds of each round by step and contestant."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for kind, titles, prefix in both_kinds(setup):
        steps = {name: steps_of(name, kind) for name in contestants_of(kind)}
        measured = interleaved({(title, name): steps[name][title] for title in titles for name in steps}, rounds=rounds)
        for (title, name), values in measured.items():
            seconds.setdefault(prefix + title, {})[name] = values
    return seconds


def with_lazy_penalty(seconds: Seconds) -> Seconds:
    """Add the row in which ours computes the penalty at one of many steps, and the twin at each."""
    pairs = zip(seconds[UPDATE][OURS], seconds[UPDATE_PENALTY][OURS], strict=True)
    lazy = [((LAZY - 1) * without + penalised) / LAZY for without, penalised in pairs]
    return {**seconds, LAZY_ROW: {OURS: lazy, TWIN: seconds[UPDATE_PENALTY][TWIN]}}


def time_table(seconds: Seconds) -> str:
    """Return the seconds of each step, and how many times as long the others take as ours."""
    rows = []
    for title, by_name in seconds.items():
        ratios = {name: times(median_ratio(values, by_name[OURS])) for name, values in by_name.items()}
        cells = {name: f"{statistics.median(values):#.3g}" for name, values in by_name.items()}
        rows.append(row(title, cells, ratios))
    return table(["seconds", OURS, TWIN, "twin / ours", MAGVIT2, f"{MAGVIT2} / ours"], rows)


def measure_memory(setup: Setup) -> Peaks:
    """Return the extra peak of each step in bytes by step and contestant."""
    return {
        prefix + title: {name: extra_peak(step_of, name, kind, title) for name in contestants_of(kind)}
        for kind, titles, prefix in both_kinds(setup)
        for title in titles
    }


def memory_table(peaks: Peaks) -> str:
    """Return the extra peak of each step, and what part of the others' ours is."""
    rows = []
    for title, by_name in peaks.items():
        ratios = {name: times(by_name[OURS] / peak) for name, peak in by_name.items()}
        rows.append(row(title, {name: megabytes(peak) for name, peak in by_name.items()}, ratios))
    return table(["extra peak, MB", OURS, TWIN, "ours / twin", MAGVIT2, f"ours / {MAGVIT2}"], rows)


def row(title: str, cells: Mapping[str, str], ratios: Mapping[str, str]) -> list[str]:
    """Return a line: ours, then each other with its ratio."""
    others = [cell for name in (TWIN, MAGVIT2) for cell in (cells.get(name, NOTHING), ratios.get(name, NOTHING))]
    return [title, cells[OURS], *others]


def megabytes(size: int) -> str:
    """Return bytes as a cell."""
    return f"{size / 1e6:.1f}" if size >= 1e7 else f"{size / 1e6:#.3g}"


def work_table(setup: Setup, rounds: int) -> str:
    """Return the operations of each step of videos, and the share of time outside convolutions and matrix products."""
    steps = {name: steps_of(name, setup) for name in (OURS, TWIN)}
    rows = []
    for title in VIDEO_STEPS:
        flops = [count_flops(steps[name][title]) for name in steps]
        shares = [statistics.median(share_outside(steps[name][title]) for _ in range(rounds)) for name in steps]
        cells = [f"{count / 1e9:.3f}" for count in flops]
        rows.append([title, *cells, times(flops[0] / flops[1]), *(f"{share:.0%}" for share in shares)])
    return table(["GFLOP", OURS, TWIN, "ours / twin", f"{OURS}, {OUTSIDE}", f"{TWIN}, {OUTSIDE}"], rows)


def perceptual_table(setup: Setup) -> str:
    """Return how the extra peak grows from one perceptual frame to all frames of the clips."""
    many = replace(setup, perceptual_frames=setup.frames)
    rows = []
    for title in (AUTOENCODER, UPDATE):
        for name in (OURS, TWIN):
            peaks = [extra_peak(step_of, name, frames, title) for frames in (setup, many)]
            rows.append([f"{name}, {title}", *map(megabytes, peaks), times(peaks[1] / peaks[0])])
    counts = ["1", str(setup.frames), f"{setup.frames} / 1"]
    return table(["extra peak, MB, by perceptual frames", *counts], rows)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Print what the objective's steps cost, against a plain twin.")
    parser.add_argument("--configs", nargs="+", type=parse_setup, metavar="DIM,SIZE,FRAMES,BATCH", help="sizes to run")
    parser.add_argument("--discriminator", default="Discriminator3D", help="of videos, as telecine names its class")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds")
    parser.add_argument("--only", choices=PARTS, help="one of the tables, instead of all")
    parser.add_argument("--option", action="append", type=parse_option, default=[], metavar="KEY=VALUE")
    parser.add_argument("--smoke", action="store_true", help="one tiny size and one round, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rounds = 1
    setups = arguments.configs or [parse_setup(text) for text in ([SMOKE] if arguments.smoke else SETUPS)]
    changes = {"discriminator": arguments.discriminator, "options": dict(arguments.option)}
    arguments.setups = [replace(setup, **changes) for setup in setups]
    return arguments


def main() -> None:
    """Measure all sizes and print their tables, each as soon as it is there."""
    arguments = parse_arguments()
    parts: dict[str, Callable[[Setup], str]] = {
        "time": lambda setup: time_table(with_lazy_penalty(measure_times(setup, arguments.rounds))),
        "memory": lambda setup: memory_table(measure_memory(setup)),
        "work": lambda setup: work_table(setup, min(arguments.rounds, PROFILED_ROUNDS)),
    }
    wanted = [arguments.only] if arguments.only else PARTS
    options = "".join(f", {key}={value!r}" for key, value in arguments.option)
    print(f"{arguments.discriminator}{options}; {machine()}")
    for setup in arguments.setups:
        print(f"\n## {setup.title}")
        for part in wanted:
            print(f"\n{parts[part](setup)}", flush=True)
    if "memory" in wanted:
        print(f"\n## More perceptual frames: {arguments.setups[-1].title}")
        print(f"\n{perceptual_table(arguments.setups[-1])}")


if __name__ == "__main__":
    main()
