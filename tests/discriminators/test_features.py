"""The discriminator on frozen features: its formula, golden values, what is frozen, where networks come from."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.models import shufflenet_v2_x0_5

from telecine.discriminators import FeatureDiscriminator
from telecine.losses import gradient_penalty
from telecine.losses.perceptual.backbones import BACKBONES
from telecine.losses.perceptual.feature_maps import FeatureMaps, build_maps

from .small_networks import SmallNet, features, frame_gradients

NET = "shufflenet_v2_x0_5"


def wave(shape, frequency=0.37, dtype=torch.float64):
    return torch.sin(frequency * torch.arange(1, math.prod(shape) + 1, dtype=dtype)).view(shape)


def fill(network):
    """Give every weight a value that depends on its place only, in evaluation mode."""
    for index, parameter in enumerate(network.parameters()):
        parameter.data.copy_(wave(parameter.shape, 0.37 + 0.01 * index, parameter.dtype))
    for head in network.heads:
        for conv in (head.conv_in, head.conv, head.to_logits):
            norm = conv.parametrizations.weight
            u, _, v = torch.linalg.svd(norm.original.detach().flatten(1), full_matrices=False)
            norm[0]._u.copy_(u[:, 0])
            norm[0]._v.copy_(v[0])
    return network.eval()


@pytest.fixture(scope="module")
def vgg(cached_weights):
    return build_maps("vgg")


def test_equals_the_formula():
    network, net = fill(features().double()), SmallNet().double().eval()
    x = wave((2, 3, 3, 9, 11))
    logits, activations = network(x)
    maps = net(x.transpose(1, 2).flatten(0, 1))
    assert [feature_map.shape[2:] for feature_map in maps] == [(5, 6), (3, 3)]
    for index, feature_map in enumerate(maps):
        y = feature_map.view(2, 3, *feature_map.shape[1:]).transpose(1, 2)
        flat = y.flatten(1)
        y = (
            (flat - flat.mean(1, keepdim=True)) / (flat.var(1, False, keepdim=True) + 1e-5).sqrt()
        ).view_as(y)
        head = network.heads[index]
        y = F.leaky_relu(F.conv3d(y, head.conv_in.weight, head.conv_in.bias), 0.2)
        torch.testing.assert_close(activations[2 * index], y)
        y = F.leaky_relu(F.conv3d(y, head.conv.weight, head.conv.bias, padding=1), 0.2)
        y = F.conv3d(y, head.to_logits.weight, head.to_logits.bias, padding=1)[:, 0]
        torch.testing.assert_close(logits[:, index], F.adaptive_avg_pool2d(y, (3, 3)))
    assert logits.shape == (2, 2, 3, 3, 3)


def test_golden_values(vgg):
    """Of VGG16's published weights, with the heads' weights filled in."""
    network = fill(FeatureDiscriminator(base_channels=4, net=vgg)).double()
    x = (0.6 * wave((1, 3, 3, 17, 32), 0.05) + 0.4 * wave((1, 3, 3, 17, 32), 1.3)).requires_grad_()
    logits = network(x).logits
    assert logits.shape == (1, 4, 3, 1, 2)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert (gradient != 0).all()
    first_frame = [
        0.2007468,
        -0.0185989,
        0.3542398,
        -0.0323100,
        0.5181694,
        0.4813176,
        0.8597339,
        0.7034355,
    ]
    assert logits[:, :, 0].flatten().tolist() == pytest.approx(first_frame, rel=1e-4)
    assert gradient.abs().sum().item() == pytest.approx(66.472094, rel=1e-4)
    assert gradient.norm().item() == pytest.approx(1.2806837, rel=1e-4)


def test_known_channels_and_the_smallest_frame(vgg):
    network = FeatureDiscriminator(base_channels=1, net=vgg)
    assert [head.conv_in.in_channels for head in network.heads] == [128, 256, 512, 512], (
        "none at the full size"
    )
    with pytest.raises(ValueError, match="at least 16 pixels high and wide for VGG16"):
        network(torch.zeros(1, 3, 1, 15, 32))


@pytest.mark.parametrize(("height", "width"), [(34, 33), (35, 38)])
def test_alexnet_sees_the_last_row_and_column(height, width):
    torch.manual_seed(0)
    weights = {
        name: 0.1 * torch.randn(shape) for name, shape in BACKBONES["alex"].tensor_shapes().items()
    }
    network = FeatureDiscriminator(base_channels=2, net=build_maps("alex", weights))
    x = torch.randn(1, 3, 1, height, width, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x).logits.sum(), x)
    assert (gradient != 0).all()
    with pytest.raises(ValueError, match="at least 31 pixels high and wide"):
        network(x[..., :30])


@settings(max_examples=6, deadline=None)
@given(
    shape=st.tuples(
        st.integers(1, 3), st.just(3), st.integers(1, 6), st.integers(1, 24), st.integers(1, 24)
    ),
)
def test_any_video(shape):
    network = features().double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    logits = network(x).logits
    assert logits.shape == (shape[0], 2, shape[2], -(-shape[3] // 4), -(-shape[4] // 4))
    if (
        shape[2] * shape[3] * shape[4] > 1
    ):  # else normalisation leaves nothing of a map of one value
        (gradient,) = torch.autograd.grad(logits.sum(), x)
        assert (gradient.flatten(3).norm(dim=3) > 0).all(), "every frame has a gradient"


def test_flicker_is_seen_although_the_network_sees_single_frames():
    torch.manual_seed(0)
    network, video = features().double().eval(), torch.randn(1, 3, 4, 8, 8, dtype=torch.float64)
    order = [1, 0, 2, 3]
    assert not torch.allclose(
        network(video).logits[:, :, order], network(video[:, :, order]).logits
    )
    assert (frame_gradients(network, video) > 0.3).all()


class TestFrozen:
    def test_only_heads_are_weights(self):
        network = features()
        assert {name.partition(".")[0] for name in network.state_dict()} == {"heads"}
        assert all(name.startswith("heads.") for name, _ in network.named_parameters())
        assert not any(
            parameter.requires_grad for parameter in network.backbone.in_eval_mode().parameters()
        )

    def test_it_is_never_in_training_mode(self):
        network, x = features(), torch.randn(1, 3, 2, 8, 8)
        network.backbone.in_eval_mode().train()
        maps = network.train().backbone(x[:, :, 0])
        torch.testing.assert_close(maps, SmallNet().eval()(x[:, :, 0]))

    def test_precision(self):
        network = features().bfloat16()
        assert network.backbone.in_eval_mode().first.weight.dtype == torch.float32
        assert (
            network(torch.zeros(1, 3, 2, 8, 8, dtype=torch.bfloat16)).logits.dtype == torch.bfloat16
        )
        with torch.autocast("cpu", torch.bfloat16):
            network = features()
            assert network.backbone(torch.zeros(1, 3, 8, 8))[0].dtype == torch.float32
            assert network(torch.zeros(1, 3, 2, 8, 8)).features[0].dtype == torch.bfloat16

    def test_frames_are_resized(self):
        maps = FeatureMaps(SmallNet(), size=8)(torch.rand(2, 3, 5, 30))
        assert [tuple(feature_map.shape) for feature_map in maps] == [(2, 4, 4, 4), (2, 6, 2, 2)]

    def test_tokens_are_a_map(self):
        tokens = torch.arange(2 * 11 * 3.0).view(
            2, 11, 3
        )  # two tokens of the class, 3 x 3 of the frame
        (feature_map,) = FeatureMaps(lambda frames: tokens)(torch.zeros(2, 3, 16, 16))
        assert feature_map.shape == (2, 3, 3, 3)
        assert torch.equal(feature_map[1, :, 0, 2], tokens[1, 4])

    def test_checkpointing_keeps_less_and_changes_nothing(self):
        x = torch.randn(2, 3, 3, 8, 9, dtype=torch.float64, requires_grad=True)
        results, calls = [], []
        for on in (False, True):
            network = fill(features().double())
            if on:
                network.enable_gradient_checkpointing()
                network.backbone.in_eval_mode().register_forward_pre_hook(
                    lambda *_: calls.append(1)
                )
            logits = network(x).logits
            total = logits.square().mean() + gradient_penalty(real=x, logits=logits)
            results.append(
                [logits, *torch.autograd.grad(total, [x, *network.parameters()], allow_unused=True)]
            )
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
        assert len(calls) > 3, "three frames, and again in the backward"


class TestNames:
    def test_a_network_of_torchvision(self, tmp_path):
        net = shufflenet_v2_x0_5().eval()
        save_file(net.state_dict(), tmp_path / "net.safetensors")
        maps = build_maps(
            f"torchvision/{NET}", str(tmp_path / "net.safetensors"), ("conv1", "stage2.0")
        )
        frames = torch.rand(1, 3, 32, 32)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        first = net.conv1((frames - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        expected = [first, net.stage2[0](net.maxpool(first))]
        torch.testing.assert_close(
            FeatureMaps(maps)(2 * frames - 1), expected, rtol=1e-4, atol=1e-4
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("vgg", None, ("layer1",)), r"^`layers` must be empty for 'vgg'.*a head for each"),
            (
                (NET,),
                r'^`net` must be "vgg", "alex", "torchvision/NAME" or "timm/NAME".*"torchvision/resnet50"',
            ),
            (
                (f"torchvision/{NET}", "w.pth"),
                "^`layers` must be the names of layers of 'torchvision/shufflenet",
            ),
            (
                (f"torchvision/{NET}", None, ("layer1",)),
                "^`weights` must be the path.*random weights are never used",
            ),
            (
                ("torchvision/shufflenet", "w.pth", ("a",)),
                "^`net` must be a model of torchvision.*Did you mean",
            ),
            (
                (f"torchvision/{NET}", "w.pth", ("layer1",)),
                "^`weights` must be an existing file, but got 'w.pth'",
            ),
            (
                ("timm/no_such_net", "w.pth", ("a",)),
                "^`net` must be a (network of an installed package|model of timm)",
            ),
        ],
    )
    def test_errors(self, arguments, message):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            build_maps(*arguments)

    def test_a_layer_that_is_not_there(self):
        message = r"`layers` must be layers of ShuffleNetV2, but got \('layer9',\).*conv1, maxpool"
        with pytest.raises(ValueError, match=message):
            build_maps(f"torchvision/{NET}", None, ("layer9",), load=False)

    def test_a_network_without_maps(self):
        with pytest.raises(
            ValueError, match=r"the result of `net` must be a list of maps \(N, F, h, w\)"
        ):
            features(net=torch.nn.Flatten(0))


@pytest.mark.parametrize(
    ("options", "x", "message"),
    [
        ({"base_channels": 0}, None, "`base_channels` must be a positive int"),
        ({"size": 0}, None, "`size` must be a positive int"),
        ({}, torch.zeros(1, 2, 2, 8, 8), "of shape .* with C = 3"),
    ],
)
def test_bad_arguments(options, x, message):
    with pytest.raises(ValueError, match=message):
        features(**options)(x)
