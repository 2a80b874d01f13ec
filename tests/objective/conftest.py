"""A seeded VGG16 without training, a tiny autoencoder, and clips, for the tests of the objective."""

import copy

import pytest
import torch
from torch import nn

from telecine.perceptual import LPIPS

# Positions and channels of VGG16's convolutions in torchvision's `features`.
VGG16 = (
    *((0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256)),
    *((17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512)),
)


def random_vgg(seed=0):
    """Return a state dict of torchvision's shape whose activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for position, chan_in, chan_out in VGG16:
        weight = torch.randn(chan_out, chan_in, 3, 3, generator=generator)
        state[f"features.{position}.weight"] = weight * (2 / (9 * chan_in)) ** 0.5
        state[f"features.{position}.bias"] = 0.05 * torch.randn(chan_out, generator=generator)
    return state


def narrowed(tensor, share=8):
    """Return a share of the features of one of LPIPS's tensors, scaled so that sums over them stay what they were."""
    if len(tensor) == 1:  # of the colours
        return tensor
    if tensor.dim() == 1:
        return tensor[: len(tensor) // share].clone()
    chan_in = max(3, tensor.shape[1] // share)
    return tensor[: len(tensor) // share, :chan_in] * (tensor.shape[1] / chan_in) ** 0.5


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1))
        self.conv_out = nn.Conv3d(4, 3, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, z):
        return self.conv_out(self.conv_in(z).tanh())


class TinyAutoencoder(nn.Module):
    """Sees each frame by itself, so a still video stays still."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Conv3d(3, 4, 1)
        self.decoder = Decoder()

    def forward(self, x):
        return self.decoder(self.encoder(x))

    @property
    def last_layer(self):
        return self.decoder.conv_out.weight


class Judge(nn.Module):
    """A discriminator made of elementwise operations: `scale * mean(weight * x)` a clip, and a count of its calls."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.scale = scale
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return self.scale * (self.weight * x).flatten(1).mean(1)


def random_clip(shape=(2, 3, 4, 16, 16), seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)


@pytest.fixture(scope="session")
def vgg():
    return random_vgg()


@pytest.fixture(scope="session")
def wide_lpips(vgg):
    return LPIPS("vgg", weights=vgg)


@pytest.fixture
def narrow_lpips(wide_lpips):
    """Return LPIPS with an eighth of VGG16's features, for what is run hundreds of times."""
    distance = copy.copy(wide_lpips)
    distance._frozen = {name: narrowed(tensor) for name, tensor in wide_lpips._frozen.items()}
    return distance


@pytest.fixture
def make_loss(vgg):
    """Build the loss with the seeded VGG16; the adversarial terms count from step 0 unless told otherwise."""
    from telecine import VideoAutoencoderLoss

    def make(seed=0, **arguments):
        torch.manual_seed(seed)
        return VideoAutoencoderLoss(**{"disc_start": 0, "vgg_weights": vgg, **arguments})

    return make


@pytest.fixture
def autoencoder():
    return TinyAutoencoder()


@pytest.fixture
def make_judge():
    return Judge


@pytest.fixture
def clip():
    return random_clip
