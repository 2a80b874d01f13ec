import json

import pytest
import torch
from PIL import Image

SIZE, GAP = 32, 2
NUM_ROWS, COLUMNS = 3, 6
RED = {"no GAN": 100, "GAN": 200}


def key(*, second):
    return {f"{number:02d}": {"left": "no GAN", "right": "demo"} for number in range(1, 11)} | {"02": second}


def test_answers_are_counted_for_the_run_that_was_on_that_side(benchmark_module, tmp_path):
    (tmp_path / "key.json").write_text(json.dumps(key(second={"left": "demo", "right": "no GAN"})))
    answers = {f"{number:02d}": "left" for number in range(1, 11)} | {"01": "right", "10": "same"}
    (tmp_path / "answers.txt").write_text("\n".join(f"{number} {answer}" for number, answer in answers.items()))
    # Seven or more of nine on one side: twice (36 + 9 + 1) of 512.
    expected = "demo 2, no GAN 7, same 1; p = 0.180"
    assert benchmark_module("blind_pairs").score(tmp_path) == expected


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ("01 left", "must be an answer to each picture, but got none to 02"),
        ("01 left\n01 right", "must be one line for each of 01 to 10, but got '01 right'"),
        ("11 left", "must be one line for each of 01 to 10, but got '11 left'"),
        ("01 left or right", "`answer 01` must be one of"),
    ],
)
def test_each_pair_needs_one_answer(benchmark_module, tmp_path, answers, error):
    (tmp_path / "key.json").write_text(json.dumps(key(second={"left": "demo", "right": "no GAN"})))
    (tmp_path / "answers.txt").write_text(answers)
    with pytest.raises(ValueError, match=error):
        benchmark_module("blind_pairs").score(tmp_path)


@pytest.fixture
def runs(benchmark_module, tmp_path):
    """Return two finished runs, whose grids have a colour for each cell, and the grid of the inputs, which is black."""
    gan, outcomes = benchmark_module("gan"), benchmark_module("outcome_runs")
    settings = {"clips": {"height": SIZE, "width": SIZE}, "objective": {"adversarial_loss_weight": 0.0}}
    (tmp_path / "grid.yaml").write_text(json.dumps({"no GAN": settings, "GAN": settings}))
    runs = gan.Runs(tmp_path / "grid.yaml", tmp_path / "runs")
    shape = (NUM_ROWS * (SIZE + GAP) + GAP, COLUMNS * (SIZE + GAP) + GAP, 3)
    for name, red in RED.items():
        grid = torch.zeros(shape, dtype=torch.uint8)
        for place in range(NUM_ROWS * COLUMNS):
            y, x = (GAP + each * (SIZE + GAP) for each in divmod(place, COLUMNS))
            grid[y : y + SIZE, x : x + SIZE] = torch.tensor([red, place, 0])
        settings = outcomes.plain_values(runs.config(name, 7))
        runs.folder.save(name, 7, outcomes.Outcome(settings, {"psnr": 20.0}, []), grid)
    return runs, Image.new("RGB", shape[1::-1])


def test_pairs_show_the_same_clip_and_the_key_says_which_run_is_where(benchmark_module, runs, tmp_path):
    pairs, (runs, inputs) = benchmark_module("blind_pairs"), runs
    pairs.draw(runs, [*RED], [7], 6, inputs, 4, tmp_path / "pairs")
    found = json.loads((tmp_path / "pairs" / "key.json").read_text())
    assert {side["left"] for side in found.values()} == {*RED}, "either run is on the left in some"
    shown = set()
    for number, sides in found.items():
        with Image.open(tmp_path / "pairs" / f"{number}.png") as picture:
            third = picture.width // 3
            panels = [picture.crop((index * third, 0, (index + 1) * third, picture.height)) for index in range(3)]
            colours = [panel.getpixel((third // 2, third // 2)) for panel in panels]
        (left, place, _), middle, (right, other, _) = colours
        assert (left, middle, right) == (RED[sides["left"]], (0, 0, 0), RED[sides["right"]])
        assert place == other
        shown.add(place)
    assert len(shown) == 6
    assert min(shown) >= 4, "held-out clips come first, and are not shown"


def test_pairs_need_finished_runs_and_enough_clips(benchmark_module, runs, tmp_path):
    pairs, (runs, inputs) = benchmark_module("blind_pairs"), runs
    with pytest.raises(ValueError, match="`--runs` must be a folder with both runs"):
        pairs.draw(runs, [*RED], [8], 6, inputs, 4, tmp_path / "pairs")
    with pytest.raises(ValueError, match="`--count` must be at most 14"):
        pairs.draw(runs, [*RED], [7], 15, inputs, 4, tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()
