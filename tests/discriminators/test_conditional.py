"""Discriminators of pairs: the channels are concatenated, and what the network declares is passed on."""

import runpy
from pathlib import Path

import pytest
import torch

from telecine.discriminators import (
    ConditionalDiscriminator,
    Discriminator,
    Discriminator3D,
    PatchDiscriminator,
    PatchDiscriminator3D,
    frame_gradients,
)

VIDEO = (2, 3, 4, 8, 9)

SMALL = runpy.run_path(str(Path(__file__).with_name("small_networks.py")))
features = SMALL["features"]


def test_the_condition_is_concatenated():
    torch.manual_seed(0)
    network = PatchDiscriminator3D(dim=2, channels=6).double()
    x, condition = torch.randn(2, *VIDEO, dtype=torch.float64)
    found = ConditionalDiscriminator(network)(x, condition.float())
    expected = network(torch.cat([x, condition.float().double()], 1))
    assert torch.equal(found.logits, expected.logits)
    assert len(found.features) == len(expected.features) == 4


def test_features_of_the_condition_have_no_gradient():
    network = features(conditional=True).double()
    x, condition = torch.randn(2, *VIDEO, dtype=torch.float64, requires_grad=True)
    logits = network(x, condition).logits
    by_x, by_condition = torch.autograd.grad(logits.sum(), [x, condition], allow_unused=True)
    assert by_x.any()
    assert by_condition is None
    assert not torch.equal(logits, network.eval()(x, condition + 1).logits), "but they count"


def test_what_the_network_declares():
    sizes = {"dim": 1, "image_size": 16, "channels": 6}
    for network, sees, independent in (
        (Discriminator(**sizes), "frames", True),
        (Discriminator3D(**sizes, frame_num=4), "video", True),
        (PatchDiscriminator(dim=1, channels=6), "frames", False),
    ):
        pairs = ConditionalDiscriminator(network)
        assert (pairs.conditional, pairs.sees, pairs.samples_are_independent) == (True, sees, independent)
        pairs.enable_gradient_checkpointing()
        assert network.gradient_checkpointing


@pytest.mark.parametrize("make", [lambda: ConditionalDiscriminator(PatchDiscriminator3D(dim=2, channels=6)), None])
def test_every_frame_has_a_gradient(make):
    network = features(conditional=True) if make is None else make()
    assert (frame_gradients(network, torch.randn(1, 3, 5, 16, 16)) > 0.1).all()


def test_a_condition_of_another_shape():
    pairs = ConditionalDiscriminator(PatchDiscriminator3D(dim=2, channels=6))
    with pytest.raises(ValueError, match="`condition` must"):
        pairs(torch.zeros(2, 3, 4, 8, 8), torch.zeros(2, 3, 4, 8, 9))
