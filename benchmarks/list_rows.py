"""Seconds from a list with many rows to the frames of its videos: a Markdown table.

    python benchmarks/list_rows.py
    python benchmarks/list_rows.py --rows 10000

Writes a CSV and a JSONL list whose rows name segments of a few hundred links to a sample video, and reads each twice as
a run does at its start, on one thread: without an index of the videos, and with it. Figures are wall time.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path

import torch
from measure import machine, table

from telecine.data import index_video, load_spans, sample_videos

COLUMNS = ("path", "start_frame", "end_frame")
SECONDS = ("seconds", "of the processor")
TITLES = ("list", "rows", "MB", *(f"{part}, {index} index" for index in ("without", "with") for part in SECONDS))
NUM_FRAMES = 17


def write_list(path: Path, num_rows: int, names: list[str], num_frames: int) -> None:
    """Write a list of segments of `NUM_FRAMES` frames at all places of some videos, in CSV or JSONL."""
    rows = (
        (names[number % len(names)], begin, begin + NUM_FRAMES)
        for number in range(num_rows)
        for begin in [number // len(names) % (num_frames - NUM_FRAMES)]
    )
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n" for row in rows)


def seconds_to_read(path: Path, num_rows: int) -> list[float]:
    """Return the seconds in which a list is read and its videos are indexed: on the wall, and of the processor."""
    clocks = (time.perf_counter, time.process_time)
    before = [clock() for clock in clocks]
    spans, skipped = load_spans(path)
    seconds = [clock() - start for clock, start in zip(clocks, before, strict=True)]
    assert (len(spans), len(skipped)) == (num_rows, 0)
    return seconds


def main() -> None:
    """Read both lists and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--videos", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for suffix in (".csv", ".jsonl"):
        with tempfile.TemporaryDirectory() as folder:
            video = sample_videos()[0]
            names = [f"{number:04d}{video.suffix}" for number in range(arguments.videos)]
            for name in names:
                (Path(folder) / name).symlink_to(video)
            path = Path(folder) / f"list{suffix}"
            write_list(path, arguments.rows, names, index_video(video).num_frames)
            seconds = [f"{value:.2f}" for _ in range(2) for value in seconds_to_read(path, arguments.rows)]
            rows.append([suffix, str(arguments.rows), f"{path.stat().st_size / 1e6:.1f}", *seconds])
    print(f"{arguments.videos} videos; {machine()}\n")
    print(table(list(TITLES), rows))


if __name__ == "__main__":
    main()
