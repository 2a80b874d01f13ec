from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from telecine.data import sample_videos
from telecine.settings.recipes import recipes as all_recipes
from telecine.training import read_config


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_objectives_at_equal_updates_and_equal_time(run_here, tables_in, tmp_path):
    unseen, runs = tmp_path / "videos" / "unseen", tmp_path / "runs"
    unseen.mkdir(parents=True)
    (unseen / "face.mp4").symlink_to(sample_videos()[0])
    names = ("linear start", "no GAN", "VidTok")
    budgets = ("--updates", "3", "--seconds", "0.001")
    command = (
        "objectives.py",
        "--smoke",
        "--videos",
        str(unseen.parent),
        "--runs",
        str(runs),
        *budgets,
        "--only",
        *names,
    )
    tables = tables_in(run_here(*command, "--picture", str(tmp_path / "objectives.png")))
    assert len(tables) == 2 * 3
    for _, rows in tables:
        assert [row[0] for row in rows] == [*names]
    updates = [[row[-2] for row in rows] for header, rows in tables if header[-2] == "updates"]
    assert updates == [["0", "3", "3"]] * 2 + [["0", "1", "1"]] * 2, "a millisecond is less than an update"
    assert tables[0][1][1][2:9] != tables[3][1][1][2:9], "a run for each budget"
    with Image.open(tmp_path / "objectives.png") as drawn:
        assert drawn.height == 4 * 98, "the inputs and three runs"
    assert tables_in(run_here(*command, "--print")) == tables
    with pytest.raises(ValueError, match="`--runs` must be a folder of runs with these settings"):
        run_here(*command, "--seconds", "2")


def test_starts_are_the_same_part_of_the_updates(benchmark_module):
    objectives = benchmark_module("objectives")
    vidtok, cosmos, ours = (objectives.settings_of(name, 0, 300, {}).objective for name in ("VidTok", "Cosmos", "demo"))
    assert (vidtok.disc_start, vidtok.gan.disc_train_start) == (30, 30), "10 000 of 100 000"
    assert (cosmos.perceptual_weight.start, cosmos.terms["gram"].weight.start) == (250, 250), "500 000 of 600 000"
    assert (ours.disc_start, ours.gan.disc_train_start) == (200, 180), "1600 and 1440 of 2400"


def test_rows_have_the_recipe_and_the_optimizers_of_the_demo(benchmark_module):
    objectives = benchmark_module("objectives")
    vidtok, cogvideo, sharp, demo = (
        objectives.settings_of(name, 5, 240, {}) for name in ("VidTok", "CogVideo, 16 channels", "sharp", "demo")
    )
    assert (vidtok.objective.reconstruction.loss, vidtok.objective.perceptual.net) == ("l1", "vgg")
    assert (cogvideo.discriminator.dim, cogvideo.objective.penalty.every) == (16, 1)
    assert (sharp.objective.gan.loss, sharp.objective.perceptual.net) == ("relativistic", "alex")
    for config in (vidtok, cogvideo, sharp):
        assert (config.optimizer, config.causal_vae, config.seed) == (demo.optimizer, demo.causal_vae, 5)


def test_longer_runs_have_the_settings_of_the_recipes(benchmark_module):
    gan = benchmark_module("gan")
    short, long = (gan.Runs(Path(gan.__file__).with_name(name), Path()) for name in ("gan.yaml", "gan_long.yaml"))
    for name in short.settings:
        objective = long.config(name, 0).objective
        starts = replace(objective, disc_start=1600, gan=replace(objective.gan, disc_train_start=1440))
        assert replace(long.config(name, 0), steps=2400, objective=starts) == short.config(name, 0)


def test_the_recipe_for_gpus_has_the_settings_that_were_measured(benchmark_module):
    gan = benchmark_module("gan")
    measured = gan.Runs(Path(gan.__file__).with_name("gan_gpu.yaml"), Path()).config("gpu", 0)
    recipe = read_config("gpu")
    objective = recipe.objective
    starts = replace(objective, disc_start=1600, gan=replace(objective.gan, disc_train_start=1440))
    assert (measured.objective, measured.discriminator) == (starts, recipe.discriminator)
    assert measured.optimizer.grad_clip == recipe.optimizer.grad_clip


def test_all_recipes_of_objectives_have_a_row(benchmark_module):
    recipes = {recipe for recipe, _ in benchmark_module("objectives").RECIPES.values()}
    assert recipes == {"demo", *(name for name in all_recipes() if name.endswith("_objective"))}
