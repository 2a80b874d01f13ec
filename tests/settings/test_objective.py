"""The settings: groups as classes or dicts, and an error that names each invalid value."""

import inspect
from dataclasses import FrozenInstanceError, fields, replace

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
    ("group", "values"),
    [
        (
            "reconstruction",
            {
                "loss": ("l1", function),
                "nll_reduction": ("sum",),
                "learn_logvar": (True,),
            },
        ),
        (
            "perceptual",
            {"net": ("alex", function), "num_frames": (3, "all"), "chunk_size": (None, 4)},
        ),
        (
            "gan",
            {
                "loss": ("relativistic", function),
                "disc_train_start": (1000, 1e3),
                "window": (None, 17),
                "augment": ((), ("color", "translation", "cutout")),
                "feature_matching_loss_weight": (4, Ramp(4.0, start=3)),
                "lecam_loss_weight": (0.1, Ramp(0.1)),
            },
        ),
        ("penalty", {"kind": ("r1", function, Penalty(r1)), "every": (16,)}),
        (
            "adaptive_weight",
            {
                "reference": ("recon_and_perceptual", "none"),
                "at": ("reconstruction",),
                "min_norm": (1e-8,),
                "max": (1, 1e4),
            },
        ),
    ],
)
def test_a_group_is_a_class_or_a_dict(group, values):
    cls = GROUPS[group]
    assert set(values) == {item.name for item in fields(cls)}
    for name, choices in values.items():
        for value in choices:
            config = cls(**{name: value})
            assert getattr(config, name) == value
            assert getattr(ObjectiveConfig(**{group: config}), group) is config
            assert getattr(validate(ObjectiveConfig, {group: {name: value}}), group) == config


@pytest.mark.parametrize(
    ("group", "name", "value", "message"),
    [
        (
            "reconstruction",
            "loss",
            "mes",
            "'mse', 'l1' or 'charbonnier' or the dotted path of a function",
        ),
        (
            "reconstruction",
            "loss",
            3,
            "'mse', 'l1' or 'charbonnier' or a text or the dotted path of a function",
        ),
        ("reconstruction", "nll_reduction", None, "'mean' or 'sum'"),
        ("perceptual", "net", "vggg", "'vgg' or 'alex' or the dotted path of a function"),
        ("perceptual", "num_frames", 0, "at least 1 or 'all'"),
        ("perceptual", "num_frames", True, "a number or 'all'"),
        ("perceptual", "num_frames", 1.5, "a whole number or 'all'"),
        ("perceptual", "chunk_size", 0, "at least 1"),
        (
            "gan",
            "loss",
            "hing",
            "'hinge', 'vanilla', 'least_squares' or 'relativistic' or the dotted path",
        ),
        ("gan", "disc_train_start", -1, "at least 0"),
        ("gan", "disc_train_start", 0.5, "a whole number"),
        ("gan", "window", 0, "at least 1"),
        ("gan", "augment", "color", "a list"),
        ("gan", "feature_matching_loss_weight", -1.0, "at least 0"),
        ("gan", "lecam_loss_weight", "x", "a number"),
        ("penalty", "kind", "R1", "'one_centered', 'r1', .* or the dotted path"),
        ("penalty", "every", 0, "at least 1"),
        ("adaptive_weight", "reference", "lpips", "'perceptual', 'recon_and_perceptual' or 'none'"),
        ("adaptive_weight", "at", "first_layer", "'last_layer' or 'reconstruction'"),
        ("adaptive_weight", "min_norm", 0, "above 0"),
        ("adaptive_weight", "max", float("inf"), "a finite number"),
    ],
)
def test_bad_values_of_a_group(group, name, value, message):
    with pytest.raises(ValueError, match=rf"^`{name}` must be {message}.*, but got"):
        GROUPS[group](**{name: value})
    with pytest.raises(ValueError, match=rf"^`{group}.{name}` must be {message}.*, but got"):
        VideoAutoencoderLoss(0, perceptual_weight=0, **{group: {name: value}})


def test_a_bad_value_in_a_list():
    with pytest.raises(
        ValueError,
        match=r"^`augment.0` must be 'color', 'translation' or 'cutout', but got 'colour'",
    ):
        GANConfig(augment=["colour"])


@pytest.mark.parametrize("cls", [*GROUPS.values(), ObjectiveConfig])
def test_settings_cannot_be_changed(cls):
    config = cls()
    for item in fields(cls):
        with pytest.raises(FrozenInstanceError):
            setattr(config, item.name, None)


@pytest.mark.parametrize("group", GROUPS)
def test_unknown_fields(group):
    name = {"perceptual": "num_frame", "penalty": "evry", "adaptive_weight": "maxi"}.get(
        group, "los"
    )
    nearest = {"perceptual": "num_frames", "penalty": "every", "adaptive_weight": "max"}.get(
        group, "loss"
    )
    message = rf"`{group}.{name}` is not a setting. Did you mean `{group}.{nearest}`"
    with pytest.raises(ValueError, match=message):
        VideoAutoencoderLoss(0, perceptual_weight=0, **{group: {name: 3}})


@pytest.mark.parametrize("value", ["hinge", PenaltyConfig()])
def test_a_group_of_another_type(value):
    with pytest.raises(ValueError, match=r"^`gan` must be a group of settings, but got "):
        VideoAutoencoderLoss(0, perceptual_weight=0, gan=value)
    with pytest.raises(ValueError, match=r"^`gan` must be a group of settings, but got "):
        ObjectiveConfig(gan=value)


WEIGHTS = [item.name for item in fields(ObjectiveConfig) if item.name.endswith("loss_weight")]


@pytest.mark.parametrize("name", ["perceptual_weight", *WEIGHTS])
@pytest.mark.parametrize(
    ("value", "contract"),
    [
        (-1.0, "at least 0"),
        (True, "a number"),
        ("x", "a number"),
        (float("nan"), "a finite number"),
    ],
)
def test_bad_weights(name, value, contract):
    with pytest.raises(ValueError, match=rf"^`{name}` must be {contract}, but got"):
        ObjectiveConfig(**{name: value})


def test_a_ramp_has_a_weight():
    with pytest.raises(ValueError, match=r"^`weight` must be set\.$"):
        Ramp()
    with pytest.raises(ValueError, match=r"^`weight` must be at least 0, but got -1"):
        Ramp(-1)
    with pytest.raises(ValueError, match=r"^`steps` must be a whole number, but got 1.5"):
        replace(Ramp(1.0), steps=1.5)


def test_bad_steps():
    with pytest.raises(ValueError, match="`disc_start` must be at least 0, but got -1"):
        ObjectiveConfig(disc_start=-1)


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
