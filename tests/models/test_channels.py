"""Models that get other channels keep what they knew."""

import pytest
import torch
from torch import nn

from telecine.base.yaml_files import read_yaml
from telecine.models import CausalVAE, as_video_autoencoder
from telecine.models.channels import change_channels
from telecine.models.diffusers import DiffusersAutoencoder
from telecine.models.load import load_autoencoder
from telecine.settings import CausalVAEConfig
from telecine.settings.parse import find_recipe

from .helpers import add_noise_to_weights
from .tiny_models import adapter, tiny_clip, tiny_model


def trained(**settings):
    torch.manual_seed(0)
    return add_noise_to_weights(CausalVAE(CausalVAEConfig(**settings)), 0.02)


def with_alpha(video):
    return torch.cat([video, torch.rand_like(video[:, :1]) * 2 - 1], dim=1)


def reconstruction(model, video):
    with torch.no_grad():
        return model.eval()(video, sample_posterior=False)


@pytest.mark.parametrize("size", [(9, 64, 64), (5, 24, 40), (1, 32, 32)])
def test_an_rgb_model_keeps_its_rgb_to_the_bit_with_an_opaque_alpha(size):
    model = trained(**read_yaml(find_recipe("demo"))["causal_vae"])
    video = torch.rand(2, 3, *size) * 2 - 1
    before = reconstruction(model, video)
    after = reconstruction(model.with_channels(4), with_alpha(video))
    assert torch.equal(after.latent, before.latent)
    assert torch.equal(after.video[:, :3], before.video)
    assert (after.video[:, 3] == 1).all()


SMALL = {
    "spatial_compression": 4,
    "base_channels": 16,
    "blocks_per_level": 1,
    "channel_multipliers": (1,),
}


@pytest.mark.parametrize("of_diffusers", [False, True])
def test_grey_is_seen_as_equal_colours_and_made_as_their_mean(of_diffusers):
    model = adapter("cogvideox") if of_diffusers else trained(**SMALL)
    grey = torch.rand(1, 1, 9, 16, 16) * 2 - 1
    before = reconstruction(model, grey.repeat(1, 3, 1, 1, 1))
    after = reconstruction(model.with_channels(1), grey)
    torch.testing.assert_close(
        after.video, before.video.mean(1, keepdim=True), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(after.latent, before.latent, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("number", [3, 4])
def test_a_grey_model_shows_grey(number):
    model = trained(in_channels=1, **SMALL)
    grey = torch.rand(1, 1, 5, 16, 16) * 2 - 1
    rgb = grey.repeat(1, 3, 1, 1, 1)
    after = reconstruction(
        model.with_channels(number), rgb if number == 3 else with_alpha(rgb)
    ).video
    expected = reconstruction(model, grey).video.expand_as(rgb)
    torch.testing.assert_close(after[:, :3], expected, atol=1e-5, rtol=1e-5)


def test_an_opaque_alpha_and_its_weights_learn():
    model = trained(**SMALL).with_channels(4).train()
    video = with_alpha(torch.rand(1, 3, 5, 16, 16) * 2 - 1)
    model(video).video.sub(video).square().mean().backward()
    first = model.encoder.network[0].conv.weight.grad.unflatten(1, (4, -1))
    last = model.decoder.network[-1].conv.weight.grad.unflatten(0, (4, -1)).transpose(0, 1)
    for gradient in (first, last):
        assert gradient.abs().amax((0, 2, 3, 4, 5)).min() > 0


@pytest.mark.parametrize("number", [1, 2, 3])
def test_rgba_models_and_other_numbers_are_refused(number):
    model = CausalVAE(CausalVAEConfig(in_channels=4 if number != 2 else 3, **SMALL))
    with pytest.raises(
        ValueError, match=r"`clips.channels` must be 1, 3 or 4 for a model that has 1 or 3"
    ):
        model.with_channels(number)


def test_custom_modules_and_layers_of_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"`clips.channels` must be 3 for Conv3d, but got 4"):
        as_video_autoencoder(nn.Conv3d(3, 3, 1)).with_channels(4)
    for has_patches, size in ((False, 6), (True, 4)):
        old = nn.Conv3d(size, 1, 1)
        new = nn.Conv3d(8, 1, 1)
        with pytest.raises(ValueError, match=r"the layer weight must be one that sees pixels"):
            change_channels(old.state_dict(), new, 3, 4, has_patches=has_patches)


WIDENED = (
    "cogvideox",
    "wan",
    "wan_residual",
    "hunyuan_video",
    "ltx_video",
    "magvit",
    "temporal_decoder",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDENED)
def test_a_model_of_diffusers_keeps_its_rgb_and_loads_there(name, tmp_path):
    model = adapter(name)
    video = tiny_clip(name)
    wider = model.with_channels(4)
    assert wider.in_channels == 4
    after = reconstruction(wider, with_alpha(video)).video
    torch.testing.assert_close(
        after[:, :3], reconstruction(model, video).video, atol=1e-5, rtol=1e-5
    )
    assert (after[:, 3] == 1).all()
    wider.save_pretrained(tmp_path)
    again = load_autoencoder(tmp_path)
    assert again.module.config.out_channels == model.module.config.out_channels * 4 // 3
    torch.testing.assert_close(again.state_dict(), wider.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
def test_a_class_that_names_the_channels_of_its_output_in_its_own_way():
    model = adapter("kvae_video")
    video = tiny_clip("kvae_video")
    after = reconstruction(model.with_channels(4), with_alpha(video)).video
    torch.testing.assert_close(after[:, :3], reconstruction(model, video).video)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cosmos", "mochi", "minimax_h3"])
def test_classes_whose_layers_see_more_than_pixels_are_refused(name):
    model = DiffusersAutoencoder(tiny_model(name))
    with pytest.raises(ValueError, match=r"sees pixels|for AutoencoderKLMiniMaxH3"):
        model.with_channels(4)


def test_gradient_checkpointing_with_other_channels():
    model = adapter("cogvideox").with_channels(4)
    model.enable_gradient_checkpointing()
    assert model.module.is_gradient_checkpointing
