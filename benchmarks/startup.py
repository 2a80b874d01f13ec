"""Processor time of starting the command line and of imports: a Markdown table.

    python benchmarks/startup.py

Each command runs in a process of its own, `--repeats` times; the table has the smallest user time.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

from measure import table

COMMANDS = {
    "`python -c pass`": ["-c", "pass"],
    "`telecine --version`": ["-m", "telecine", "--version"],
    "`telecine --help`": ["-m", "telecine", "--help"],
    "`telecine train --help`": ["-m", "telecine", "train", "--help"],
    "`telecine train --help=all`": ["-m", "telecine", "train", "--help=all"],
    "`import torch`": ["-c", "import torch"],
    "`import telecine`": ["-c", "import telecine"],
    "`from telecine import Discriminator`": ["-c", "from telecine import Discriminator"],
    "`from telecine import VideoAutoencoderLoss`": ["-c", "from telecine import VideoAutoencoderLoss"],
    "`from telecine import TrainConfig, train`": ["-c", "from telecine import TrainConfig, train"],
}


def user_seconds(words: list[str]) -> float:
    """Run Python with these arguments, and return the processor time that it took outside the kernel."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="parts of the commands to run")
    arguments = parser.parse_args()
    rows = []
    for title, words in COMMANDS.items():
        if not arguments.only or any(part in title for part in arguments.only):
            rows.append([title, f"{min(user_seconds(words) for _ in range(arguments.repeats)):.2f}"])
    print(table(["command", "processor seconds"], rows))


if __name__ == "__main__":
    main()
