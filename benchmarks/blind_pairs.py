"""Draw pairs of frames of two runs of gan.py without names, and score the answers of a viewer.

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
from collections.abc import Collection, Sequence
from math import comb
from pathlib import Path

from gan import CLIPS_OF_A_VIDEO, GAP, HELD_OUT, Runs, measure_for
from PIL import Image

from telecine.base.checks import argument_error, check_choice
from telecine.base.files import read_json, write_json

ENLARGEMENT = 6
SIDES = ("left", "right")
SAME = "same"


def draw(
    runs: Runs, names: Sequence[str], seeds: Sequence[int], count: int, inputs: Image.Image, first: int, folder: Path
) -> None:
    """Write pictures of pairs of clips of unseen videos, and their key.

    Args:
        runs: Finished runs.
        names: Two of them.
        seeds: Their seeds, of which each pair has one.
        count: Of pairs.
        inputs: The grid of the clips themselves, as those of the runs.
        first: The place of the first clip of an unseen video in the grid; those before it are held out.
        folder: Is created.

    Raises:
        ValueError: A run is not finished, or there are fewer clips than pairs.
    """
    grids = {(name, seed): finished(runs, name, seed) for name in names for seed in seeds}
    size = runs.config(names[0], seeds[0]).clips.width
    num_rows = inputs.height // (size + GAP)
    places = range(first, num_rows * CLIPS_OF_A_VIDEO)
    if count > len(places):
        raise argument_error("--count", f"at most {len(places)}, the number of clips", count, "Use fewer pairs.")
    chooser = random.Random(" ".join(names))
    folder.mkdir(parents=True)
    key = {}
    for number, place in enumerate(chooser.sample(places, count), 1):
        seed, order = chooser.choice(seeds), chooser.sample(names, 2)
        left, right = (grids[name, seed] for name in order)
        y, x = (GAP + each * (size + GAP) for each in divmod(place, CLIPS_OF_A_VIDEO))
        large = size * ENLARGEMENT
        whole = Image.new("RGB", (3 * large + 2 * GAP, large), "white")
        for column, grid in enumerate((left, inputs, right)):
            cell = grid.crop((x, y, x + size, y + size)).resize((large, large), Image.Resampling.BICUBIC)
            whole.paste(cell, (column * (large + GAP), 0))
        whole.save(folder / f"{number:02d}.png")
        key[f"{number:02d}"] = dict(zip(SIDES, order, strict=True))
    write_json(folder / "key.json", key)


def finished(runs: Runs, name: str, seed: int) -> Image.Image:
    """Return the frames of a finished run."""
    found = runs.folder.load_frames(name, seed) if runs.outcome(name, seed) else None
    if found is None:
        missing = runs.folder.path(name, seed).with_suffix(".png")
        raise argument_error("--runs", "a folder with both runs", f"no {missing}", "Train them with gan.py.")
    return found


def read_answers(folder: Path, numbers: Collection[str]) -> dict[str, str]:
    """Return the answer to each picture.

    Raises:
        ValueError: A line is no answer to a picture, or one of them has none or two.
    """
    answers: dict[str, str] = {}
    for line in (folder / "answers.txt").read_text().splitlines():
        number, _, answer = line.strip().partition(" ")
        if number not in numbers or number in answers:
            contract = f"one line for each of {min(numbers)} to {max(numbers)}"
            raise argument_error("answers.txt", contract, repr(line), "Write such lines as `01 left`.")
        check_choice(f"answer {number}", answer, [*SIDES, SAME])
        answers[number] = answer
    if len(answers) < len(numbers):
        missing = ", ".join(sorted(set(numbers) - set(answers)))
        raise argument_error("answers.txt", "an answer to each picture", f"none to {missing}", "Add them.")
    return answers


def score(folder: Path) -> str:
    """Return how often each run was chosen, and the two-sided p-value of that by a sign test."""
    key: dict[str, dict[str, str]] = read_json(folder / "key.json")
    answers = read_answers(folder, key)
    chosen = Counter(key[number].get(answer, SAME) for number, answer in answers.items())
    counts = [chosen[name] for name in next(iter(key.values())).values()]
    decided, larger = sum(counts), max(counts)
    p_value = min(1.0, 2 * sum(comb(decided, k) for k in range(larger, decided + 1)) / 2**decided)
    found = ", ".join(f"{name} {number}" for name, number in sorted(chosen.items()))
    return f"{found}; p = {p_value:.3f}"


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
    measure = measure_for(runs.config(arguments.names[0], arguments.seeds[0]), arguments.videos)
    first = len(measure.sets[HELD_OUT])
    draw(runs, arguments.names, arguments.seeds, arguments.count, measure.inputs(), first, arguments.folder)


if __name__ == "__main__":
    main()
