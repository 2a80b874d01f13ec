"""The settings: groups as classes or dicts, and an error that names each invalid value."""

import inspect
from dataclasses import FrozenInstanceError, fields

import pytest
from telecine.objective.config import as_config

from telecine import Ramp, VideoAutoencoderLoss
from telecine.losses import Penalty, r1
from telecine.perceptual import gram
from telecine.settings import (
    AdaptiveWeightConfig,
    GANConfig,
    ObjectiveConfig,
    PenaltyConfig,
    PerceptualConfig,
    ReconstructionConfig,
    Term,
)

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
                "logvar_init": (0, 0.0),
            },
        ),
        (
            "perceptual",
            {"net": ("alex", function), "num_frames": (3, "all"), "stride": (2,), "chunk_size": (None, 4)},
        ),
        (
            "gan",
            {
                "loss": ("relativistic", function),
                "disc_train_start": (1000, 1e3),
                "window": (None, 17),
                "augment": ((), ("color", "translation", "cutout")),
                "feature_matching_loss_weight": (4, Ramp(4.0, start=3), {"weight": 4.0}),
                "lecam_loss_weight": (0.1, Ramp(0.1), {"weight": 0.1, "steps": 3}),
                "lecam_decay": (0, 0.5),
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
                "decay": (0, 0.99),
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
            assert getattr(ObjectiveConfig(**{group: {name: value}}), group) == config


@pytest.mark.parametrize(
    ("group", "name", "bad", "contract"),
    [
        ("reconstruction", "loss", ("mes", 3, None), r"one of 'mse', 'l1', 'charbonnier', or a function"),
        ("reconstruction", "nll_reduction", ("sums", None), "one of 'mean', 'sum'"),
        ("reconstruction", "logvar_init", (float("nan"), "0"), "a finite number"),
        ("reconstruction", "logvar_init", (-1.0,), "0 without `learn_logvar`"),
        ("perceptual", "net", ("vggg",), "one of 'vgg', 'alex'"),
        ("perceptual", "net", (3, None), '"vgg", "alex" or a callable'),
        ("perceptual", "num_frames", (0, -3, 1.5, "one", True), "a positive int"),
        ("perceptual", "stride", (0, None), "a positive int"),
        ("perceptual", "chunk_size", (0, 1.5), "a positive int"),
        ("gan", "loss", ("hing", 3), "one of 'hinge', 'vanilla', 'least_squares', 'relativistic', or a function"),
        ("gan", "disc_train_start", (-1, 0.5), "a whole number of steps >= 0"),
        ("gan", "window", (0, 1.5), "a positive int"),
        ("gan", "augment", (["colour"], [3]), "one of 'color', 'translation', 'cutout'"),
        ("gan", "augment", ("color", None), "a list of names"),
        ("gan", "feature_matching_loss_weight", (-1.0, "x"), "a finite number >= 0"),
        ("gan", "lecam_loss_weight", (-1.0, True), "a finite number >= 0"),
        ("gan", "lecam_decay", (-0.1, 1, "x"), "a number from 0 to below 1"),
        ("penalty", "kind", ("R1", 1), "one of 'one_centered', 'r1', .*, or a function"),
        ("penalty", "every", (0, 1.0), "a positive int"),
        ("adaptive_weight", "reference", ("lpips", None), "one of 'perceptual', 'recon_and_perceptual', 'none'"),
        ("adaptive_weight", "at", ("first_layer",), "one of 'last_layer', 'reconstruction'"),
        ("adaptive_weight", "min_norm", (0, -1.0), "a finite number above 0"),
        ("adaptive_weight", "max", (0, float("inf")), "a finite number above 0"),
        ("adaptive_weight", "decay", (1, -0.1), "a number from 0 to below 1"),
    ],
)
def test_bad_values_of_a_group(group, name, bad, contract):
    for value in bad:
        with pytest.raises(ValueError, match=rf"^`{group}\.{name}` must be {contract}.*, but got"):
            GROUPS[group](**{name: value})


@pytest.mark.parametrize("cls", [*GROUPS.values(), ObjectiveConfig])
def test_settings_cannot_be_changed(cls):
    config = cls()
    for item in fields(cls):
        with pytest.raises(FrozenInstanceError):
            setattr(config, item.name, None)


def test_values_are_checked_even_if_their_term_is_off():
    with pytest.raises(
        ValueError, match=r'`perceptual.num_frames` must be .*but got -3 \(int\). Use "all" for every frame'
    ):
        VideoAutoencoderLoss(0, perceptual_weight=0, perceptual={"num_frames": -3})


def test_a_learned_variance_may_start_anywhere():
    assert ReconstructionConfig(learn_logvar=True, logvar_init=-1.0).logvar_init == -1


@pytest.mark.parametrize("group", GROUPS)
def test_unknown_fields(group):
    name = {"perceptual": "num_frame", "penalty": "evry", "adaptive_weight": "decays"}.get(group, "los")
    nearest = {"perceptual": "num_frames", "penalty": "every", "adaptive_weight": "decay"}.get(group, "loss")
    message = (
        rf"`{group}.{name}` must be a field of {GROUPS[group].__name__}, but got 3 \(int\). Did you mean `{nearest}`"
    )
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**{group: {name: 3}})


def test_a_group_of_another_type():
    message = (
        r"`gan` must be a GANConfig or a dict of its fields, but got 'hinge' \(str\). Its fields are: loss, disc_tr"
    )
    for value in ("hinge", PenaltyConfig()):
        with pytest.raises(ValueError, match=message.replace(r"'hinge' \(str\)", ".*")):
            ObjectiveConfig(gan=value)
    with pytest.raises(ValueError, match=message):
        as_config(GANConfig, "gan", "hinge")


WEIGHTS = [item.name for item in fields(ObjectiveConfig) if item.name.endswith("loss_weight")]


@pytest.mark.parametrize("name", ["perceptual_weight", *WEIGHTS])
@pytest.mark.parametrize("value", [-1.0, True, "1", float("nan"), {"weight": 1, "stop": 3}])
def test_bad_weights(name, value):
    with pytest.raises(ValueError, match=rf"`{name}(\.stop)?` must be a (finite number >= 0|field of a ramp), but got"):
        ObjectiveConfig(**{name: value})


def test_bad_steps():
    with pytest.raises(ValueError, match="`disc_start` must be a whole number of steps >= 0, but got -1"):
        ObjectiveConfig(disc_start=-1)


def test_terms_are_converted():
    config = ObjectiveConfig(terms={"gram": 2, "mine": {"target": "telecine.perceptual.gram"}})
    assert config.terms == {"gram": Term("gram", weight=2), "mine": Term("telecine.perceptual.gram")}
    assert config.terms["mine"].function is gram
    assert ObjectiveConfig(terms=None).terms == {}


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
        disc_start=3, perceptual_weight=0, gan=GANConfig(lecam_decay=0.5), terms={"wavelet": 0.1}
    )
    assert VideoAutoencoderLoss(**settings.arguments()).config == settings
