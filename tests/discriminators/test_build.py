"""Discriminators built from a module, arguments, or a target, and the errors for mistakes."""

from collections import OrderedDict, UserDict
from collections.abc import Mapping
from types import MappingProxyType

import pytest
from torch import nn

from telecine.discriminators import (
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
    PatchDiscriminator3D,
)
from telecine.discriminators.build import build_discriminator

PARAMS = {"dim": 1, "image_size": 16, "frame_num": 4}
SEED_MODULE = "sgm.modules.autoencoding.losses.video_loss"


class LazyMapping(Mapping):
    """A read-only mapping that wraps nested dicts on access, as OmegaConf's does."""

    def __init__(self, content):
        self.content = content

    def __getitem__(self, key):
        value = self.content[key]
        return LazyMapping(value) if isinstance(value, dict) else value

    def __iter__(self):
        return iter(self.content)

    def __len__(self):
        return len(self.content)


class Custom(nn.Module):
    """A custom discriminator that accepts any argument."""

    def __init__(self, **anything):
        super().__init__()
        self.anything = anything


def build(spec, default=Discriminator3D, name="discr_3d_kwargs"):
    return build_discriminator(spec, default=default, name=name)


def test_a_module_is_returned_unchanged():
    module = nn.Conv3d(3, 1, 3)
    assert build(module) is module


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict, MappingProxyType, LazyMapping])
def test_any_mapping_of_arguments(kind):
    assert type(build(kind(PARAMS))) is Discriminator3D
    spec = {"target": f"{SEED_MODULE}.Discriminator3DWithfirstframe", "params": PARAMS}
    assert type(build(kind(spec))) is Discriminator3DWithfirstframe


@pytest.mark.parametrize(
    "module", [SEED_MODULE, f"sat.{SEED_MODULE}", "telecine.cogvideo", "telecine"]
)
@pytest.mark.parametrize("cls", [Discriminator, Discriminator3D, Discriminator3DWithfirstframe])
def test_targets_of_configurations_written_for_cogvideo(module, cls):
    params = {"dim": 1, "image_size": [16, 32]}
    if cls is not Discriminator:
        params["frame_num"] = 4
    assert type(build({"target": f"{module}.{cls.__name__}", "params": params})) is cls


def test_params_may_be_missing_or_empty():
    target = "telecine.PatchDiscriminator3D"
    for spec in ({"target": target}, {"target": target, "params": None}):
        assert isinstance(build(spec), PatchDiscriminator3D)


def test_a_class_with_var_keyword_receives_any_argument(monkeypatch):
    monkeypatch.setattr("telecine.base.imports.allowed_packages", {__name__})
    module = build({"target": f"{__name__}.Custom", "params": {"x": 1}})
    assert module.anything == {"x": 1}


@pytest.mark.parametrize("spec", [3, "Discriminator3D", [PARAMS], Discriminator3D])
def test_error_for_another_type(spec):
    with pytest.raises(
        TypeError, match=r"`discr_3d_kwargs` must be an nn.Module, a dict .*but got"
    ):
        build(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {**PARAMS, "image_sise": 16},
            r"`discr_3d_kwargs` must be arguments of Discriminator3D, but .*'image_sise'. Did you mean `image_size`\?",
        ),
        (
            {**PARAMS, "zzz": 16},
            r"arguments of Discriminator3D, but got 'zzz'. Use one of: dim, image_size",
        ),
        (
            {"dim": 1, "image_size": 16},
            r"must be all required arguments of Discriminator3D, but got the error: missing .*'frame_num'. Add",
        ),
        ({**PARAMS, 3: 4}, "arguments of Discriminator3D, but got 3. "),
        (
            {"target": "telecine.Discriminator3D", "param": PARAMS},
            r"only `target` and `params`, but got also \['param'\]. Move",
        ),
        (
            {"target": "telecine.Discriminator3D", "params": {**PARAMS, "frames": 4}},
            r"`discr_3d_kwargs.params` must be arguments .*, but got 'frames'. Did you mean `frame_num`\?",
        ),
        (
            {"target": "telecine.Discriminator3D", "params": [1, 2]},
            r"`discr_3d_kwargs.params` must be a dict of arguments, but got \[1, 2\].*Write",
        ),
        (
            {"target": f"{SEED_MODULE}.Discriminator4D"},
            r"`discr_3d_kwargs.target` must be importable, .*cogvideo has no .*4D`. Did you mean `Discriminator3D`\?",
        ),
        (
            {"target": "telecine.Nowhere"},
            r"`discr_3d_kwargs.target` must be importable, but got .*: telecine has no `N",
        ),
        (
            {"target": "telecine.no_such_module.D"},
            r"must be importable, but got .*No module named .*no_such_module'. Check",
        ),
        (
            {"target": "Discriminator3D"},
            r"must be importable, but got 'Discriminator3D'. Write its full path",
        ),
        (
            {"target": "telecine.mse"},
            r"`discr_3d_kwargs.target` must be a subclass of nn.Module, but got 'telecine.mse', which is",
        ),
        ({"target": "telecine.Ramp"}, r"must be a subclass of nn.Module, but got 'telecine.Ramp'"),
        (
            {"target": "math.sqrt"},
            r"must be in telecine or in a package that you allow, but got 'math.sqrt'. If you",
        ),
    ],
)
def test_mistakes(spec, message):
    with pytest.raises(ValueError, match=message):
        build(spec)


def test_errors_of_the_class_are_not_changed():
    with pytest.raises(ValueError, match="`image_size` must be at least 4, but got 2 x 2"):
        build({**PARAMS, "image_size": 2})


@pytest.mark.parametrize("cls", [Discriminator3D, Discriminator3DWithfirstframe])
def test_the_blur_over_time_of_older_configurations(cls):
    target = f"telecine.{cls.__name__}"
    spec = {"target": target, "params": {**PARAMS, "antialiased_time": False}}
    assert build(spec).state_dict().keys() == cls(**PARAMS).state_dict().keys()
    spec["params"]["antialiased_time"] = True
    message = "`antialiased_time` must be False, as the blur over time was removed, but got True"
    with pytest.raises(ValueError, match=message):
        build(spec)
