"""Distances by name and custom distances: how they are called, what they may return, and how modules are frozen."""

import copy
import functools
import inspect

import pytest
import torch
from torch import nn

from telecine.perceptual import CustomDistance, Perceptual, gram, in_chunks

NETS = ("vgg", "alex")
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
    assert torch.equal(CustomDistance(net)(reconstruction=x, target=y), signed(reconstruction=x, target=y))


def test_without_a_readable_signature_reconstruction_is_first():
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(torch.sub)
    x, y = (frames[:, :1, :1, :1] for frames in frame_pair())
    assert torch.equal(CustomDistance(torch.sub)(reconstruction=x, target=y), (x - y).flatten())


@pytest.mark.parametrize("net", [lambda x: x, lambda x, y, z: x, lambda *, x, y: x, lambda reconstruction: 0])
def test_error_for_another_signature(net):
    with pytest.raises(ValueError, match=r"`net` must be a function .*, but got one of the signature \(.*partial"):
        CustomDistance(net)


@pytest.mark.parametrize("net", [None, Network])
@pytest.mark.parametrize("build", [CustomDistance, Perceptual])
def test_error_for_something_else_than_a_distance(net, build):
    with pytest.raises(ValueError, match=r"`net` must be a function or module .* an instance of the module's class"):
        build(net)


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
    ("shape", "num_frames"), [((-1,), 3), ((-1, 1), 3), ((-1, 1, 1), 3), ((-1, 1, 1, 1), 3), ((-1, 1, 1, 1), 1)]
)
def test_one_value_per_frame(shape, num_frames):
    x, y = frame_pair(num_frames)
    expected = signed(reconstruction=x, target=y)
    actual = CustomDistance(lambda x, y: signed(reconstruction=x, target=y).view(shape))(reconstruction=x, target=y)
    assert torch.equal(actual, expected)


def test_a_scalar_is_the_distance_of_every_frame_also_in_chunks():
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
def test_error_for_another_result(result):
    x, y = frame_pair()
    with pytest.raises(
        ValueError, match=r"`net` must be .* shape \(3,\), \(3, 1, 1, 1\) or \(\) on cpu, but got .*Average"
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


# Custom modules are frozen


def test_a_frozen_module_still_passes_gradients(network):
    distance = CustomDistance(network)
    x, y = frame_pair()
    distance(reconstruction=x.requires_grad_(), target=y).sum().backward()
    assert x.grad.abs().max() > 0
    assert len(list(network.parameters())) == 4
    assert all(weight.grad is None and not weight.requires_grad for weight in network.parameters())
    nn.ModuleList([distance]).requires_grad_(True)
    assert not any(weight.requires_grad for weight in network.parameters())


def test_stays_in_evaluation_mode_if_the_caller_calls_train(network):
    distance = CustomDistance(network)
    x, y = frame_pair()
    expected = distance(reconstruction=x, target=y)
    statistics = network.layers[1].running_mean.clone()
    for parent in (nn.ModuleList([distance]), network):
        parent.train()
        assert torch.equal(distance(reconstruction=x, target=y), expected)
        assert not any(module.training for module in network.modules())
    assert torch.equal(network.layers[1].running_mean, statistics)


def test_hidden_from_optimizers_wrappers_and_checkpoints(network):
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


def test_copies_are_independent(network):
    distance = CustomDistance(network)
    other = copy.deepcopy(distance)
    x, y = frame_pair()
    expected = distance(reconstruction=x, target=y)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    assert torch.equal(other(reconstruction=x, target=y), expected)
    assert not torch.equal(distance(reconstruction=x, target=y), expected)


def test_a_module_with_length_0_is_a_module():
    class Empty(nn.ModuleList):
        def forward(self, x, y):
            assert not self.training
            return signed(reconstruction=x, target=y)

    x, y = frame_pair()
    assert CustomDistance(Empty())(reconstruction=x, target=y).shape == (NUM_FRAMES,)


def test_a_function_changes_no_module_that_it_uses(network):
    distance = CustomDistance(lambda x, y: network(x, y))
    x, y = frame_pair()
    distance(reconstruction=x, target=y).sum().backward()
    assert network.training
    assert all(weight.grad is not None for weight in network.parameters())


def test_repr(network):
    assert repr(CustomDistance(signed)) == "CustomDistance(signed)"
    assert repr(CustomDistance(network)) == "CustomDistance(Network)"


# By name, as an instance, or custom


def mean_square(*, reconstruction, target):
    return (reconstruction - target).square().mean((1, 2, 3))


def mean_of_first_stage(*, reconstruction_features, target_features):
    return (reconstruction_features[0] - target_features[0]).mean((1, 2, 3))


@pytest.mark.parametrize("net", [pytest.param("vgg", marks=pytest.mark.slow), "alex"])
def test_a_name_is_lpips_with_the_given_weights(net, random_models):
    state = {name: tensor for name, tensor in random_models[net].module.items() if name.startswith("features")}
    perceptual = Perceptual(net, weights=state)
    assert perceptual.has_features
    x, y = frame_pair(size=(32, 32))
    (expected,) = perceptual(reconstruction=x, target=y)
    assert torch.equal(expected, random_models[net](reconstruction=x, target=y))
    (expected_gram,) = random_models[net].compare(reconstruction=x, target=y, feature_terms=[gram])[1:]
    distance, *terms = perceptual(reconstruction=x, target=y, feature_terms=[mean_of_first_stage, gram])
    assert torch.equal(distance, expected)
    assert [term.shape for term in terms] == [(NUM_FRAMES,)] * 2
    assert torch.equal(terms[1], expected_gram)
    assert (terms[1] > 0).all()
    (swapped,) = perceptual(reconstruction=y, target=x, feature_terms=[mean_of_first_stage])[1:]
    torch.testing.assert_close(swapped, -terms[0])


def test_the_default_is_vgg_with_torchvisions_weights(models):
    x, y = frame_pair(size=(32, 32))
    perceptual = Perceptual()
    assert perceptual.distance.net == "vgg"
    (distance,) = perceptual(reconstruction=x, target=y)
    assert torch.equal(distance, models["vgg"](reconstruction=x, target=y))


def test_an_instance_of_lpips_is_used_itself(random_models):
    perceptual = Perceptual(random_models["alex"])
    assert perceptual.distance is random_models["alex"]
    assert perceptual.has_features


@pytest.mark.filterwarnings("ignore:.*'pretrained'.*", "ignore:Arguments other than a weight enum")
@pytest.mark.parametrize("net", [pytest.param("vgg", marks=pytest.mark.slow), "alex"])
@pytest.mark.slow
def test_the_published_package_as_a_custom_distance(net, models, references, real_frames):
    theirs, ours = Perceptual(copy.deepcopy(references(net))), Perceptual(models[net])
    assert sum(weight.numel() for weight in references(net).parameters()) > 2_000_000
    assert not theirs.state_dict()
    frames = real_frames["bikes.mp4"]
    distances, gradients = [], []
    for perceptual in (ours, theirs):
        x = frames[:2].clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (distance,) = in_chunks(perceptual, reconstruction=x, target=frames[2:], chunk_size=1)
        distance.sum().backward()
        distances.append(distance.detach())
        gradients.append(x.grad)
    torch.testing.assert_close(*distances, rtol=1e-5, atol=1e-6)
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


def test_a_function_has_no_features(random_models):
    perceptual = Perceptual(mean_square)
    assert isinstance(perceptual.distance, CustomDistance)
    assert not perceptual.has_features
    x, y = frame_pair(size=(32, 32))
    (distance,) = perceptual(reconstruction=x, target=y)
    assert torch.equal(distance, mean_square(reconstruction=x, target=y))
    with pytest.raises(
        ValueError, match=r'`feature_terms` must be empty for .* without features, but got \[.* gram .*"vgg"'
    ):
        perceptual(reconstruction=x, target=y, feature_terms=[gram])


@pytest.mark.parametrize("feature_terms", [(), (gram,)])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_gradients_in_chunks_with_and_without_gram(chunk_size, feature_terms, random_models):
    compare = functools.partial(Perceptual(random_models["alex"]), feature_terms=feature_terms)
    x, y = frame_pair(size=(32, 32))
    x.requires_grad_()
    actual = in_chunks(compare, reconstruction=x, target=y, chunk_size=chunk_size)
    expected = (random_models["alex"](reconstruction=x, target=y),)
    if feature_terms:
        expected = random_models["alex"].compare(reconstruction=x, target=y, feature_terms=feature_terms)
    for ours, theirs in zip(actual, expected, strict=True):
        gradients = [torch.autograd.grad(values.sum(), x, retain_graph=True)[0] for values in (ours, theirs)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", ["lpips", "function", "module"])
def test_every_kind_is_frozen_and_moves(kind, random_models):
    network = nn.Conv2d(3, 3, 1)

    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, *, reconstruction, target):
            return mean_square(reconstruction=self.network(reconstruction), target=self.network(target))

    net = {"lpips": copy.deepcopy(random_models["alex"]), "function": mean_square, "module": Custom()}[kind]
    parent = nn.ModuleDict({"perceptual": Perceptual(net), "linear": nn.Linear(1, 1)})
    assert list(parent.state_dict()) == ["linear.weight", "linear.bias"]
    assert len(list(parent.parameters())) == 2
    parent.train().to("meta")
    assert not parent["perceptual"].distance.training
    x, y = (frames.to("meta") for frames in frame_pair(size=(32, 32)))
    (distance,) = parent["perceptual"](reconstruction=x, target=y)
    assert distance.device.type == "meta"
    assert network.weight.device.type == ("meta" if kind == "module" else "cpu")


@pytest.mark.parametrize(
    ("net", "remedy"),
    [
        ("VGG", "Did you mean `vgg`"),
        ("alexnet", "Did you mean `alex`"),
        ("dists", "Pass a callable"),
    ],
)
def test_unknown_name(net, remedy):
    with pytest.raises(ValueError, match=rf'`net` must be "vgg", "alex", or a callable, but got \'{net}\' .*{remedy}'):
        Perceptual(net)


def test_error_for_weights_of_a_net_that_is_not_a_name(random_models):
    for net in (mean_square, random_models["alex"]):
        with pytest.raises(
            ValueError, match=r"`weights` must be None unless `net` is a name, but got {} .* into the module"
        ):
            Perceptual(net, weights={})
