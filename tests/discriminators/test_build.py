"""Discriminators from a module, arguments, or a target, and what a mistake in any of them is told."""

from collections import OrderedDict, UserDict
from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch
from torch import nn

from telecine.discriminators import Discriminator, Discriminator3D, Discriminator3DWithfirstframe
from telecine.discriminators.build import CLASSES, build_discriminator, resolve_class, suggestion

PARAMS = {"dim": 1, "image_size": 16, "frame_num": 4}
SEED_MODULE = "sgm.modules.autoencoding.losses.video_loss"


class LazyMapping(Mapping):
    """A read-only mapping that wraps what it holds when asked, as OmegaConf's does."""

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
    """A discriminator of the user's own that takes anything."""

    def __init__(self, **anything):
        super().__init__()
        self.anything = anything


def build(spec, default=Discriminator3D, name="discr_3d_kwargs"):
    return build_discriminator(spec, default=default, name=name)


def test_a_module_is_returned_as_it_is():
    module = nn.Conv3d(3, 1, 3)
    assert build(module) is module


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict, MappingProxyType, LazyMapping])
def test_any_mapping_of_arguments(kind):
    assert type(build(kind(PARAMS))) is Discriminator3D
    spec = {"target": f"{SEED_MODULE}.Discriminator3DWithfirstframe", "params": PARAMS}
    assert type(build(kind(spec))) is Discriminator3DWithfirstframe


@pytest.mark.parametrize("prefix", ["", "sat."])
@pytest.mark.parametrize("cls", [Discriminator, Discriminator3D, Discriminator3DWithfirstframe])
def test_the_targets_of_configurations_written_for_cogvideo(prefix, cls):
    assert resolve_class(f"{prefix}{SEED_MODULE}.{cls.__name__}", "discr_kwargs") is cls
    assert resolve_class(f"telecine.cogvideo.{cls.__name__}", "discr_kwargs") is cls
    assert resolve_class(f"telecine.{cls.__name__}", "discr_kwargs") is cls
    assert CLASSES[cls.__name__] is cls


def test_lists_are_sizes_too():
    network = build({**PARAMS, "image_size": [16, 32]})
    assert network(torch.zeros(2, 3, 4, 16, 32)).logits.shape == (2,)


def test_params_may_be_left_out_or_empty():
    for spec in ({"target": "torch.nn.Identity"}, {"target": "torch.nn.Identity", "params": None}):
        assert isinstance(build(spec), nn.Identity)


def test_a_class_that_takes_anything_is_given_anything(monkeypatch):
    monkeypatch.setattr("telecine.cogvideo.Discriminator", Custom)
    module = build({"target": "telecine.cogvideo.Discriminator", "params": {"x": 1}})
    assert module.anything == {"x": 1}


@pytest.mark.parametrize("spec", [3, "Discriminator3D", [PARAMS], Discriminator3D])
def test_anything_else(spec):
    with pytest.raises(TypeError, match=r"`discr_3d_kwargs` must be an nn.Module, a dict .*but got"):
        build(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({**PARAMS, "image_sise": 16}, r"`discr_3d_kwargs` has no argument 'image_sise'.*Did you mean `image_size`\?"),
        ({**PARAMS, "zzz": 16}, r"has no argument 'zzz' for Discriminator3D. It takes: dim, image_size"),
        ({"dim": 1, "image_size": 16}, r"`discr_3d_kwargs` does not fit Discriminator3D: missing .*'frame_num'"),
        ({}, r"`discr_3d_kwargs` does not fit Discriminator3D: missing .*'dim'"),
        ({**PARAMS, 3: 4}, "has no argument 3 for Discriminator3D"),
        ({"target": "telecine.Discriminator3D", "param": PARAMS}, r"only `target` and `params`, but got \['param'\]"),
        (
            {"target": "telecine.Discriminator3D", "params": {**PARAMS, "frames": 4}},
            r"`discr_3d_kwargs.params` has no argument 'frames'.*Did you mean `frame_num`\?",
        ),
        (
            {"target": "telecine.Discriminator3D", "params": [1, 2]},
            r"`discr_3d_kwargs.params` must be a dict of arguments, but got \[1, 2\].*Write",
        ),
        (
            {"target": f"{SEED_MODULE}.Discriminator4D"},
            r"`discr_3d_kwargs.target` .* has no discriminator 'Discriminator4D'. Did you mean `Discriminator3D`\?",
        ),
        ({"target": "telecine.Nowhere"}, r"`discr_3d_kwargs.target` must be importable, but 'telecine.Nowhere' is not"),
        ({"target": "no_such_package.D"}, r"must be importable, but 'no_such_package.D' is not.*full dotted path"),
        ({"target": "Discriminator3D"}, r"must be importable, but 'Discriminator3D' is not.*full dotted path"),
        ({"target": ""}, r"must be importable"),
        ({"target": "math.sqrt"}, r"`discr_3d_kwargs.target` must be a subclass of nn.Module, but 'math.sqrt' is"),
        ({"target": "builtins.dict"}, r"must be a subclass of nn.Module, but 'builtins.dict' is"),
    ],
)
def test_mistakes(spec, message):
    with pytest.raises(ValueError, match=message):
        build(spec)


def test_errors_of_the_class_itself_pass_through():
    with pytest.raises(ValueError, match="`image_size` must be at least 4, but got 2 x 2"):
        build({**PARAMS, "image_size": 2})


def test_suggestion():
    assert suggestion("dimm", ["dim", "channels"]) == "Did you mean `dim`?"
    assert suggestion("x", ["dim", "channels"]) == "It takes: dim, channels."
