"""Weights of a `CausalVAE` for one of another compression or size."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from telecine.base.randomness import seed_of
from telecine.models import CausalVAE, LinearAutoencoder
from telecine.models.transfer import check_source, copy_matching, load_source
from telecine.settings import CausalVAEConfig
from telecine.settings.autoencoder import FlowConfig

CONFIG = CausalVAEConfig(latent="4x8x8", base_channels=8, blocks_per_level=1)
PARTS = ("encoder.linear", "encoder.network", "decoder.linear", "decoder.network")


def trained(config=CONFIG):
    """Return a model without a weight of 0, as after training."""
    model = CausalVAE(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed_of(name))))
    return model


def clip(size=32):
    return torch.rand(1, 3, 5, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def reconstruct(model):
    return model(clip(), sample_posterior=False).video


def test_4x8x8_becomes_4x16x16():
    source, model = trained(), CausalVAE(replace(CONFIG, latent="4x16x16", base_channels=8))
    counts = copy_matching(source, into=model)
    assert {name: some > 0 for name, (some, _) in counts.items()} == dict(zip(PARTS, (False, True) * 2, strict=True))
    old, new = source.encoder.network, model.encoder.network
    copied = [(old[index], new[index]) for index in range(3)]  # up to the first halving
    old, new = source.decoder.network, model.decoder.network
    copied += [(old[index], new[index]) for index in (-5, -4, -3)]  # from the last doubling on, but for the output
    for before, after in copied:
        assert all(torch.equal(after.state_dict()[name], each) for name, each in before.state_dict().items())
    num_copied = sum(weight.numel() for _, layer in copied for weight in layer.parameters())
    assert sum(some for some, _ in counts.values()) == num_copied
    assert sum(total for _, total in counts.values()) == sum(weight.numel() for weight in model.parameters())
    linear = model.linear_autoencoder(5, 32, 32)
    assert isinstance(linear, LinearAutoencoder)
    model.start_from(linear)
    assert torch.equal(reconstruct(model), linear(clip())), "networks of other depth add nothing at the start"


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_more_residual_blocks_reconstruct_the_same(num_blocks):
    source, model = trained(), CausalVAE(replace(CONFIG, blocks_per_level=num_blocks))
    counts = copy_matching(source, into=model)
    assert all(some == total for some, total in counts.values()) == (num_blocks == 1)
    assert torch.equal(reconstruct(model), reconstruct(source))


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        ({"latent_channels": 8}, []),
        ({"time_compression": 2}, []),
        ({"time_compression": 2, "patch_size": 8, "channel_multipliers": (2,)}, []),
        ({"time_kernel": 1}, ["encoder.linear", "decoder.linear"]),  # the blocks of the lowest resolution are lost
        ({"decoder": "flow"}, ["encoder.linear", "encoder.network", "decoder.linear"]),
    ],
)
def test_an_output_layer_is_copied_with_all_that_it_reads(changes, whole):
    source, model = trained(), CausalVAE(replace(CONFIG, **changes))
    counts = copy_matching(source, into=model)
    assert [name for name, (some, total) in counts.items() if some == total] == whole
    for part in (model.encoder, model.decoder):
        is_whole = part is model.encoder and "encoder.network" in whole
        assert part.network[-1].conv.weight.any() == is_whole


def test_linear_maps_do_not_depend_on_the_patches_of_the_networks():
    source, model = trained(), CausalVAE(replace(CONFIG, patch_size=8, channel_multipliers=(2,)))
    counts = copy_matching(source, into=model)
    assert {name: some == total for name, (some, total) in counts.items()}.items() >= {
        "encoder.linear": True,
        "decoder.linear": True,
    }.items()
    assert not model.decoder.network[-1].conv.weight.any()


def test_an_output_layer_that_predicts_something_else_is_not_copied():
    config = replace(CONFIG, decoder="flow")
    model = CausalVAE(replace(config, flow=FlowConfig(prediction="velocity")))
    counts = copy_matching(trained(replace(config, flow=FlowConfig(prediction="x0"))), into=model)
    assert [name for name, (some, total) in counts.items() if some < total] == ["decoder.network"]
    assert not model.decoder.network[-1].conv.weight.any()


def test_other_models_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"`init` must be left out for a model that is no CausalVAE, but got 'a' with a L"
    ):
        load_source("a", into=nn.Linear(1, 1))
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    with pytest.raises(
        ValueError, match=r"`init` must be a run or weights of a CausalVAE, but got '.*', a AutoencoderKL"
    ):
        check_source(str(tmp_path))
    with pytest.raises(ValueError, match=r"but got '.*', which is none\. To train another model on, use `model`"):
        check_source(str(tmp_path / "nothing"))
