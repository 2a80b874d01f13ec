"""Custom distances: how they are called, what they may return, and how modules are frozen."""

import copy
import functools
import inspect

import pytest
import torch
from torch import nn

from telecine.losses.perceptual import CustomDistance

NUM_FRAMES = 3


def frame_pair(num_frames=NUM_FRAMES, dtype=torch.float32, size=(6, 7)):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(num_frames, 3, *size, generator=generator) * 2 - 1 for _ in range(2))
    return x.to(dtype), y.to(dtype)


def signed(*, reconstruction, target):
    """A distance whose sign changes if the two are swapped."""
    return (reconstruction - target).mean((1, 2, 3))


class Network(nn.Module):
    """A network with parameters, integer buffers, dropout and batch norm."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))

    def forward(self, one, other, scale=1.0):
        return scale * (self.layers(one) - self.layers(other)).square().mean((1, 2, 3))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


# The call


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
def test_called_by_keyword_or_else_reconstruction_first(net):
    x, y = frame_pair()
    assert torch.equal(
        CustomDistance(net)(reconstruction=x, target=y), signed(reconstruction=x, target=y)
    )


def test_without_a_readable_signature_reconstruction_is_first():
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(torch.sub)
    x, y = (frames[:, :1, :1, :1] for frames in frame_pair())
    assert torch.equal(CustomDistance(torch.sub)(reconstruction=x, target=y), (x - y).flatten())


@pytest.mark.parametrize(
    "net", [lambda x: x, lambda x, y, z: x, lambda *, x, y: x, lambda reconstruction: 0]
)
def test_error_for_another_signature(net):
    with pytest.raises(
        ValueError, match=r"`net` must be a function .*, but got one of the signature \(.*partial"
    ):
        CustomDistance(net)


@pytest.mark.parametrize("net", [None, Network])
def test_error_for_something_else_than_a_distance(net):
    with pytest.raises(
        ValueError, match=r"`net` must be a function or module .* an instance of the module's class"
    ):
        CustomDistance(net)


def test_pairs_are_keyword_only_and_checked():
    x, y = frame_pair()
    with pytest.raises(TypeError):
        CustomDistance(signed)(x, y)
    with pytest.raises(ValueError, match="`target` must be of `reconstruction`'s shape"):
        CustomDistance(signed)(reconstruction=x, target=y[:1])
    with pytest.raises(ValueError, match="`reconstruction` must be a floating-point tensor"):
        CustomDistance(signed)(reconstruction=x[0], target=y)


# The result


@pytest.mark.parametrize(
    ("shape", "num_frames"),
    [((-1,), 3), ((-1, 1), 3), ((-1, 1, 1, 1), 3), ((-1, 1, 1, 1), 1)],
)
def test_one_value_per_frame(shape, num_frames):
    x, y = frame_pair(num_frames)
    expected = signed(reconstruction=x, target=y)
    actual = CustomDistance(lambda x, y: signed(reconstruction=x, target=y).view(shape))(
        reconstruction=x, target=y
    )
    assert torch.equal(actual, expected)


def test_a_scalar_is_the_distance_of_every_frame_also_in_chunks():
    x, y = frame_pair()
    x.requires_grad_()
    distance = CustomDistance(nn.MSELoss())
    actual = distance(reconstruction=x, target=y)
    expected = (x - y).square().mean()
    assert actual.tolist() == [expected.item()] * NUM_FRAMES
    chunked = torch.cat(
        [
            distance(reconstruction=chunk, target=target)
            for chunk, target in zip(x.split(2), y.split(2), strict=True)
        ]
    )
    for mean in (actual.mean(), chunked.mean()):
        torch.testing.assert_close(mean, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(loss, x, retain_graph=True) for loss in (mean, expected))
        )


@pytest.mark.parametrize(
    "result",
    [
        torch.zeros(NUM_FRAMES + 1),
        torch.zeros(NUM_FRAMES, 1, 6, 7),
        torch.zeros(NUM_FRAMES, dtype=torch.int64),
        torch.zeros(NUM_FRAMES, device="meta"),
        0.5,
    ],
)
def test_error_for_another_result(result):
    x, y = frame_pair()
    with pytest.raises(
        ValueError,
        match=r"`net` must be .* shape \(3,\), \(3, 1, 1, 1\) or \(\) on cpu, but got .*Average",
    ):
        CustomDistance(lambda x, y: result)(reconstruction=x, target=y)


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_net_receives_at_least_float32_without_autocast(dtype):
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


# Custom modules are frozen


def test_a_module_is_frozen_and_passes_gradients(network):
    distance = CustomDistance(network).double().train()
    assert not distance.state_dict()
    assert not any(module.training for module in distance.in_eval_mode().modules())
    inputs = [frames.double().requires_grad_() for frames in frame_pair(1, size=(4, 5))]
    assert torch.autograd.gradcheck(lambda x, y: distance(reconstruction=x, target=y), inputs)
    distance(reconstruction=inputs[0], target=inputs[1]).sum().backward()
    assert inputs[0].grad.abs().max() > 0
    assert all(weight.grad is None and not weight.requires_grad for weight in network.parameters())


# The published package


@pytest.mark.filterwarnings("ignore:.*'pretrained'.*", "ignore:Arguments other than a weight enum")
@pytest.mark.slow
def test_the_published_package_as_a_custom_distance(models, references, real_frames):
    frames = real_frames["bikes.mp4"]
    results = []
    for compare in (models["alex"], CustomDistance(copy.deepcopy(references("alex")))):
        x = frames[:2].clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            distance = compare(reconstruction=x, target=frames[2:])
        results.append((distance.detach(), *torch.autograd.grad(distance.sum(), x)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    assert (results[0][1] - results[1][1]).norm() < 1e-5 * results[0][1].norm()
