"""The three ways to choose a perceptual distance, called alike."""

import copy

import pytest
import torch
from torch import nn

from telecine.perceptual import LPIPS, CustomDistance, Perceptual, PerceptualDistance, in_chunks

NETS = ("vgg", "alex")


def frame_pair(num_frames=3, size=32):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(num_frames, 3, size, size, generator=generator) * 2 - 1 for _ in range(2)]


def mean_square(*, reconstruction, target):
    return (reconstruction - target).square().mean((1, 2, 3))


@pytest.mark.parametrize("net", NETS)
def test_a_name_is_lpips_with_the_given_weights(net, random_models):
    state = {name: tensor for name, tensor in random_models[net]._frozen.items() if name.startswith("features")}
    perceptual = Perceptual(net, weights=state)
    assert perceptual.has_features
    x, y = frame_pair()
    expected = random_models[net].compare(reconstruction=x, target=y)
    actual = perceptual(reconstruction=x, target=y, gram=True)
    assert isinstance(actual, PerceptualDistance)
    assert torch.equal(actual.lpips, expected.lpips)
    assert torch.equal(actual.gram, expected.gram)
    without = perceptual(reconstruction=x, target=y)
    assert torch.equal(without.lpips, expected.lpips)
    assert torch.equal(without.gram, torch.zeros(3))


def test_the_default_is_vgg_with_torchvisions_weights(models):
    x, y = frame_pair()
    perceptual = Perceptual()
    assert perceptual.distance.net == "vgg"
    assert torch.equal(perceptual(reconstruction=x, target=y).lpips, models["vgg"](reconstruction=x, target=y))


def test_an_instance_of_lpips_is_used_itself(random_models):
    perceptual = Perceptual(random_models["alex"])
    assert perceptual.distance is random_models["alex"]
    assert perceptual.has_features


@pytest.mark.filterwarnings("ignore:.*'pretrained'.*", "ignore:Arguments other than a weight enum")
@pytest.mark.parametrize("net", NETS)
def test_the_published_package_as_the_callers_own(net, models, references, real_frames):
    theirs, ours = Perceptual(copy.deepcopy(references[net])), Perceptual(models[net])
    assert sum(weight.numel() for weight in references[net].parameters()) > 2_000_000
    assert not theirs.state_dict()
    frames = real_frames["bikes.mp4"]
    distances, gradients = [], []
    for perceptual in (ours, theirs):
        x = frames[:2].clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            distance = in_chunks(perceptual, reconstruction=x, target=frames[2:], chunk_size=1)
        distance.lpips.sum().backward()
        distances.append(distance.lpips.detach())
        gradients.append(x.grad)
    torch.testing.assert_close(*distances, rtol=1e-5, atol=1e-6)
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


def test_a_function_has_no_features(random_models):
    perceptual = Perceptual(mean_square)
    assert isinstance(perceptual.distance, CustomDistance)
    assert not perceptual.has_features
    x, y = frame_pair()
    distance = perceptual(reconstruction=x, target=y)
    assert torch.equal(distance.lpips, mean_square(reconstruction=x, target=y))
    assert torch.equal(distance.gram, torch.zeros(3))
    with pytest.raises(ValueError, match=r'`gram` must be False for .* without features, but got True .*"vgg"'):
        perceptual(reconstruction=x, target=y, gram=True)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_gradients_in_chunks_with_and_without_gram(chunk_size, random_models):
    perceptual = Perceptual(random_models["alex"])
    x, y = frame_pair()
    x.requires_grad_()
    without = in_chunks(perceptual, reconstruction=x, target=y, chunk_size=chunk_size)
    assert without.lpips.requires_grad
    assert not without.gram.requires_grad
    (gradient,) = torch.autograd.grad((without.lpips + without.gram).sum(), x)
    expected = torch.autograd.grad(random_models["alex"](reconstruction=x, target=y).sum(), x)[0]
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("kind", ["lpips", "function", "module"])
def test_is_frozen_and_moves_whichever_it_is(kind, random_models):
    network = nn.Conv2d(3, 3, 1)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, *, reconstruction, target):
            return mean_square(reconstruction=self.network(reconstruction), target=self.network(target))

    net = {"lpips": copy.deepcopy(random_models["alex"]), "function": mean_square, "module": Own()}[kind]
    parent = nn.ModuleDict({"perceptual": Perceptual(net), "linear": nn.Linear(1, 1)})
    assert list(parent.state_dict()) == ["linear.weight", "linear.bias"]
    assert len(list(parent.parameters())) == 2
    parent.train().to("meta")
    assert not parent["perceptual"].distance.training
    x, y = (frames.to("meta") for frames in frame_pair())
    assert parent["perceptual"](reconstruction=x, target=y).lpips.device.type == "meta"
    assert network.weight.device.type == ("meta" if kind == "module" else "cpu")


@pytest.mark.parametrize(
    ("net", "remedy"),
    [
        ("vgg16", "Did you mean `vgg`"),
        ("VGG", "Did you mean `vgg`"),
        ("alexnet", "Did you mean `alex`"),
        ("dists", "Pass a callable"),
        ("", "Pass a callable"),
    ],
)
def test_unknown_name(net, remedy):
    with pytest.raises(ValueError, match=rf'`net` must be "vgg", "alex", or a callable, but got \'{net}\' .*{remedy}'):
        Perceptual(net)


@pytest.mark.parametrize("net", [None, 3, LPIPS])
def test_what_is_no_distance(net):
    with pytest.raises(ValueError, match="`net` must be"):
        Perceptual(net)


def test_weights_beside_a_net_that_has_its_own(random_models):
    for net in (mean_square, random_models["alex"]):
        with pytest.raises(ValueError, match=r"`weights` must be None where `net` is no name, but got {} .* into it"):
            Perceptual(net, weights={})
