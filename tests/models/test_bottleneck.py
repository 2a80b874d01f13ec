"""Discrete bottlenecks: codes, their numbers, gradients, the linear start, training, and errors."""

import sys
from dataclasses import replace

import pytest
import torch

from telecine.models import CausalVAE, LinearAutoencoder, load_autoencoder
from telecine.models.bottleneck import build_bottleneck
from telecine.settings import CausalVAEConfig

BASE = CausalVAEConfig(2, 4, 6, patch_size=2, base_channels=8, blocks_per_level=1)
FSQ = replace(BASE, bottleneck="fsq", fsq_levels=(5, 4, 3))
LFQ = replace(BASE, bottleneck="lfq", lfq_bits=3)
ONE_CODE = {"fsq": replace(FSQ, latent_channels=3), "lfq": replace(LFQ, latent_channels=3)}
BOTH = pytest.mark.parametrize("config", [FSQ, LFQ], ids=["fsq", "lfq"])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clip(batch=2, frames=3, size=8, seed=1):
    return (random(batch, 3, frames, size, size, seed=seed).cumsum(3).cumsum(4) / 4).tanh()


def model(config):
    torch.manual_seed(0)
    return CausalVAE(config)


def test_known_values():
    z = torch.tensor([-9.0, -0.3, 0.01, 9.0]).view(1, 1, 1, 1, 4)
    fsq = build_bottleneck(replace(FSQ, latent_channels=1, fsq_levels=(5,)))
    assert fsq.quantize(z).flatten().tolist() == pytest.approx([-1.0, -0.5, 0.0, 1.0])
    assert fsq.indices(fsq.quantize(z)).flatten().tolist() == [0, 1, 2, 4]
    lfq = build_bottleneck(replace(LFQ, latent_channels=1, lfq_bits=1)).eval()
    assert lfq.quantize(z).flatten().tolist() == [-1, -1, 1, 1]
    assert lfq.indices(lfq.quantize(z)).flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "config", [FSQ, LFQ, *ONE_CODE.values()], ids=["fsq", "lfq", "one fsq", "one lfq"]
)
def test_codes_have_numbers_and_numbers_have_codes(config):
    bottleneck = build_bottleneck(config).eval()
    codes = bottleneck.quantize(2 * random(2, config.latent_channels, 3, 16, 16))
    indices = bottleneck.indices(codes)
    assert indices.shape == (2, config.latent_channels // 3, 3, 16, 16)
    assert indices.dtype == torch.int64
    assert set(indices.flatten().tolist()) == set(range(60 if config.bottleneck == "fsq" else 8))
    torch.testing.assert_close(bottleneck.latent(indices), codes)
    assert torch.equal(bottleneck.indices(bottleneck.latent(indices)), indices)


def test_the_gradient_passes_straight_through():
    z = random(1, 6, 1, 2, 2).requires_grad_()
    weight = random(1, 6, 1, 2, 2, seed=1)
    (weight * build_bottleneck(LFQ).quantize(z)).sum().backward()
    torch.testing.assert_close(z.grad, weight)
    # Of FSQ it is that of the bound, without the rounding.
    z.grad = None
    (weight * build_bottleneck(FSQ).quantize(z)).sum().backward()
    levels = torch.tensor([5.0, 4.0, 3.0] * 2).view(6, 1, 1, 1)
    half = (levels - 1) * 1.001 / 2
    offset = torch.where(levels % 2 == 0, 0.5, 0.0)
    slope = half * (1 - torch.tanh(z + torch.atanh(offset / half)).square()) / (levels // 2)
    torch.testing.assert_close(z.grad, weight * slope)


@BOTH
def test_the_latent_of_the_model_is_quantized_and_saved(config, tmp_path):
    vae = model(config).eval()
    output = vae(clip())
    codes = vae.codebook.latent(vae.codebook.indices(output.latent))
    torch.testing.assert_close(output.latent, codes)
    assert torch.equal(output.latent, vae.encode(clip()).mode())
    vae.save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path).eval()
    assert loaded.config == config
    assert torch.equal(loaded(clip()).video, output.video)


def test_auxiliary_losses():
    video = clip()
    assert model(FSQ)(video).aux == {}
    vae = model(LFQ)
    losses = vae(video).aux
    # The entropy of 8 codes is at most log 8.
    assert losses["commitment_loss"] > 0
    assert -0.1 * torch.log(torch.tensor(8.0)) <= losses["entropy_loss"] < 0
    without = model(replace(LFQ, lfq_entropy_weight=0.0, lfq_commitment_weight=0.5))(video).aux
    assert without["entropy_loss"] == 0
    torch.testing.assert_close(without["commitment_loss"], 2 * losses["commitment_loss"])
    assert vae.eval()(video).aux == {}


@BOTH
def test_the_linear_start_is_fitted_to_the_codes(config):
    video = clip(batch=24)
    vae = model(config).eval()
    linear = vae.linear_autoencoder(3, 8, 8).fit([video])
    vae.copy_linear(linear)
    torch.testing.assert_close(vae(video).video, linear(video))
    unfitted = LinearAutoencoder(2, 4, 6).fit([video]).decode(linear.encode(video))
    assert (linear(video) - video).square().mean() < 0.95 * (unfitted - video).square().mean()


def test_a_missing_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(
        ValueError, match=r"without the package vector-quantize-pytorch, but got 'fsq'.*pip install"
    ):
        CausalVAE(FSQ)
    CausalVAE(BASE)


def test_lookup_free_quantization_does_not_train_on_several_processes(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match='must be "fsq" or "gaussian" on several processes'):
        model(LFQ)(clip())
    model(LFQ).eval()(clip())
    model(FSQ)(clip())
