"""The linear baseline: its latent is that of a causal autoencoder, and no linear map of the patches is better."""

import pytest
import torch

from telecine.autoencoders.linear import LinearAutoencoder


def clips(num=6, frames=5, size=8, seed=0):
    """Return clips whose pixels are correlated, `(num, 3, frames, size, size)`."""
    noise = torch.randn(num, 3, frames, size, size, generator=torch.Generator().manual_seed(seed))
    return noise.cumsum(2).cumsum(3).cumsum(4) / 8


def error(model, video):
    return (model(video) - video).square().mean().item()


def test_the_latent_of_a_causal_autoencoder():
    model = LinearAutoencoder(4, 8, 16)
    latent = model.encode(torch.zeros(2, 3, 9, 32, 16))
    assert latent.shape == (2, 16, 3, 4, 2)
    assert model.decode(latent).shape == (2, 3, 9, 32, 16)


def test_all_components_reconstruct_exactly():
    video = clips(40, frames=2, size=4)
    model = LinearAutoencoder(1, 2, 12).fit([video])
    torch.testing.assert_close(model(video), video, rtol=0, atol=1e-4)


def test_the_error_is_the_variance_that_is_left():
    video = clips(20, frames=3, size=4)
    model = LinearAutoencoder(2, 2, 3).fit([video])
    patches = model._patches(video)[1].flatten(0, -2).double()
    singular = torch.linalg.svdvals(patches - patches.mean(0))
    left = singular[3:].square().sum() / patches.numel()
    measured = (model(video)[:, :, 1:] - video[:, :, 1:]).square().mean()
    torch.testing.assert_close(measured.double(), left, rtol=1e-4, atol=0)


def test_more_channels_are_better_and_one_is_better_than_the_mean():
    video = clips(20)
    errors = [error(LinearAutoencoder(4, 4, channels).fit([video]), video) for channels in (1, 2, 8, 24)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < (video - video.mean()).square().mean()


def test_fitting_is_streaming():
    video = clips(6)
    whole = LinearAutoencoder(4, 4, 5).fit([video])
    parts = LinearAutoencoder(4, 4, 5).fit(video[i : i + 1] for i in range(6))
    torch.testing.assert_close(whole(video), parts(video), rtol=1e-4, atol=1e-4)


def test_a_latent_frame_depends_on_its_own_frames():
    video = clips(2, frames=9)
    model = LinearAutoencoder(4, 4, 5).fit([video])
    changed = video.clone()
    changed[:, :, 5:] += 1
    before, after = model.encode(video), model.encode(changed)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.equal(before[:, :, 2], after[:, :, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 4), "`time_compression` must be a positive int"),
        ((4, 2, 13), "`latent_channels` must be at most 12"),
        ((8, 32, 128), "`the patch` must be of at most 4096 values, but got 8 x 32 x 32 pixels, 24576 values"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearAutoencoder(*arguments)


@pytest.mark.parametrize("shape", [(1, 3, 4, 8, 8), (1, 3, 5, 6, 8), (1, 3, 5, 8, 6)])
def test_bad_clips(shape):
    with pytest.raises(ValueError, match=r"`video` must be of 1 \+ 4 k frames, and of multiples of 4 pixels"):
        LinearAutoencoder(4, 4, 3)(torch.zeros(shape))


@pytest.mark.parametrize("given", [[], [torch.zeros(2, 3, 1, 8, 8)]])
def test_no_clips(given):
    with pytest.raises(ValueError, match="`clips` must be at least one clip of several frames"):
        LinearAutoencoder(4, 4, 3).fit(given)
