"""Faults of a run, and whether what telecine promises held: a Markdown table.

    python benchmarks/faults.py
    python benchmarks/faults.py --kills 20 --media 100

Files: writing a checkpoint is stopped at each of its operations on files; each file is damaged in each of several ways,
and single bits of a manifest or a latent cache; the disk is full, or cannot read, write or flush a file. Processes: a
run is killed, gets signals, and meets a second run, at random moments, and either of two ranks is killed or stopped;
each run then trains to its end, and its weights are compared with those of a run without faults. A probe is killed.
Ten processes take a stale lock at once. Inputs: videos, images and the files of a finished run are mutated with a
seed, small media are crafted to cost much, and lists and settings files are broken.

What failed is printed to standard error. All processes are forks of this one, which saves the time of imports.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from faults_crafted import crafted
from faults_disk import CASES, disk_errors
from faults_files import all_damaged, crashes, damage, full_disk, latent_cache, manifest_bits
from faults_foreign import foreign
from faults_inputs import lists, media
from faults_processes import kills, kinds, probes, ranks, signals, starters, straight, two_runs
from measure import machine, table


def main() -> None:
    """Try all faults and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="how often a run is killed")
    parser.add_argument(
        "--kinds", type=int, default=12, help="how often runs of other kinds are killed"
    )
    parser.add_argument("--probes", type=int, default=12, help="how often a probe is killed")
    parser.add_argument("--signals", type=int, default=20, help="how often a run gets a signal")
    parser.add_argument(
        "--two_runs", type=int, default=5, help="how often a second run starts in the same folder"
    )
    parser.add_argument(
        "--ranks", type=int, default=10, help="how often one of two ranks is killed or stopped"
    )
    parser.add_argument(
        "--media", type=int, default=500, help="how many videos and images are mutated"
    )
    parser.add_argument(
        "--lists", type=int, default=50, help="how many lists and settings are broken, at most 51"
    )
    parser.add_argument(
        "--foreign", type=int, default=200, help="how often the folder of a run is mutated"
    )
    parser.add_argument(
        "--manifests", type=int, default=200, help="how often a bit of a manifest is flipped"
    )
    parser.add_argument(
        "--disk_errors",
        type=int,
        default=len(CASES),
        help=f"how many errors of a disk are injected, at most {len(CASES)}",
    )
    parser.add_argument(
        "--latents", type=int, default=200, help="how often a latent cache is damaged"
    )
    parser.add_argument(
        "--starters", type=int, default=20, help="how often ten processes take a stale lock at once"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a process that has computed on several threads cannot be forked
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [media(folder, arguments.media), lists(folder, arguments.lists), crafted(folder)]
        expected = straight(folder)
        rows += [foreign(folder, folder / "straight", arguments.foreign)]
        rows += [
            kills(folder, arguments.kills, expected),
            kinds(folder, arguments.kinds),
            probes(folder, arguments.probes),
            signals(folder, arguments.signals, expected),
            two_runs(folder, arguments.two_runs, expected),
            ranks(folder, arguments.ranks),
            starters(folder, arguments.starters),
            manifest_bits(folder, arguments.manifests),
            latent_cache(folder, arguments.latents),
            disk_errors(folder, arguments.disk_errors),
        ]
        # Last: what counts operations on files cannot be removed again.
        rows += [full_disk(folder), damage(folder), all_damaged(folder), crashes(folder)]
    print(f"{machine()}; {time.perf_counter() - start:.0f} s\n")
    print(table(["promise", "tried", "held", "failed"], [row.cells() for row in rows]))


if __name__ == "__main__":
    main()
