"""Callers' own distances: how they are called, what they may return, and what becomes of their modules."""

import copy
import functools
import inspect

import pytest
import torch
from torch import nn

from telecine.perceptual import CustomDistance, in_chunks

NUM_FRAMES = 3


def frame_pair(num_frames=NUM_FRAMES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(num_frames, 3, 6, 7, generator=generator) * 2 - 1 for _ in range(2))
    return x.to(dtype), y.to(dtype)


def signed(*, reconstruction, target):
    """Which of the two came as which is seen in the sign."""
    return (reconstruction - target).mean((1, 2, 3))


class Network(nn.Module):
    """A little of everything: parameters, integer buffers, dropout, batch norm."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))

    def forward(self, one, other, scale=1.0):
        return scale * (self.layers(one) - self.layers(other)).square().mean((1, 2, 3))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


# How it is called


class Swapped(nn.Module):
    def forward(self, target, reconstruction):
        return signed(reconstruction=reconstruction, target=target)


@pytest.mark.parametrize(
    "net",
    [
        signed,
        lambda **pair: signed(**pair),
        lambda target, reconstruction: signed(reconstruction=reconstruction, target=target),
        lambda x, y, power=1: signed(reconstruction=x, target=y) ** power,
        functools.partial(lambda power, x, y: signed(reconstruction=x, target=y) ** power, 1),
        Swapped(),
    ],
)
def test_is_called_by_name_or_else_reconstruction_first(net):
    x, y = frame_pair()
    assert torch.equal(CustomDistance(net)(reconstruction=x, target=y), signed(reconstruction=x, target=y))


def test_compiled_code_without_a_signature_is_called_reconstruction_first():
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(torch.sub)
    x, y = (frames[:, :1, :1, :1] for frames in frame_pair())
    assert torch.equal(CustomDistance(torch.sub)(reconstruction=x, target=y), (x - y).flatten())


@pytest.mark.parametrize("net", [lambda x: x, lambda x, y, z: x, lambda *, x, y: x, lambda reconstruction: 0])
def test_what_cannot_be_called_like_that(net):
    with pytest.raises(ValueError, match=r"`net` must be a function .*, but got one of the signature \(.*partial"):
        CustomDistance(net)


@pytest.mark.parametrize("net", [None, 3, torch.zeros(2), Network])
def test_what_is_no_distance(net):
    with pytest.raises(ValueError, match=r"`net` must be a function or module .* an instance of the module's class"):
        CustomDistance(net)


def test_pairs_are_keyword_only_and_checked():
    x, y = frame_pair()
    with pytest.raises(TypeError):
        CustomDistance(signed)(x, y)
    with pytest.raises(ValueError, match="`target` must be of shape"):
        CustomDistance(signed)(reconstruction=x, target=y[:1])
    with pytest.raises(ValueError, match="`reconstruction` must be a floating-point tensor"):
        CustomDistance(signed)(reconstruction=x[0], target=y)


# What it returns


@pytest.mark.parametrize("num_frames", [1, NUM_FRAMES])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 1, 1), (-1, 1, 1, 1)])
def test_one_value_per_frame(shape, num_frames):
    x, y = frame_pair(num_frames)
    expected = signed(reconstruction=x, target=y)
    actual = CustomDistance(lambda x, y: signed(reconstruction=x, target=y).view(shape))(reconstruction=x, target=y)
    assert torch.equal(actual, expected)


def test_a_scalar_counts_for_every_frame_also_in_chunks():
    x, y = frame_pair()
    x.requires_grad_()
    distance = CustomDistance(nn.MSELoss())
    actual = distance(reconstruction=x, target=y)
    expected = (x - y).square().mean()
    assert actual.tolist() == [expected.item()] * NUM_FRAMES
    chunked = in_chunks(distance, reconstruction=x, target=y, chunk_size=2)
    for mean in (actual.mean(), chunked.mean()):
        torch.testing.assert_close(mean, expected)
        torch.testing.assert_close(*(torch.autograd.grad(loss, x, retain_graph=True) for loss in (mean, expected)))


@pytest.mark.parametrize(
    "result",
    [
        torch.zeros(NUM_FRAMES + 1),
        torch.zeros(1),
        torch.zeros(NUM_FRAMES, 2),
        torch.zeros(1, NUM_FRAMES),
        torch.zeros(NUM_FRAMES, 1, 6, 7),
        torch.zeros(NUM_FRAMES, dtype=torch.int64),
        torch.zeros(NUM_FRAMES, device="meta"),
        0.5,
        None,
        (torch.zeros(NUM_FRAMES),),
    ],
)
def test_anything_else_is_refused(result):
    x, y = frame_pair()
    with pytest.raises(ValueError, match=r"`net` must be .* shape \(3,\), \(3, 1, 1, 1\) or \(\) on cpu, but got .*Av"):
        CustomDistance(lambda x, y: result)(reconstruction=x, target=y)


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gets_at_least_float32_without_autocast(dtype):
    seen = []

    def net(reconstruction, target):
        seen.extend((reconstruction.dtype, target.dtype, (torch.eye(2) @ torch.eye(2)).dtype))
        return signed(reconstruction=reconstruction, target=target).to(dtype)

    x, y = frame_pair(dtype=dtype)
    widest = torch.promote_types(dtype, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = CustomDistance(net)(reconstruction=x, target=y)
        CustomDistance(net)(reconstruction=x, target=y.float())
    assert distance.dtype == widest
    assert seen == [widest, widest, torch.float32] * 2


def test_gradcheck_through_a_network(network):
    distance = CustomDistance(network).double()
    inputs = [frames.double().requires_grad_() for frames in frame_pair(2)]
    assert torch.autograd.gradcheck(lambda x, y: distance(reconstruction=x, target=y), inputs)


def test_a_network_in_half_precision_becomes_float32(network):
    distance = CustomDistance(network.half())
    x, y = frame_pair()
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32, torch.int64}
    expected = distance(reconstruction=x, target=y)
    for cast in (nn.Module.half, nn.Module.bfloat16):
        cast(nn.ModuleList([distance]))
        assert torch.equal(distance(reconstruction=x, target=y), expected)


# A module that is taken over


def test_gives_a_frozen_module_that_still_passes_gradients(network):
    distance = CustomDistance(network)
    x, y = frame_pair()
    distance(reconstruction=x.requires_grad_(), target=y).sum().backward()
    assert x.grad.abs().max() > 0
    assert len(list(network.parameters())) == 4
    assert all(weight.grad is None and not weight.requires_grad for weight in network.parameters())
    nn.ModuleList([distance]).requires_grad_(True)
    assert not any(weight.requires_grad for weight in network.parameters())


def test_stays_in_evaluation_mode_also_against_the_callers_own_train(network):
    distance = CustomDistance(network)
    x, y = frame_pair()
    expected = distance(reconstruction=x, target=y)
    statistics = network.layers[1].running_mean.clone()
    for parent in (nn.ModuleList([distance]), network):
        parent.train()
        assert torch.equal(distance(reconstruction=x, target=y), expected)
        assert not any(module.training for module in network.modules())
    assert torch.equal(network.layers[1].running_mean, statistics)


def test_brings_nothing_into_optimizers_wrappers_and_checkpoints(network):
    distance = CustomDistance(network)
    parent = nn.ModuleDict({"loss": distance, "linear": nn.Linear(1, 1)})
    assert not list(distance.parameters())
    assert not list(distance.buffers())
    assert list(distance.modules()) == [distance]
    assert list(parent.state_dict()) == ["linear.weight", "linear.bias"]
    assert not any(parent.load_state_dict(parent.state_dict(), strict=True))


def test_moves_with_its_parent(network):
    nn.ModuleList([CustomDistance(network)]).to("meta")
    assert len(network.state_dict()) == 7
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
    nn.ModuleList([CustomDistance(signed)]).to("meta")  # nothing to move


def test_copies_are_apart(network):
    distance = CustomDistance(network)
    other = copy.deepcopy(distance)
    x, y = frame_pair()
    expected = distance(reconstruction=x, target=y)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    assert torch.equal(other(reconstruction=x, target=y), expected)
    assert not torch.equal(distance(reconstruction=x, target=y), expected)


def test_an_empty_container_is_a_module_too():
    class Empty(nn.ModuleList):
        def forward(self, x, y):
            assert not self.training
            return signed(reconstruction=x, target=y)

    x, y = frame_pair()
    assert CustomDistance(Empty())(reconstruction=x, target=y).shape == (NUM_FRAMES,)


def test_of_a_function_nothing_is_changed(network):
    distance = CustomDistance(lambda x, y: network(x, y))
    x, y = frame_pair()
    distance(reconstruction=x, target=y).sum().backward()
    assert network.training
    assert all(weight.grad is not None for weight in network.parameters())


def test_shows_its_net(network):
    assert repr(CustomDistance(signed)) == "CustomDistance(signed)"
    assert repr(CustomDistance(network)) == "CustomDistance(Network)"
