"""PatchGAN in two and three dimensions: layers, maps of logits, norms, second derivatives, and arguments."""

import copy
import math
from typing import get_args

import jaxtyping
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from telecine.discriminators import PatchDiscriminator, PatchDiscriminator3D
from telecine.discriminators.patch import Norm

CLASSES = (PatchDiscriminator, PatchDiscriminator3D)
both = pytest.mark.parametrize("cls", CLASSES)
every_norm = pytest.mark.parametrize("norm", get_args(Norm))


def build(cls, seed=0, **config):
    torch.manual_seed(seed)
    return cls(**{"base_channels": 2, **config}).double().eval()


def sample(cls, batch=2, time=5, size=(16, 17), channels=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (
        (batch, channels, *size) if cls is PatchDiscriminator else (batch, channels, time, *size)
    )
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def unchecked(monkeypatch):
    """Disable the run-time check of types, which exists in tests only and raises before the argument checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


class TestLayers:
    @both
    @every_norm
    def test_equal_the_formula(self, cls, norm):
        network = build(cls, norm=norm, max_dim=12)
        for module in network.modules():
            if isinstance(module, nn.GroupNorm):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
        convolve = F.conv2d if cls is PatchDiscriminator else F.conv3d
        x = y = sample(cls)
        for level, layer in enumerate(network.blocks):
            space, time = 2 if level < 3 else 1, 2 if level < 2 else 1
            stride = space if cls is PatchDiscriminator else (time, space, space)
            y = convolve(y, layer[0].weight, layer[0].bias, stride, padding=1)
            if norm == "group" and level > 0:
                flat = y.flatten(1)
                y = (y - flat.mean(1).view(-1, *(1,) * (y.ndim - 1))) / (
                    flat.var(1, unbiased=False).view(-1, *(1,) * (y.ndim - 1)) + 1e-5
                ).sqrt()
                per_channel = (1, -1, *(1,) * (y.ndim - 2))
                y = y * layer[1].weight.view(per_channel) + layer[1].bias.view(per_channel)
            y = torch.where(y > 0, y, 0.2 * y)
        expected = convolve(y, network.to_logits.weight, network.to_logits.bias, padding=1)
        logits, features = network(x)
        torch.testing.assert_close(logits, expected[:, 0])
        torch.testing.assert_close(features[-1], y)

    @both
    def test_kernels_and_channels(self, cls):
        network = cls(channels=1, num_layers=4)
        convs = [layer[0] for layer in network.blocks] + [network.to_logits]
        assert [conv.out_channels for conv in convs] == [64, 128, 256, 512, 512, 1]
        assert [conv.in_channels for conv in convs] == [1, 64, 128, 256, 512, 512]
        assert [conv.kernel_size[-2:] for conv in convs] == [(4, 4)] * 4 + [(3, 3)] * 2
        assert [conv.stride[-2:] for conv in convs] == [(2, 2)] * 4 + [(1, 1)] * 2
        if cls is PatchDiscriminator3D:
            assert [conv.kernel_size[0] for conv in convs] == [3] * 6
            assert [conv.stride[0] for conv in convs] == [2, 2, 1, 1, 1, 1]

    @both
    def test_receptive_field(self, cls):
        """54 x 54 pixels: the last 1, 2, ... layers have receptive fields of 3, 5, 12, 26, 54."""
        network = build(cls, norm="none")
        x = sample(cls, batch=1, time=3, size=(128, 128)).requires_grad_()
        logits = network(x).logits
        (gradient,) = torch.autograd.grad(logits[..., 8, 8].sum(), x)
        seen = gradient.abs().flatten(0, -3).sum(0) > 0
        assert (seen.any(0).sum(), seen.any(1).sum()) == (54, 54)
        assert seen.sum() == 54 * 54

    @pytest.mark.parametrize(
        ("channels", "groups"),
        [(1, 1), (8, 1), (16, 1), (31, 1), (48, 3), (64, 4), (100, 5), (512, 32), (40, 2)],
    )
    def test_groups_have_at_least_16_channels(self, channels, groups):
        network = PatchDiscriminator(base_channels=channels, max_dim=channels, num_layers=1)
        assert network.blocks[1][1].num_groups == groups

    @pytest.mark.parametrize("num_temporal_layers", range(5))
    @pytest.mark.parametrize("time", [1, 2, 5, 8, 9])
    def test_the_map_of_a_video(self, num_temporal_layers, time):
        network = build(PatchDiscriminator3D, num_temporal_layers=num_temporal_layers)
        logits = network(sample(PatchDiscriminator3D, time=time)).logits
        assert logits.shape == (2, math.ceil(time / 2 ** min(num_temporal_layers, 3)), 2, 2)

    @both
    def test_group_norm_leaves_a_gradient_on_the_smallest_map(self, cls):
        network = build(cls, base_channels=64)
        x = sample(cls, time=1, size=(8, 8)).requires_grad_()
        (gradient,) = torch.autograd.grad(network(x).logits.sum(), x)
        assert (gradient != 0).all()
        assert gradient.norm() > 1e-3


class TestNorms:
    @both
    def test_names(self, cls):
        plain = {f"blocks.{level}.0.{kind}" for level in range(4) for kind in ("weight", "bias")}
        plain |= {"to_logits.weight", "to_logits.bias"}
        groups = {f"blocks.{level}.1.{kind}" for level in (1, 2, 3) for kind in ("weight", "bias")}
        assert set(cls(norm="none", base_channels=1).state_dict()) == plain
        assert set(cls(norm="group", base_channels=1).state_dict()) == plain | groups
        spectral = cls(norm="spectral", base_channels=1)
        assert {name for name, _ in spectral.named_parameters() if "original" in name} == {
            f"{name}.parametrizations.weight.original"
            for name in (*(f"blocks.{i}.0" for i in range(4)), "to_logits")
        }

    @both
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_the_spectral_norm_is_estimated_outside_autocast(self, cls, dtype):
        network = cls(base_channels=2, norm="spectral")
        plain = copy.deepcopy(network)
        plain(sample(cls).float())
        with torch.autocast("cpu", dtype):
            logits = network(sample(cls).float()).logits
        assert logits.dtype == dtype
        states = network.state_dict()
        assert sum("_u" in name for name in states) == 5
        assert all(torch.equal(value, states[name]) for name, value in plain.state_dict().items())

    @both
    @pytest.mark.parametrize(
        ("norm", "dtype"),
        [("none", torch.bfloat16), ("group", torch.float16), ("spectral", torch.float16)],
    )
    def test_half_precision(self, cls, norm, dtype):
        network = build(cls, norm=norm).float()
        x = sample(cls).float()
        expected = network(x).logits
        with torch.autocast("cpu", dtype):
            logits = network(x).logits
        torch.testing.assert_close(logits.float(), expected, atol=0.05, rtol=0.05)


class TestDoubleBackward:
    @pytest.mark.parametrize(
        "cls", [PatchDiscriminator, pytest.param(PatchDiscriminator3D, marks=pytest.mark.slow)]
    )
    @pytest.mark.parametrize(
        "norm",
        ["none", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("group", "spectral"))],
    )
    def test_gradcheck_and_gradgradcheck(self, cls, norm):
        network = build(cls, base_channels=1, norm=norm, num_layers=1, channels=1)
        names, parameters = zip(*network.named_parameters(), strict=True)
        x = sample(cls, batch=1, time=3, size=(4, 3), channels=1).requires_grad_()

        def logits(x, *parameters):
            return functional_call(network, dict(zip(names, parameters, strict=True)), (x,)).logits

        assert torch.autograd.gradcheck(logits, (x, *parameters), fast_mode=True)
        twice = (
            (x,) if norm == "spectral" else (x, *parameters)
        )  # weights with a spectral norm are differentiated once
        others = parameters[len(twice) - 1 :]
        assert torch.autograd.gradgradcheck(
            lambda *inputs: logits(*inputs, *others), twice, fast_mode=True
        )

    @pytest.mark.slow
    def test_batches_1_to_9_in_float32_with_several_threads(self, forks, tmp_path):
        """Double backwards have corrupted the heap at odd batches; in a process of its own, a crash fails one test."""
        script = tmp_path / "batches.py"
        script.write_text("""
import torch
from telecine.discriminators import PatchDiscriminator, PatchDiscriminator3D
torch.set_num_threads(2)
for cls, shape in ((PatchDiscriminator, (16, 16)), (PatchDiscriminator3D, (5, 16, 16))):
    for norm in ("group", "spectral"):
        network = cls(base_channels=8, norm=norm)
        for batch in range(1, 10):
            x = torch.randn(batch, 3, *shape, requires_grad=True)
            (gradient,) = torch.autograd.grad(network(x).logits.sum(), x, create_graph=True)
            gradient.flatten(1).norm(dim=1).sum().backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
            print(cls.__name__, norm, batch)
""")
        done = forks.run(str(script))
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 2 * 2 * 9


class TestArguments:
    @both
    @pytest.mark.parametrize("name", ["base_channels", "channels", "num_layers", "max_dim"])
    def test_error_for_a_count(self, cls, name):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive int, but got 0"):
            cls(**{name: 0})

    @both
    @pytest.mark.parametrize(
        ("norm", "remedy"),
        [
            ("groups", "Did you mean `group`"),
            (None, "Did you mean `none`"),
            (7, "Use one of: group, none, spectral"),
        ],
    )
    def test_unknown_norm(self, cls, norm, remedy, unchecked):
        contract = r"`norm` must be one of 'group', 'none', 'spectral', but got "
        with pytest.raises(ValueError, match=f"{contract}{norm!r}.*{remedy}"):
            cls(norm=norm)

    @pytest.mark.parametrize("value", [-1, 1.5, True])
    def test_error_for_the_number_of_temporal_layers(self, value, unchecked):
        with pytest.raises(
            ValueError, match=f"`num_temporal_layers` must be an int of at least 0, but got {value}"
        ):
            PatchDiscriminator3D(num_temporal_layers=value)

    @both
    @pytest.mark.parametrize("num_layers", [1, 3])
    def test_the_smallest_image(self, cls, num_layers):
        network = build(cls, base_channels=1, num_layers=num_layers)
        smallest = 2**num_layers
        assert network(sample(cls, size=(smallest, smallest))).logits.shape[-2:] == (1, 1)
        for size in ((smallest - 1, 64), (64, smallest - 1)):
            contract = f"`x` must be at least {smallest} pixels high and wide with `num_layers={num_layers}`, but got"
            with pytest.raises(
                ValueError, match=f"{contract} {size[0]} x {size[1]}. Use fewer layers"
            ):
                network(sample(cls, size=size))
