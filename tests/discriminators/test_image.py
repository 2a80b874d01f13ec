"""The 2D discriminator against an independent implementation with the same weights, and its arguments."""

import warnings

import pytest
import torch

from telecine.discriminators import Discriminator


@pytest.fixture(scope="module")
def magvit2():
    """Return the `Discriminator` of the package magvit2-pytorch; skip the tests with the reason if it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from magvit2_pytorch.magvit2_pytorch import Discriminator as Reference
    except ImportError as error:
        pytest.skip(
            f"the independent reference of `pip install magvit2-pytorch` cannot be imported: {error}"
        )
    return Reference


CONFIGS = [
    ({"dim": 2, "image_size": 16}, (16, 16)),
    ({"dim": 2, "image_size": 32, "max_dim": 12, "attn_dim_head": 4}, (32, 32)),
    (
        {
            "dim": 1,
            "image_size": (32, 48),
            "channels": 1,
            "ff_mult": 2,
            "antialiased_downsample": False,
        },
        (32, 48),
    ),
    (
        {
            "dim": 3,
            "image_size": (64, 32),
            "linear_attn_heads": 3,
            "linear_attn_dim_head": 5,
            "attn_dim_head": 4,
        },
        (64, 32),
    ),
    # Built for a size whose halves are odd, and evaluated at one whose halves are even.
    ({"dim": 1, "image_size": (30, 45)}, (28, 44)),
]


@pytest.mark.parametrize(("config", "size"), CONFIGS)
def test_outputs_and_input_gradients_equal_magvit2s(magvit2, config, size):
    torch.manual_seed(0)
    theirs, ours = magvit2(**config), Discriminator(**config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.rand(3, config.get("channels", 3), *size) * 2 - 1
    results = []
    for network in (theirs, ours):
        image = x.clone().requires_grad_()
        logits = network(image)
        logits = logits.logits if network is ours else logits
        results.append((logits, *torch.autograd.grad(logits.sum(), image)))
    assert results[1][0].shape == (3,)
    assert results[0][0].std() > 1e-3
    for their, our in zip(*results, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["attn_heads", "attn_dim_head"])
def test_arguments_without_effect_are_accepted(name):
    shapes = [
        {
            key: tensor.shape
            for key, tensor in Discriminator(dim=1, image_size=16, **extra).state_dict().items()
        }
        for extra in ({}, {name: 3})
    ]
    assert shapes[0] == shapes[1]
