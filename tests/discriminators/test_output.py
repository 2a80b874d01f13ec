"""The output of every discriminator, its features, and freezing."""

from functools import partial

import pytest
import torch
from torch import nn

from telecine.discriminators import (
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
    DiscriminatorOutput,
    FeatureDiscriminator,
    PatchDiscriminator,
    PatchDiscriminator3D,
    as_output,
    frozen,
)
from telecine.discriminators.output import check_batch

from .small_networks import built_in_classes

SIZED = {"dim": 1, "image_size": 32}
FRAMES, VIDEO = (2, 3, 32, 48), (2, 3, 5, 32, 48)
# Network, shape of its input, shapes of its logits and features.
CASES = {
    "residual": (
        partial(Discriminator, **SIZED),
        FRAMES,
        [(2,), (2, 4, 16, 24), (2, 8, 8, 12), (2, 16, 4, 6), (2, 32, 4, 6)],
    ),
    "plain": (
        partial(Discriminator3D, **SIZED, frame_num=4),
        VIDEO,
        [(2,), (2, 4, 3, 16, 24), (2, 8, 2, 8, 12), (2, 16, 4, 6), (2, 32, 4, 6)],
    ),
    "first frame": (
        partial(Discriminator3DWithfirstframe, **SIZED, frame_num=4),
        VIDEO,
        [(2,), (2, 4, 3, 16, 24), (2, 8, 2, 8, 12), (2, 16, 4, 6), (2, 32, 4, 6)],
    ),
    "first frame, even": (
        partial(
            Discriminator3DWithfirstframe,
            **SIZED,
            frame_num=4,
            time_weighting="frames",
            antialiased_downsample=True,
        ),
        VIDEO,
        [(2,), (2, 4, 3, 16, 24), (2, 8, 2, 8, 12), (2, 16, 4, 6), (2, 32, 4, 6)],
    ),
    **{
        f"patches of frames, {norm}": (
            partial(PatchDiscriminator, base_channels=2, norm=norm),
            FRAMES,
            [(2, 4, 6), (2, 2, 16, 24), (2, 4, 8, 12), (2, 8, 4, 6), (2, 16, 4, 6)],
        )
        for norm in ("group", "spectral")
    },
    **{
        f"patches of videos, {norm}": (
            partial(PatchDiscriminator3D, base_channels=2, norm=norm),
            VIDEO,
            [(2, 2, 4, 6), (2, 2, 3, 16, 24), (2, 4, 2, 8, 12), (2, 8, 2, 4, 6), (2, 16, 2, 4, 6)],
        )
        for norm in ("group", "spectral")
    },
}


def build(make):
    torch.manual_seed(0)
    return make().double().eval()


def test_the_cases_are_of_all_built_in_discriminators():
    classes = {type(build(make)) for make, _, _ in CASES.values()}
    assert classes == built_in_classes() - {FeatureDiscriminator}, "test_features.py is of that one"


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    make, shape, shapes = request.param
    torch.manual_seed(1)
    return build(make), torch.randn(shape, dtype=torch.float64), shapes


class TestEveryDiscriminator:
    def test_count_and_shapes_of_its_kind_of_input_which_is_not_changed(self, case):
        network, x, shapes = case
        assert type(network).sees == ("frames" if x.ndim == 4 else "video")
        before, version = x.clone(), x._version
        output = network(x)
        assert torch.equal(x, before)
        assert x._version == version
        assert type(output) is DiscriminatorOutput
        logits, features = output
        assert isinstance(features, tuple)
        assert [tuple(tensor.shape) for tensor in (logits, *features)] == shapes
        assert len(features) == len(network.blocks)

    @pytest.mark.parametrize("wrong", [lambda x: x[0], lambda x: x[:, :1], lambda x: x[:, None]])
    def test_an_input_of_another_shape_is_refused(self, case, wrong):
        network, x, _ = case
        axes = "B, C, H, W" if x.ndim == 4 else "B, C, T, H, W"
        with pytest.raises(
            ValueError, match=rf"`x` must be of shape \({axes}\) with C = 3, but got shape \("
        ):
            network(wrong(x))

    def test_gradients_flow_from_the_logits_to_every_feature_and_on_to_the_input(self, case):
        network, x, _ = case
        x.requires_grad_()
        logits, features = network(x)
        to_features = torch.autograd.grad(logits.sum(), features, retain_graph=True)
        assert all((gradient != 0).any() for gradient in to_features)
        for feature in features:
            (gradient,) = torch.autograd.grad(feature.square().sum(), x, retain_graph=True)
            assert (gradient.flatten(2).abs().sum(2) > 0).all()

    def test_in_place_activations_change_no_gradient(self, case):
        network, x, _ = case
        x.requires_grad_()
        results = []
        for inplace in (True, False):
            activations = [
                module for module in network.modules() if isinstance(module, nn.LeakyReLU)
            ]
            assert len(activations) >= len(network.blocks)
            for activation in activations:
                activation.inplace = inplace
            logits, features = network(x)
            loss = logits.square().sum() + sum(feature.square().sum() for feature in features)
            results.append(
                [logits, *features, *torch.autograd.grad(loss, [x, *network.parameters()])]
            )
        for ours, out_of_place in zip(*results, strict=True):
            torch.testing.assert_close(ours, out_of_place, rtol=1e-12, atol=1e-12)

    def test_no_value_is_read_from_the_device(self, case):
        """Meta tensors have no values: code that reads one raises."""
        network, x, shapes = case
        for training in (False, True):
            output = network.to("meta").train(training)(x.to("meta"))
            assert [tuple(tensor.shape) for tensor in (output.logits, *output.features)] == shapes


@pytest.mark.parametrize(
    ("shape", "sees", "remedy"),
    [
        ((3, 8, 8), "frames", "Images have 4 axes"),
        ((1, 4, 8, 8), "frames", "Build the discriminator"),
        ((1, 4, 2, 8, 8), "video", "Build the discriminator"),
        ((1, 5, 3, 8, 8), "video", r"It looks like \(B, T, C, H, W\): use `.transpose\(1, 2\)`"),
    ],
)
def test_the_remedy_for_a_shape(shape, sees, remedy):
    with pytest.raises(ValueError, match=remedy):
        check_batch(torch.zeros(shape), sees, channels=3)


class TestAsOutput:
    @pytest.mark.parametrize(
        ("pack", "num_features"),
        [
            (lambda logits, feature: logits, 0),
            (lambda logits, feature: (logits, [feature]), 1),
            (lambda logits, feature: [logits, (feature,)], 1),
            (lambda logits, feature: DiscriminatorOutput(logits, (feature,)), 1),
        ],
    )
    def test_logits_and_pairs(self, pack, num_features):
        logits, feature = torch.zeros(2, 4), torch.zeros(2, 3)
        output = as_output(pack(logits, feature))
        assert type(output) is DiscriminatorOutput
        assert output.logits is logits
        assert output.features == (feature,) * num_features

    @pytest.mark.parametrize(
        ("output", "got"),
        [
            (None, "NoneType"),
            (1.0, "float"),
            ((torch.zeros(2),), r"\(Tensor\)"),
            ((torch.zeros(2), torch.zeros(2, 3)), r"\(Tensor, Tensor\)"),
            ((torch.zeros(2), (None,)), r"\(Tensor, \(NoneType\)\)"),
            (DiscriminatorOutput(None, ()), r"\(NoneType, \(\)\)"),
        ],
    )
    def test_error_for_anything_else(self, output, got):
        contract = r"`output` must be a tensor of logits, or a pair of logits and a tuple of feature tensors, but got "
        with pytest.raises(
            TypeError,
            match=contract + got + r".*`telecine.DiscriminatorOutput`, or only the logits",
        ):
            as_output(output)

    @pytest.mark.parametrize("output", [torch.zeros(()), (torch.zeros(()), ())])
    def test_a_single_logit_for_a_batch(self, output):
        message = r"`logits` must be one logit per sample, or a map of them, but got .*shape \(\).*`.flatten\(1\)"
        with pytest.raises(ValueError, match=message):
            as_output(output)


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_restores_each_parameter(fails):
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    before = [parameter.requires_grad for parameter in module.parameters()]
    assert before == [False, False, True, True]
    try:
        with frozen(module):
            assert not any(parameter.requires_grad for parameter in module.parameters())
            assert not module(torch.zeros(1, 2)).requires_grad
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [parameter.requires_grad for parameter in module.parameters()] == before
