from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import telecine
from telecine.cli import COMMANDS, RECIPES, root_parser, run
from telecine.data import ClipConfig
from telecine.training import DiscriminatorConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from telecine.training.trainer import as_yaml

WRONG = [
    ({"steps": 0}, "`steps` must be at least 1"),
    ({"batch_size": -1}, "`batch_size` must be at least 1"),
    ({"keep": 0}, "`keep` must be at least 1"),
    ({"optimizer": OptimizerConfig(lr=0.0)}, "`optimizer.lr` must be above 0"),
    ({"optimizer": OptimizerConfig(warmup_steps=-1)}, "`optimizer.warmup_steps` must be at least 0"),
    ({"optimizer": OptimizerConfig(ema_decay=1.0)}, "`optimizer.ema_decay` must be from 0 to below 1"),
    ({"discriminator": DiscriminatorConfig(video="none")}, "`objective.adversarial_loss_weight` must be 0 without"),
    ({"discriminator": DiscriminatorConfig(num_scales=1)}, "must be above 0 exactly where `discriminator.num_scales`"),
    (
        {"objective": ObjectiveConfig(multiscale_adversarial_loss_weight=0.1)},
        "must be above 0 exactly where `discriminator.num_scales`",
    ),
    (
        {
            "objective": ObjectiveConfig(multiscale_adversarial_loss_weight=0.1),
            "discriminator": DiscriminatorConfig(video="none", image=True, num_scales=1),
        },
        "`discriminator.num_scales` must be 0 without video",
    ),
    (
        {"objective": ObjectiveConfig(disc_start=10, disc_train_start=11)},
        r"`objective.disc_train_start` must be at most `objective.disc_start` \(10\)",
    ),
    ({"clips": ClipConfig(height=16)}, "`clips.height` must be at least 31, which LPIPS needs"),
    ({"discriminator": DiscriminatorConfig(num_scales=-1)}, "`discriminator.num_scales` must be at least 0"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TrainConfig(), **changes)


def test_no_discriminator_is_fine_without_its_weight():
    config = replace(
        TrainConfig(),
        discriminator=DiscriminatorConfig(video="none"),
        objective=ObjectiveConfig(adversarial_loss_weight=0.0),
    )
    assert config.objective.adversarial_loss_weight == 0


def parse_config(path):
    """Return the settings that the command line builds from a file."""
    seen = []
    command = COMMANDS["train"]
    parser = command.parser()
    settings = root_parser({"train": parser}).parse_args(["train", "--config", str(path)])
    run(replace(command, run=lambda _, config: seen.append(config)), parser, settings["train"])
    return seen[0]


def test_what_a_run_writes_is_what_the_command_line_reads(tmp_path):
    config = replace(TrainConfig(), data="x", steps=7, objective=ObjectiveConfig(perceptual_frames="all"))
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    assert parse_config(tmp_path / "config.yaml") == config


def test_every_recipe_is_a_valid_configuration():
    recipes = sorted(RECIPES.glob("*.yaml"))
    assert [path.stem for path in recipes] == ["demo"]
    assert RECIPES.is_relative_to(Path(telecine.__file__).parent), "recipes must ship with the package"
    for path in recipes:
        config = parse_config(path)
        given = yaml.safe_load(path.read_text())
        assert config.steps == given["steps"]


def test_the_demo_judges_in_its_second_half():
    config = parse_config(RECIPES / "demo.yaml")
    assert config.data is None
    assert 0 < config.objective.disc_start <= config.steps / 2
