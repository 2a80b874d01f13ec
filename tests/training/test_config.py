import inspect
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

import telecine
from telecine.cli import COMMANDS, RECIPES, root_parser, run
from telecine.data import ClipConfig
from telecine.discriminators.first_frame import PAD_MODES
from telecine.discriminators.patch import NORMS
from telecine.discriminators.video import TIME_WEIGHTINGS
from telecine.losses import GAN_LOSSES, GRAD_PENALTIES, RECONSTRUCTION_LOSSES
from telecine.objective import VideoAutoencoderLoss
from telecine.objective.balance import Anchor, Reference
from telecine.objective.schedule import Ramp
from telecine.perceptual.backbones import BACKBONES
from telecine.training import DiscriminatorConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from telecine.training.checkpoint import as_yaml
from telecine.training.config import Weight

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
            "discriminator": DiscriminatorConfig(video="none", image="patch", num_scales=1),
        },
        "`discriminator.num_scales` must be 0 without video",
    ),
    (
        {"objective": ObjectiveConfig(disc_start=10, disc_train_start=11)},
        r"`objective.disc_train_start` must be at most `objective.disc_start` \(10\)",
    ),
    ({"clips": ClipConfig(height=16)}, "`clips` must be at least 31 pixels high and wide, which LPIPS needs"),
    ({"discriminator": DiscriminatorConfig(num_scales=-1)}, "`discriminator.num_scales` must be at least 0"),
    (
        {
            "objective": ObjectiveConfig(adversarial_loss_weight=Ramp(0.0, start=9, initial=0.5)),
            "discriminator": DiscriminatorConfig(video="none"),
        },
        r"`objective.adversarial_loss_weight` must be 0 without a discriminator, but got Ramp\(",
    ),
    (
        {"objective": ObjectiveConfig(multiscale_adversarial_loss_weight=Ramp(0.1, start=9))},
        "must be above 0 exactly where `discriminator.num_scales`",
    ),
    (
        {"objective": ObjectiveConfig(adversarial_loss_weight=0.0, feature_matching_loss_weight=1.0)},
        "`objective.feature_matching_loss_weight` must be 0 without an adversarial term, but got 1.0",
    ),
    (
        {"objective": ObjectiveConfig(adversarial_loss_weight=0.0, lecam_loss_weight=Ramp(1.0, steps=3))},
        "`objective.lecam_loss_weight` must be 0 without an adversarial term",
    ),
    (
        {"objective": ObjectiveConfig(gram_loss_weight=-1.0)},
        "`objective.gram_loss_weight` must be a finite number >= 0",
    ),
    (
        {"objective": ObjectiveConfig(quantizer_aux_loss_weight=float("inf"))},
        "`objective.quantizer_aux_loss_weight` must be a finite number >= 0",
    ),
    ({"discriminator": DiscriminatorConfig(num_layers=0)}, "`discriminator.num_layers` must be at least 1"),
    (
        {"discriminator": DiscriminatorConfig(video="patch", num_layers=6), "clips": ClipConfig(height=48)},
        "`discriminator.num_layers` must be at most 5, which halve 48 pixels to one, but got 6",
    ),
    (
        {
            "objective": ObjectiveConfig(multiscale_adversarial_loss_weight=0.1),
            "discriminator": DiscriminatorConfig(video="patch", num_scales=2, num_layers=4),
            "clips": ClipConfig(width=48),
        },
        "`discriminator.num_layers` must be at most 3, which halve 12 pixels to one, but got 4",
    ),
    (
        {"discriminator": DiscriminatorConfig(image="patch", num_layers=6), "clips": ClipConfig(width=48)},
        "`discriminator.num_layers` must be at most 5",
    ),
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


def test_patches_may_be_as_small_as_a_pixel_each():
    config = replace(
        TrainConfig(),
        discriminator=DiscriminatorConfig(video="patch", image="patch", num_layers=4, num_scales=1),
        objective=ObjectiveConfig(multiscale_adversarial_loss_weight=0.1),
        clips=ClipConfig(height=31, width=64),  # 31 pixels at half the size are 16
    )
    assert config.discriminator.num_layers == 4


# Arguments of the loss that are objects, or are built from other settings.
NO_SETTINGS = {
    "vgg_weights",
    "discr_kwargs",
    "discr_3d_kwargs",
    "multiscale_discr_kwargs",
    "aux_loss_weights",  # the one auxiliary loss of the autoencoder has `quantizer_aux_loss_weight`
    "generator",
    "reduce",
}
# Defaults for training from scratch, which are not those of the loss.
PRESETS = {
    "disc_start",
    "disc_train_start",
    "adversarial_loss_weight",
    "grad_penalty_loss_weight",
    "grad_penalty_every",
    "quantizer_aux_loss_weight",
}


def test_every_argument_of_the_loss_is_a_setting():
    arguments = inspect.signature(VideoAutoencoderLoss).parameters
    settings = {item.name: item.default for item in fields(ObjectiveConfig)}
    assert set(arguments) == set(settings) | NO_SETTINGS
    assert not set(settings) & NO_SETTINGS
    assert {name for name, default in settings.items() if default != arguments[name].default} == PRESETS


CHOICES = {
    (ObjectiveConfig, "recon_loss"): RECONSTRUCTION_LOSSES,
    (ObjectiveConfig, "nll_reduction"): ("mean", "sum"),
    (ObjectiveConfig, "perceptual_net"): BACKBONES,
    (ObjectiveConfig, "gan_loss"): GAN_LOSSES,
    (ObjectiveConfig, "adaptive_weight_reference"): get_args(Reference),
    (ObjectiveConfig, "adaptive_weight_at"): get_args(Anchor),
    (ObjectiveConfig, "grad_penalty"): GRAD_PENALTIES,
    (DiscriminatorConfig, "time_weighting"): TIME_WEIGHTINGS,
    (DiscriminatorConfig, "pad_mode"): PAD_MODES,
    (DiscriminatorConfig, "norm"): NORMS,
}


@pytest.mark.parametrize(("options", "name"), CHOICES)
def test_choices_are_all_that_the_library_knows(options, name):
    assert sorted(get_args(get_type_hints(options)[name])) == sorted(CHOICES[options, name])


def test_no_choice_of_the_objective_is_left_out():
    literals = {name for name, kind in get_type_hints(ObjectiveConfig).items() if get_origin(kind) is Literal}
    assert literals == {name for options, name in CHOICES if options is ObjectiveConfig}


def test_every_weight_may_be_a_ramp():
    hints = get_type_hints(ObjectiveConfig)
    weights = {name for name, kind in hints.items() if kind == Weight}
    assert weights == {name for name in hints if name.endswith("_weight")} == set(ObjectiveConfig().ramps())
    assert len(weights) == 10


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


def test_ramps_and_choices_are_read_back_as_they_were(tmp_path, everything):
    config = replace(TrainConfig(), data="x", **everything)
    defaults = asdict(TrainConfig())["objective"]
    unchanged = {name for name, value in asdict(config)["objective"].items() if value == defaults[name]}
    how = {"eager_gradients", "gradient_checkpointing"}
    assert unchanged == {"nll_reduction", "adaptive_weight_min_norm", "adaptive_weight_max"} | how
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    again = parse_config(tmp_path / "config.yaml")
    assert again == config
    assert as_yaml(again) == as_yaml(config)


def test_a_file_may_give_part_of_a_ramp(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("objective:\n  perceptual_weight: {weight: 1, start: 1000, steps: 500}\n  gram_loss_weight: 2\n")
    objective = parse_config(path).objective
    assert objective.perceptual_weight == Ramp(1.0, start=1000, steps=500)
    assert objective.gram_loss_weight == 2.0
    assert isinstance(objective.gram_loss_weight, float)


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


def test_paths_may_begin_with_the_users_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/users/me")
    names = ("data", "val_data", "model", "output_dir")
    config = TrainConfig(**{name: f"~/{name}" for name in names})
    assert [getattr(config, name) for name in names] == [f"/users/me/{name}" for name in names]
    assert TrainConfig(data="a/~/b").data == "a/~/b"
