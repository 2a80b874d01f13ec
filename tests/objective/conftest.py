"""Fixtures of the objective's tests: an untrained VGG16, small networks, and random clips."""

import copy

import pytest
import torch
from torch import nn

from telecine.losses.perceptual import LPIPS
from telecine.losses.perceptual.backbones import BACKBONES


def random_vgg(seed=0):
    """Return a state dict in torchvision's format whose activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in BACKBONES["vgg"].tensor_shapes().items():
        std = 0.05 if name.endswith("bias") else (2 / (9 * shape[1])) ** 0.5
        state[name] = torch.randn(shape, generator=generator) * std
    return state


def narrowed(tensor, factor=8):
    """Return the first 1/factor of the features of a tensor of LPIPS, scaled so that sums over them keep their size."""
    if len(tensor) == 1:  # shift and scale of the colours
        return tensor
    if tensor.dim() == 1:
        return tensor[: len(tensor) // factor].clone()
    chan_in = max(3, tensor.shape[1] // factor)
    return tensor[: len(tensor) // factor, :chan_in] * (tensor.shape[1] / chan_in) ** 0.5


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1))
        self.conv_out = nn.Conv3d(4, 3, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, z):
        return self.conv_out(self.conv_in(z).tanh())


class TinyAutoencoder(nn.Module):
    """Processes each frame separately, so that a still video stays still."""

    def __init__(self, seed=0):
        super().__init__()
        torch.default_generator.manual_seed(seed)
        self.encoder = nn.Conv3d(3, 4, 1)
        self.decoder = Decoder()

    def forward(self, x):
        return self.decoder(self.encoder(x))

    @property
    def last_layer(self):
        return self.decoder.conv_out.weight


class MeanDiscriminator(nn.Module):
    """`D(x) = scale * mean(weight * x)` of elementwise operations; records its inputs and has no features."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.scale = scale
        self.inputs = []

    def forward(self, x):
        self.inputs.append(x)
        return self.scale * (self.weight * x).flatten(1).mean(1)


class FeatureDiscriminator(nn.Module):
    """`D(x) = mean(scale * x)` with the features `scale * x` and `3 * scale * x`; records its inputs."""

    sees = "video"

    def __init__(self, scale=2.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.inputs = []
        self.grad_enabled = []

    def forward(self, x):
        self.inputs.append(x)
        self.grad_enabled.append(torch.is_grad_enabled())
        y = self.scale * x
        return y.flatten(1).mean(1), (y, 3 * y)


def random_clip(shape=(2, 3, 4, 16, 16), seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)


@pytest.fixture(scope="session")
def vgg():
    return random_vgg()


@pytest.fixture(scope="session")
def shared_lpips(vgg):
    distance = LPIPS("vgg", weights=vgg)
    distance.weights = {name: narrowed(tensor) for name, tensor in distance.weights.items()}
    return distance


@pytest.fixture
def narrow_lpips(shared_lpips):
    """Return LPIPS with an eighth of VGG16's features, for speed."""
    return copy.deepcopy(shared_lpips)


@pytest.fixture
def make_loss(narrow_lpips):
    """Return a function that builds the loss, by default with the narrow LPIPS and `disc_start=0`."""
    from telecine import VideoAutoencoderLoss

    def make(seed=0, **arguments):
        torch.default_generator.manual_seed(seed)
        if "vgg_weights" not in arguments:
            arguments["perceptual"] = {"net": narrow_lpips, **arguments.get("perceptual", {})}
        return VideoAutoencoderLoss(**{"disc_start": 0, **arguments})

    return make


@pytest.fixture
def autoencoder():
    return TinyAutoencoder()


@pytest.fixture
def make_discriminator():
    return MeanDiscriminator


@pytest.fixture
def make_feature_discriminator():
    return FeatureDiscriminator


@pytest.fixture
def clip():
    return random_clip


@pytest.fixture
def pair():
    """Return real clips and reconstructions that require gradients."""
    return random_clip(), random_clip(seed=2).requires_grad_()
