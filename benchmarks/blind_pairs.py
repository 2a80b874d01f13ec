"""Pairs of frames of two runs of gan.py, without names, for a person to choose from, and the score of the answers.

    python benchmarks/blind_pairs.py draw "no GAN" demo --videos runs/videos --runs runs/gan --folder runs/pairs
    python benchmarks/blind_pairs.py score --folder runs/pairs

Each picture has the middle frame of a clip of an unseen video between two reconstructions of it, by runs of the same
seed. Which of them is on the left is random, and written to `key.json`. The answers are lines of `answers.txt`: the
number of a picture, and "left", "right" or "same".
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from math import comb
from pathlib import Path

from gan import CLIPS_OF_A_VIDEO, GAP, Measure, Runs
from PIL import Image

from telecine.checks import argument_error, check_choice
from telecine.data.find import find_videos
from telecine.files import read_json, write_json

ENLARGEMENT = 6
# Of the grid of gan.py: twelve held-out clips come first.
HELD_OUT_ROWS = 2
SIDES = ("left", "right")
SAME = "same"


def draw(runs: Runs, names: Sequence[str], seeds: Sequence[int], count: int, inputs: Image.Image, folder: Path) -> None:
    """Write pictures of `count` pairs of clips of unseen videos, and their key.

    Args:
        runs: Finished runs.
        names: Two of them.
        seeds: Their seeds, of which each pair has one.
        count: Of pairs.
        inputs: The grid of the clips themselves, as those of the runs.
        folder: Is created.
    """
    size = runs.config(names[0], seeds[0]).clips.width
    num_rows = inputs.height // (size + GAP)
    cells = [(column, row) for row in range(HELD_OUT_ROWS, num_rows) for column in range(CLIPS_OF_A_VIDEO)]
    chooser = random.Random(" ".join(names))
    folder.mkdir(parents=True)
    key = {}
    for number, (column, row) in enumerate(chooser.sample(cells, count), 1):
        seed = chooser.choice(seeds)
        order = chooser.sample(names, 2)
        left, right = (frames(runs, name, seed) for name in order)
        x, y = (GAP + place * (size + GAP) for place in (column, row))
        box = (x, y, x + size, y + size)
        large = size * ENLARGEMENT
        whole = Image.new("RGB", (3 * large + 2 * GAP, large), "white")
        for place, picture in enumerate((left, inputs, right)):
            cell = picture.crop(box).resize((large, large), Image.Resampling.BICUBIC)
            whole.paste(cell, (place * (large + GAP), 0))
        whole.save(folder / f"{number:02d}.png")
        key[f"{number:02d}"] = dict(zip(SIDES, order, strict=True))
    write_json(folder / "key.json", key)


def frames(runs: Runs, name: str, seed: int) -> Image.Image:
    """Return the frames of a finished run.

    Raises:
        ValueError: If it is not finished.
    """
    found = runs.folder.load_frames(name, seed)
    if found is None:
        missing = runs.folder.path(name, seed).with_suffix(".png")
        raise argument_error("--runs", "a folder with both runs", f"no {missing}", "Train them with gan.py.")
    return found


def score(folder: Path) -> str:
    """Return how often each run was chosen, and how likely such a count is if it were chance.

    Raises:
        ValueError: If an answer is missing or is none of the three.
    """
    key: dict[str, dict[str, str]] = read_json(folder / "key.json")
    answers = dict(line.split() for line in (folder / "answers.txt").read_text().splitlines() if line.strip())
    chosen: Counter[str] = Counter()
    for number, names in key.items():
        answer = answers.get(number, "missing")
        check_choice(f"answer {number}", answer, [*SIDES, SAME])
        chosen[names.get(answer, SAME)] += 1
    counts = [chosen[name] for name in sorted(next(iter(key.values())).values())]
    decided, larger = sum(counts), max(counts)
    chance = min(1.0, 2 * sum(comb(decided, k) for k in range(larger, decided + 1)) / 2**decided)
    found = ", ".join(f"{name} {number}" for name, number in sorted(chosen.items()))
    return f"{found}; as uneven by chance: {chance:.3f}"


def main() -> None:
    """Draw pairs, or score the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw")
    drawing.add_argument("names", nargs=2, help="two runs")
    drawing.add_argument("--settings", type=Path, default=Path("benchmarks/gan.yaml"), help="YAML file of gan.py")
    drawing.add_argument("--videos", type=Path, required=True, help="the folder of benchmarks/videos.py")
    drawing.add_argument("--runs", type=Path, required=True, help="folder of finished runs of gan.py")
    drawing.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    drawing.add_argument("--count", type=int, default=20, help="number of pairs")
    for each in (drawing, commands.add_parser("score")):
        each.add_argument("--folder", type=Path, required=True, help="folder of pictures, key and answers")
    arguments = parser.parse_args()
    if arguments.command == "score":
        print(score(arguments.folder))
        return
    runs = Runs(arguments.settings, arguments.runs)
    for name in arguments.names:
        check_choice("a name", name, list(runs.settings))
    unseen = [Path(str(video)) for video in find_videos(arguments.videos / "unseen", name="--videos")]
    measure = Measure(runs.config(arguments.names[0], arguments.seeds[0]), unseen)
    inputs = measure.inputs()
    draw(runs, arguments.names, arguments.seeds, arguments.count, inputs, arguments.folder)


if __name__ == "__main__":
    main()
