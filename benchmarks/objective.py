"""Time and extra peak memory of the objective's steps, of telecine and a plain baseline: Markdown tables.

    python benchmarks/objective.py

For each size the tables have five steps of a video discriminator with LPIPS on one frame of each clip (autoencoder
step, discriminator step with and without gradient penalty, and an update of both, with and without), and three steps of
the discriminator of single frames on four frames, without LPIPS. The baseline (`baseline.py`) computes the same
equations in the plain way. If magvit2-pytorch is installed, its discriminator and penalty of single frames are
measured too.

Times are medians of interleaved rounds, and ratios are medians of the ratios of each round. Memory is the peak of a
step above the memory before it, in a new process. To compare two checkouts, run the command in each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from cases import (
    AUTOENCODER,
    BASELINE,
    FRAME_STEPS,
    MAGVIT2,
    NUM_SINGLE_FRAMES,
    PENALTY_EVERY,
    TELECINE,
    UPDATE,
    UPDATE_PENALTY,
    VIDEO_STEPS,
    Setup,
    implementations_of,
    parse_setup,
    step_of,
    steps_of,
)
from measure import (
    NOT_AVAILABLE,
    extra_peak,
    interleaved,
    machine,
    median_ratio,
    megabytes,
    ratio,
    table,
)

SETUPS = ("16,64,8,2", "16,64,8,4", "8,128,8,1", "16,128,16,1")
SMOKE = "1,16,4,1"
TABLES = ("time", "memory")
# By step and implementation: the seconds of each round, and the extra peak in bytes.
Seconds = Mapping[str, Mapping[str, list[float]]]
Peaks = Mapping[str, Mapping[str, int]]
LAZY_PENALTY = (
    f"update, penalty on every {PENALTY_EVERY}th step of {TELECINE}, every step of the {BASELINE}"
)


def both_kinds(setup: Setup) -> list[tuple[Setup, Sequence[str], str]]:
    """Return the setups of videos and of single frames, each with its steps and the prefix of their titles."""
    single_frames = replace(setup, discriminator_name="Discriminator")
    return [
        (setup, VIDEO_STEPS, ""),
        (single_frames, FRAME_STEPS, f"{NUM_SINGLE_FRAMES} single frames: "),
    ]


def measure_times(
    setup: Setup, rounds: int, warmup: int, clock: Callable[[], float] = time.perf_counter
) -> Seconds:
    """Return the seconds of each round after the warm-up by step and implementation."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for kind, titles, prefix in both_kinds(setup):
        steps = {name: steps_of(name, kind) for name in implementations_of(kind)}
        pairs = {(title, name): steps[name][title] for title in titles for name in steps}
        measured = interleaved(pairs, rounds=rounds, warmup=warmup, clock=clock)
        for (title, name), values in measured.items():
            seconds.setdefault(prefix + title, {})[name] = values
    return seconds


def with_lazy_penalty(seconds: Seconds) -> Seconds:
    """Add an update with the mean cost of telecine's lazy penalty, and the baseline's penalty on every step."""
    pairs = zip(seconds[UPDATE][TELECINE], seconds[UPDATE_PENALTY][TELECINE], strict=True)
    lazy = [
        ((PENALTY_EVERY - 1) * without + with_penalty) / PENALTY_EVERY
        for without, with_penalty in pairs
    ]
    return {**seconds, LAZY_PENALTY: {TELECINE: lazy, BASELINE: seconds[UPDATE_PENALTY][BASELINE]}}


def time_table(seconds: Seconds) -> str:
    """Return the seconds of each step, and the ratio of the others to telecine."""
    rows = []
    for title, by_name in seconds.items():
        ratios = {
            name: ratio(median_ratio(values, by_name[TELECINE])) for name, values in by_name.items()
        }
        cells = {name: f"{statistics.median(values):#.3g}" for name, values in by_name.items()}
        rows.append(row(title, cells, ratios))
    return table(
        [
            "seconds",
            TELECINE,
            BASELINE,
            f"{BASELINE} / {TELECINE}",
            MAGVIT2,
            f"{MAGVIT2} / {TELECINE}",
        ],
        rows,
    )


@cache
def peak_of(name: str, setup: Setup, title: str) -> int:
    """Return the extra peak of a step in bytes. Two tables use some of them."""
    return extra_peak(step_of, name, setup, title)


def measure_memory(setup: Setup) -> Peaks:
    """Return the extra peak in bytes by step and implementation."""
    return {
        prefix + title: {name: peak_of(name, kind, title) for name in implementations_of(kind)}
        for kind, titles, prefix in both_kinds(setup)
        for title in titles
    }


def memory_table(peaks: Peaks) -> str:
    """Return the extra peak of each step, and the ratio of telecine to the others."""
    rows = []
    for title, by_name in peaks.items():
        ratios = {name: ratio(by_name[TELECINE] / peak) for name, peak in by_name.items()}
        rows.append(row(title, {name: megabytes(peak) for name, peak in by_name.items()}, ratios))
    header = [
        "extra peak, MB",
        TELECINE,
        BASELINE,
        f"{TELECINE} / {BASELINE}",
        MAGVIT2,
        f"{TELECINE} / {MAGVIT2}",
    ]
    return table(header, rows)


def row(title: str, cells: Mapping[str, str], ratios: Mapping[str, str]) -> list[str]:
    """Return a row: telecine, then each of the others with its ratio."""
    pairs = [
        (cells.get(name, NOT_AVAILABLE), ratios.get(name, NOT_AVAILABLE))
        for name in (BASELINE, MAGVIT2)
    ]
    return [title, cells[TELECINE], *pairs[0], *pairs[1]]


def perceptual_table(setup: Setup) -> str:
    """Return the extra peak with one perceptual frame, and with all frames of the clips."""
    all_frames = replace(setup, num_perceptual_frames=setup.num_frames)
    rows = []
    for title in (AUTOENCODER, UPDATE):
        for name in (TELECINE, BASELINE):
            peaks = [peak_of(name, either, title) for either in (setup, all_frames)]
            rows.append([f"{name}, {title}", *map(megabytes, peaks), ratio(peaks[1] / peaks[0])])
    counts = ["1", str(setup.num_frames), f"{setup.num_frames} / 1"]
    return table(["extra peak, MB, by perceptual frames", *counts], rows)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Print the cost of the objective's steps, with a plain baseline's."
    )
    parser.add_argument(
        "--configs", nargs="+", type=parse_setup, metavar="DIM,SIZE,FRAMES,BATCH", help="the sizes"
    )
    parser.add_argument("--rounds", type=int, default=7, help="number of measured rounds")
    parser.add_argument(
        "--processor_time", action="store_true", help="instead of wall time, for a busy machine"
    )
    parser.add_argument("--only", choices=TABLES, help="print one of the tables instead of all")
    parser.add_argument(
        "--smoke", action="store_true", help="one tiny size and one round, to test the command"
    )
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rounds = 1
    arguments.warmup = 0 if arguments.smoke else 1
    arguments.setups = arguments.configs or [
        parse_setup(text) for text in ([SMOKE] if arguments.smoke else SETUPS)
    ]
    return arguments


def main() -> None:
    """Measure all sizes and print each table when it is complete."""
    arguments = parse_arguments()
    clock = time.process_time if arguments.processor_time else time.perf_counter
    rounds = (arguments.rounds, arguments.warmup)
    tables: dict[str, Callable[[Setup], str]] = {
        "time": lambda setup: time_table(with_lazy_penalty(measure_times(setup, *rounds, clock))),
        "memory": lambda setup: memory_table(measure_memory(setup)),
    }
    selected = [arguments.only] if arguments.only else TABLES
    print(machine())
    for setup in arguments.setups:
        print(f"\n## {setup.title}")
        for name in selected:
            print(f"\n{tables[name](setup)}", flush=True)
    if "memory" in selected:
        print(f"\n## More perceptual frames: {arguments.setups[-1].title}")
        print(f"\n{perceptual_table(arguments.setups[-1])}")


if __name__ == "__main__":
    main()
