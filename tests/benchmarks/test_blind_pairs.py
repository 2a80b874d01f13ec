import json

import pytest
from PIL import Image

SIZE, GAP = 32, 2


def key(*, second):
    return {f"{number:02d}": {"left": "no GAN", "right": "demo"} for number in range(1, 11)} | {"02": second}


def test_answers_are_counted_for_the_run_that_was_on_that_side(benchmark_module, tmp_path):
    (tmp_path / "key.json").write_text(json.dumps(key(second={"left": "demo", "right": "no GAN"})))
    answers = {f"{number:02d}": "left" for number in range(1, 11)} | {"01": "right", "10": "same"}
    (tmp_path / "answers.txt").write_text("\n".join(f"{number} {answer}" for number, answer in answers.items()))
    # Seven or more of nine on one side: twice (36 + 9 + 1) of 512.
    expected = "demo 2, no GAN 7, same 1; as uneven by chance: 0.180"
    assert benchmark_module("blind_pairs").score(tmp_path) == expected


def test_each_pair_needs_an_answer(benchmark_module, tmp_path):
    (tmp_path / "key.json").write_text(json.dumps(key(second={"left": "demo", "right": "no GAN"})))
    (tmp_path / "answers.txt").write_text("01 left\n")
    with pytest.raises(ValueError, match="`answer 02` must be one of"):
        benchmark_module("blind_pairs").score(tmp_path)


def test_pairs_show_the_same_clip_and_the_key_says_which_run_is_where(benchmark_module, tmp_path):
    pairs, gan = benchmark_module("blind_pairs"), benchmark_module("gan")
    settings = {"clips": {"height": SIZE, "width": SIZE}, "objective": {"adversarial_loss_weight": 0.0}}
    (tmp_path / "grid.yaml").write_text(json.dumps({"no GAN": settings, "GAN": settings}))
    runs = gan.Runs(tmp_path / "grid.yaml", tmp_path / "runs")
    colours = {"no GAN": 100, "GAN": 200}
    grid = (6 * (SIZE + GAP) + GAP, 3 * (SIZE + GAP) + GAP)
    (tmp_path / "runs").mkdir()
    for name in colours:
        Image.new("RGB", grid, (colours[name],) * 3).save(runs.folder.path(name, 7).with_suffix(".png"))
    arguments = (runs, ["no GAN", "GAN"], [7], 6, Image.new("RGB", grid))
    pairs.draw(*arguments, tmp_path / "pairs")
    found = json.loads((tmp_path / "pairs" / "key.json").read_text())
    assert {side["left"] for side in found.values()} == {*colours}, "either run is on the left in some"
    for number, sides in found.items():
        with Image.open(tmp_path / "pairs" / f"{number}.png") as picture:
            middle = picture.height // 2
            shown = [picture.getpixel((x, middle))[0] for x in (1, picture.width // 2, picture.width - 2)]
        assert shown == [colours[sides["left"]], 0, colours[sides["right"]]]
    with pytest.raises(ValueError, match="`--runs` must be a folder with both runs"):
        pairs.draw(runs, ["no GAN", "GAN"], [8], 6, Image.new("RGB", grid), tmp_path / "others")
