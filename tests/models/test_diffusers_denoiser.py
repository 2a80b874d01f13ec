"""The small generator of latents: what it predicts, what it is trained for, and what is saved."""

import pytest
import torch
from torch import nn

from telecine.models import CausalVAE, DeterministicPosterior
from telecine.models.diffusers.denoiser import DENOISER_SIZES, LatentDenoiser
from telecine.settings import CausalVAEConfig, ProbeConfig
from telecine.settings.listing import choices_of, settings_of

CONFIG = CausalVAEConfig(4, 8, 4, 4, base_channels=8, blocks_per_level=1)
SHAPE = (4, 3, 4, 4)


def latents(num=2, seed=0):
    return 3 + 2 * torch.randn(num, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model():
    return build_model()


def build_model(**options):
    """Return a model whose last layer is not 0."""
    torch.manual_seed(0)
    model = LatentDenoiser(CausalVAE(CONFIG), latents(50), **options)
    nn.init.normal_(model.transformer.proj_out.weight)
    return model


def test_latents_are_normalised_by_channel(model):
    normalised = model.normalised(latents(50))
    assert normalised.mean((0, 2, 3, 4)).abs().max() < 1e-5
    assert normalised.std((0, 2, 3, 4), correction=0) == pytest.approx(torch.ones(4), abs=1e-5)
    torch.testing.assert_close(
        model.decode(normalised[:1]), model.encoder_model.decode(latents(50)[:1])
    )


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_a_causal_one_sees_no_later_frame(causal):
    model = build_model(causal=causal)
    noisy = latents()
    before = model.velocity(noisy, 0.5)
    noisy[:, :, 2:] *= -1
    after = model.velocity(noisy, 0.5)
    assert torch.allclose(before[:, :, :2], after[:, :, :2], atol=1e-5) == causal


def test_the_loss_is_that_of_the_velocity(model):
    model.train()
    posterior = DeterministicPosterior(latents())
    inputs = []
    model.transformer.register_forward_pre_hook(lambda _, arguments: inputs.extend(arguments))
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    output = model(torch.zeros(2, 3, 9, 32, 32), generator=generators, posterior=posterior)
    assert output.target.abs().max() <= 1
    clean = model.normalised(posterior.latent)
    level = inputs[1] / 1000
    t = level.view(-1, 1, 1, 1, 1)
    noisy = inputs[0] * ((1 - t).square() + t.square()).sqrt()
    noise = (noisy - (1 - t) * clean) / t
    expected = (model.velocity(noisy, level) - (noise - clean)).square().mean((1, 2, 3, 4))
    loss = output.weight * (output.video - output.target).square().mean((1, 2, 3, 4))
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-4)


def test_only_the_transformer_is_trained_and_saved(model, tmp_path):
    assert all(name.startswith("transformer.") for name, _ in model.named_parameters())
    assert not any(weight.requires_grad for weight in model.encoder_model.parameters())
    model.save_pretrained(tmp_path)
    other = LatentDenoiser(model.encoder_model, latents(10, seed=1))
    other.load_weights(tmp_path)
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(video).video, other.eval()(video).video)


def test_settings_name_every_size():
    kinds = {setting.name: setting.kind for setting in settings_of(ProbeConfig)}
    assert choices_of(kinds["size"]) == [*DENOISER_SIZES]
