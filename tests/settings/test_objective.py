"""The settings: groups as classes or dicts, and an error that names each invalid value."""

import inspect
from dataclasses import fields, replace

import pytest

from telecine import Ramp, VideoAutoencoderLoss
from telecine.losses import Penalty, r1
from telecine.settings import (
    AdaptiveWeightConfig,
    GANConfig,
    ObjectiveConfig,
    PenaltyConfig,
    PerceptualConfig,
    ReconstructionConfig,
    Term,
)
from telecine.settings.errors import validate

GROUPS = {
    "reconstruction": ReconstructionConfig,
    "perceptual": PerceptualConfig,
    "gan": GANConfig,
    "penalty": PenaltyConfig,
    "adaptive_weight": AdaptiveWeightConfig,
}


def function(**_):
    return 0


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("reconstruction", "loss", function),
        ("perceptual", "num_frames", "all"),
        ("gan", "lecam_loss_weight", Ramp(0.1)),
        ("penalty", "kind", Penalty(r1)),
        ("adaptive_weight", "max", 1),
    ],
)
def test_a_group_is_a_class_or_a_dict(group, name, value):
    config = GROUPS[group](**{name: value})
    assert getattr(config, name) == value
    assert getattr(ObjectiveConfig(**{group: config}), group) is config
    assert getattr(validate(ObjectiveConfig, {group: {name: value}}), group) == config


@pytest.mark.parametrize(
    ("group", "name", "value", "message"),
    [
        ("reconstruction", "loss", "mes", "'mse', 'l1' or 'charbonnier' or the dotted path of a"),
        ("reconstruction", "loss", 3, "'mse', 'l1' or 'charbonnier' or a text or the dotted path"),
        ("reconstruction", "nll_reduction", None, "'mean' or 'sum'"),
        ("perceptual", "num_frames", 0, "at least 1 or 'all'"),
        ("perceptual", "num_frames", True, "a number or 'all'"),
        ("perceptual", "num_frames", 1.5, "a whole number or 'all'"),
        ("gan", "disc_train_start", 0.5, "a whole number"),
        ("gan", "augment", "color", "a list"),
        ("penalty", "kind", "R1", "'one_centered', 'r1', .* or the dotted path"),
        ("adaptive_weight", "max", float("inf"), "a finite number"),
    ],
)
def test_bad_values_of_a_group(group, name, value, message):
    with pytest.raises(ValueError, match=rf"^`{name}` must be {message}.*, but got"):
        GROUPS[group](**{name: value})
    with pytest.raises(ValueError, match=rf"^`{group}.{name}` must be {message}.*, but got"):
        VideoAutoencoderLoss(0, perceptual_weight=0, **{group: {name: value}})


@pytest.mark.parametrize(
    ("group", "name", "value", "message"),
    [
        ("perceptual", "chunk_size", 0, "at least 1"),
        ("gan", "disc_train_start", -1, "at least 0"),
        ("gan", "window", 0, "at least 1"),
        ("gan", "feature_matching_loss_weight", -1, "at least 0"),
        ("gan", "lecam_loss_weight", -1, "at least 0"),
        ("penalty", "every", 0, "at least 1"),
        ("adaptive_weight", "min_norm", 0, "above 0"),
        ("adaptive_weight", "max", 0, "above 0"),
    ],
)
def test_values_out_of_their_range(group, name, value, message):
    with pytest.raises(ValueError, match=rf"^`{group}\.{name}` must be {message}, but got {value}"):
        VideoAutoencoderLoss(0, perceptual_weight=0, **{group: {name: value}})


def test_a_bad_value_in_a_list():
    with pytest.raises(
        ValueError,
        match=r"^`augment.0` must be 'color', 'translation' or 'cutout', but got 'colour'",
    ):
        GANConfig(augment=["colour"])


@pytest.mark.parametrize("value", ["hinge", PenaltyConfig()])
def test_a_group_of_another_type(value):
    with pytest.raises(ValueError, match=r"^`gan` must be a group of settings, but got "):
        VideoAutoencoderLoss(0, perceptual_weight=0, gan=value)
    with pytest.raises(ValueError, match=r"^`gan` must be a group of settings, but got "):
        ObjectiveConfig(gan=value)


@pytest.mark.parametrize(
    ("value", "contract"),
    [
        (-1.0, "at least 0"),
        (True, "a number"),
        ("x", "a number"),
        (float("nan"), "a finite number"),
    ],
)
def test_bad_weights(value, contract):
    with pytest.raises(ValueError, match=rf"^`perceptual_weight` must be {contract}, but got"):
        ObjectiveConfig(perceptual_weight=value)


def test_a_ramp_has_a_weight():
    with pytest.raises(ValueError, match=r"^`weight` must be set\.$"):
        Ramp()
    with pytest.raises(ValueError, match=r"^`weight` must be at least 0, but got -1"):
        Ramp(-1)
    with pytest.raises(ValueError, match=r"^`steps` must be a whole number, but got 1.5"):
        replace(Ramp(1.0), steps=1.5)


def test_terms_have_a_target():
    config = ObjectiveConfig(
        terms={
            "gram": 2,
            "mine": Term("telecine.losses.perceptual.gram"),
            "wavelet": Ramp(1.0, steps=3),
        }
    )
    assert config.terms == {
        "gram": Term("gram", weight=2),
        "mine": Term("telecine.losses.perceptual.gram"),
        "wavelet": Term("wavelet", Ramp(1.0, steps=3)),
    }


@pytest.mark.parametrize("name", ["a b", "total", "lecam"])
def test_names_of_terms(name):
    with pytest.raises(
        ValueError, match="`terms` must be named by an identifier other than total, "
    ):
        ObjectiveConfig(terms={name: 1.0})


def test_the_loss_has_the_same_arguments_and_defaults():
    arguments = dict(inspect.signature(VideoAutoencoderLoss).parameters)
    networks = ("vgg_weights", "discr_kwargs", "discr_3d_kwargs", "multiscale_discr_kwargs")
    assert {arguments.pop(name).name for name in networks} == set(networks)
    assert len(arguments) + len(networks) <= 20
    settings = ObjectiveConfig()
    assert set(arguments) == {item.name for item in fields(ObjectiveConfig)}
    assert arguments.pop("disc_start").default is inspect.Parameter.empty
    assert settings.disc_start == 0
    assert arguments.pop("terms").default is None
    for name, argument in arguments.items():
        assert argument.default == getattr(settings, name), name
    settings = ObjectiveConfig(
        disc_start=3, perceptual_weight=0, gan=GANConfig(window=5), terms={"wavelet": 0.1}
    )
    assert VideoAutoencoderLoss(**settings.arguments()).config == settings
