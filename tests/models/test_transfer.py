"""Weights of a `CausalVAE` for one of another compression or size."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from telecine.models import CausalVAE
from telecine.models.transfer import check_source, copy_matching, load_source
from telecine.settings import CausalVAEConfig
from telecine.settings.autoencoder import FlowConfig

from .helpers import add_noise_to_weights

CONFIG = CausalVAEConfig(latent="4x8x8", base_channels=8, blocks_per_level=1)


def trained(config=CONFIG):
    """Return a model without a weight of 0, as after training."""
    torch.manual_seed(0)
    return add_noise_to_weights(CausalVAE(config), 0.1)


def clip(size=32):
    return torch.rand(1, 3, 5, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def reconstruct(model):
    return model(clip(), sample_posterior=False).video


def test_4x8x8_becomes_4x16x16():
    source = trained()
    model = CausalVAE(CausalVAEConfig(latent="4x16x16", base_channels=8, blocks_per_level=1))
    counts = copy_matching(source, into=model)
    assert {name: copied > 0 for name, (copied, _) in counts.items()} == {
        "encoder.linear": False,
        "encoder.network": True,
        "decoder.linear": False,
        "decoder.network": True,
    }
    layers = [("encoder", index) for index in range(3)]  # up to the first halving
    layers += [
        ("decoder", index) for index in (-5, -4, -3)
    ]  # from the last doubling on, but for the output
    num_copied = 0
    for part, index in layers:
        before = getattr(source, part).network[index]
        after = getattr(model, part).network[index]
        torch.testing.assert_close(after.state_dict(), before.state_dict(), rtol=0, atol=0)
        num_copied += sum(weight.numel() for weight in after.parameters())
    assert sum(copied for copied, _ in counts.values()) == num_copied
    assert sum(total for _, total in counts.values()) == sum(
        weight.numel() for weight in model.parameters()
    )
    linear = model.linear_autoencoder(5, 32, 32)
    model.copy_linear(linear)
    assert torch.equal(reconstruct(model), linear(clip())), (
        "networks of other depth add nothing at the start"
    )


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_more_residual_blocks_reconstruct_the_same(num_blocks):
    source = trained()
    model = CausalVAE(replace(CONFIG, blocks_per_level=num_blocks))
    counts = copy_matching(source, into=model)
    assert all(copied == total for copied, total in counts.values()) == (num_blocks == 1)
    assert torch.equal(reconstruct(model), reconstruct(source))


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        ({"latent_channels": 8}, []),
        ({"time_compression": 2}, []),
        ({"time_compression": 2, "patch_size": 8, "channel_multipliers": (2,)}, []),
        (
            {"time_kernel": 1},
            ["encoder.linear", "decoder.linear"],
        ),  # the blocks of the lowest resolution are lost
        ({"patch_size": 8, "channel_multipliers": (2,)}, ["encoder.linear", "decoder.linear"]),
        ({"decoder": "flow"}, ["encoder.linear", "encoder.network", "decoder.linear"]),
    ],
)
def test_an_output_layer_is_copied_with_all_that_it_reads(changes, whole):
    model = CausalVAE(replace(CONFIG, **changes))
    counts = copy_matching(trained(), into=model)
    assert [name for name, (copied, total) in counts.items() if copied == total] == whole
    assert model.encoder.network[-1].conv.weight.any() == ("encoder.network" in whole)
    assert not model.decoder.network[-1].conv.weight.any()


def test_an_output_layer_that_predicts_something_else_is_not_copied():
    config = replace(CONFIG, decoder="flow")
    model = CausalVAE(replace(config, flow=FlowConfig(prediction="velocity")))
    counts = copy_matching(trained(config), into=model)
    assert [name for name, (copied, total) in counts.items() if copied < total] == [
        "decoder.network"
    ]
    assert not model.decoder.network[-1].conv.weight.any()


def test_other_models_are_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"`init` must be left out for a model that is no CausalVAE, but got 'a' with",
    ):
        load_source("a", into=nn.Linear(1, 1))
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    with pytest.raises(
        ValueError, match=r"`init` must be a run or weights of a CausalVAE, but got '.*', a Autoenc"
    ):
        check_source(str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"but got '.*', which has no configuration of a model\. To train another model on, use `model`",
    ):
        check_source(str(tmp_path / "nothing"))
