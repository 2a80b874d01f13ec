"""Nested channels: which are decoded in an update, and latents that are cut to some of them."""

from dataclasses import replace

import pytest
import torch

from telecine.base.randomness import clip_generators
from telecine.models import CausalVAE, DeterministicPosterior, LinearAutoencoder
from telecine.models.linear import PatchDecoder
from telecine.settings import CausalVAEConfig

PLAIN = CausalVAEConfig(2, 4, 6, patch_size=2, base_channels=8, blocks_per_level=1)
NESTED = replace(PLAIN, nested_channels=(2, 4))


def clips(batch, frames=3, size=8):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, 3, frames, size, size, generator=generator).cumsum(3).cumsum(4) / 4
    ).tanh()


def model(config=NESTED):
    torch.manual_seed(0)
    return CausalVAE(config)


def clips_of_six_components():
    """Return clips whose patches are sums of six orthogonal ones, each of which is half as large as the one before."""
    decoder = PatchDecoder(2, 4, 6, 3)
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(8, 6, 2, 4, 4, generator=generator) * 0.5 ** torch.arange(6).view(
        6, 1, 1, 1
    )
    with torch.no_grad():
        for layer in (decoder.first, decoder.rest):
            torch.nn.init.orthogonal_(layer.weight)
        return decoder(latent)


def test_a_linear_start_that_is_cut_is_the_linear_autoencoder_of_fewer_channels():
    video = clips_of_six_components()
    vae = model().eval()
    vae.copy_linear(vae.linear_autoencoder(3, 16, 16).fit([video]))
    latent = vae.encode(video).mode()
    errors = []
    for number in (2, 4, 6):
        decoded = vae.decode(latent[:, :number])
        torch.testing.assert_close(
            decoded, LinearAutoencoder(2, 4, number).fit([video])(video), atol=1e-3, rtol=0
        )
        errors.append((decoded - video).square().mean().item())
    assert errors[0] > 3 * errors[1] > 10 * errors[2]


def test_an_update_decodes_a_random_number_of_channels_of_each_clip():
    vae = model()
    video = clips(1).expand(24, -1, -1, -1, -1)

    def latent_of(first):
        return vae(
            video[first:], generator=clip_generators(0, range(first, 24), video.device)
        ).latent

    latent = latent_of(0)
    kept = (latent != 0).sum((2, 3, 4))  # of a clip's 2 x 2 x 2 positions
    numbers = (kept > 0).sum(1).tolist()
    assert {*numbers} == {2, 4, 6}
    assert all(
        row[:number].tolist() == [8] * number for row, number in zip(kept, numbers, strict=True)
    )
    assert torch.equal(latent_of(0), latent)
    assert torch.equal(latent_of(20) != 0, latent[20:] != 0), (
        "the numbers of a clip do not depend on its batch"
    )


def test_without_nested_channels_and_in_validation_all_are_decoded():
    video = clips(24)
    assert (model(PLAIN)(video).latent != 0).all()
    assert (model().eval()(video).latent != 0).all()
    assert (model()(video, sample_posterior=False).latent != 0).all()


def test_the_encoder_gets_no_gradient_of_channels_that_are_cut():
    vae = model(replace(PLAIN, nested_channels=(2,)))
    video = clips(8)
    torch.nn.init.normal_(vae.decoder.network[-1].conv.weight)
    latent = vae.encode(video).mode().detach().requires_grad_()
    output = vae(
        video,
        generator=clip_generators(0, range(8), video.device),
        posterior=DeterministicPosterior(latent),
    )
    output.video.square().sum().backward()
    is_cut = (output.latent[:, 2:] == 0).flatten(1).all(1)
    assert 0 < is_cut.sum() < 8
    assert (latent.grad[is_cut, 2:] == 0).all()
    assert (latent.grad[~is_cut] != 0).any(0).all()


def test_other_numbers_are_refused():
    latent = model().encode(clips(1)).mode()
    with pytest.raises(ValueError, match=r"`latent` must be of shape \(B, 6, T, H, W\)"):
        model().decode(latent[:, :3])
    for wrong in (
        {"nested_channels": (2, 6)},
        {"nested_channels": (2,), "bottleneck": "lfq", "lfq_bits": 3},
    ):
        with pytest.raises(
            ValueError, match=r"`nested_channels` must be multiples of [13] below the 6 `latent_cha"
        ):
            replace(PLAIN, **wrong)
