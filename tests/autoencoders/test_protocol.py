"""A user's own module is an autoencoder when it has the members, and not when one is missing."""

import inspect

import pytest
import torch
from torch import nn

from telecine.autoencoders import CausalVAE, DiagonalGaussian, Posterior, Reconstruction, VideoAutoencoder

MEMBERS = [
    "check_clip",
    "covering_clip",
    "decode",
    "encode",
    "forward",
    "from_pretrained",
    "last_layer",
    "load_weights",
    "save_pretrained",
]


class Mine(nn.Module):
    """The smallest autoencoder: one 1 x 1 x 1 convolution each way."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv3d(3, 2, 1), nn.Conv3d(1, 3, 1)

    def forward(self, video, sample_posterior=True):
        posterior = self.encode(video)
        latent = posterior.sample() if sample_posterior else posterior.mode()
        return Reconstruction(video=self.decode(latent), aux={"kl_loss": posterior.kl()})

    def encode(self, video):
        mean, logvar = self.down(video).chunk(2, dim=1)
        return DiagonalGaussian(mean=mean, logvar=logvar)

    def decode(self, latent):
        return self.up(latent)

    @property
    def last_layer(self):
        return self.up.weight

    def check_clip(self, num_frames, height, width):
        pass

    def covering_clip(self, num_frames, height, width):
        return num_frames, height, width

    def save_pretrained(self, folder):
        pass

    def load_weights(self, folder):
        pass

    @classmethod
    def from_pretrained(cls, folder):
        return cls()


def test_a_module_with_the_members_is_one():
    assert isinstance(Mine(), VideoAutoencoder)
    assert isinstance(Mine().encode(torch.zeros(1, 3, 2, 4, 4)), Posterior)
    assert not isinstance(nn.Linear(1, 1), VideoAutoencoder)


@pytest.mark.parametrize("member", [name for name in MEMBERS if name != "forward"])
def test_each_member_is_needed(member):
    lacking = type("Lacking", (nn.Module,), {name: vars(Mine)[name] for name in MEMBERS if name != member})
    model = lacking()
    model.up = nn.Conv3d(1, 3, 1)
    assert not isinstance(model, VideoAutoencoder)


def test_the_members_are_these():
    stated = [name for name in vars(VideoAutoencoder) if not name.startswith("_")]
    assert sorted(stated) == MEMBERS


@pytest.mark.parametrize("member", ["forward", "encode", "decode", "check_clip", "save_pretrained", "load_weights"])
def test_our_own_model_has_the_stated_signatures(member):
    stated, ours = (inspect.signature(getattr(cls, member)).parameters for cls in (VideoAutoencoder, CausalVAE))
    assert [(p.name, p.kind, p.default) for p in stated.values()] == [
        (p.name, p.kind, p.default) for p in ours.values()
    ]
