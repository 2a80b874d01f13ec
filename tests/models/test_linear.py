"""The linear baseline: its latent is that of a causal autoencoder, and no linear map of the patches is better."""

import pytest
import torch

from telecine.models import LinearAutoencoder

from .helpers import last_frames_read


def clips(num=6, frames=5, size=8, seed=0):
    """Return clips whose pixels are correlated, `(num, 3, frames, size, size)`."""
    noise = torch.randn(num, 3, frames, size, size, generator=torch.Generator().manual_seed(seed))
    return noise.cumsum(2).cumsum(3).cumsum(4) / 8


def error(model, video):
    return (model(video) - video).square().mean().item()


@pytest.mark.parametrize("first_frame_apart", [True, False])
def test_all_components_reconstruct_exactly(first_frame_apart):
    video = clips(40, frames=5 if first_frame_apart else 4, size=4)
    model = LinearAutoencoder(2, 2, 24, first_frame_apart=first_frame_apart).fit([video])
    assert model.encode(video).shape == (40, 24, 3 if first_frame_apart else 2, 2, 2)
    torch.testing.assert_close(model(video), video, rtol=0, atol=1e-4)
    assert ("encoder.first.weight" in model.state_dict()) == first_frame_apart
    contract = (
        r"`video` must be of 1 \+ 2 k frames"
        if first_frame_apart
        else "`video` must be of 2 k frames"
    )
    with pytest.raises(ValueError, match=f"{contract}, and of multiples of 2 pixels"):
        model(video[:, :, :-1] if not first_frame_apart else video[:, :, :4])


def test_the_error_is_the_variance_that_is_left():
    video = clips(20, frames=3, size=4)
    model = LinearAutoencoder(2, 2, 3).fit([video])
    patches = model.encoder.patches(video)[1].flatten(0, -2).double()
    singular = torch.linalg.svdvals(patches - patches.mean(0))
    left = singular[3:].square().sum() / patches.numel()
    measured = (model(video)[:, :, 1:] - video[:, :, 1:]).square().mean()
    torch.testing.assert_close(measured.double(), left, rtol=1e-4, atol=0)


def test_fitting_is_streaming_and_keeps_the_random_state():
    video = clips(6)
    whole = LinearAutoencoder(4, 4, 5)
    parts = LinearAutoencoder(4, 4, 5)
    before = torch.get_rng_state()
    whole.fit([video])
    parts.fit(video.split(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(whole(video), parts(video), rtol=1e-4, atol=1e-4)


def test_a_latent_frame_depends_on_its_own_frames():
    video = clips(2, frames=9)
    model = LinearAutoencoder(4, 4, 5).fit([video])
    video.requires_grad_()
    assert last_frames_read(model.encode(video), video) == [0, 4, 8]


def test_the_latent_has_unit_variance():
    video = clips(40, frames=5)
    latent = LinearAutoencoder(4, 4, 5).fit([video]).encode(video)
    for part in (latent[:, :, :1], latent[:, :, 1:]):
        rows = part.transpose(0, 1).flatten(1)
        torch.testing.assert_close(rows.mean(1), torch.zeros(5), rtol=0, atol=1e-3)
        torch.testing.assert_close(rows.std(1), torch.ones(5), rtol=1e-2, atol=0)


def test_more_channels_than_values_of_a_patch():
    video = clips(40, frames=3, size=4)
    model = LinearAutoencoder(2, 2, 14).fit([video])
    assert (model.encode(video)[:, 12:, 0] == 0).all()
    torch.testing.assert_close(model(video)[:, :, 0], video[:, :, 0], rtol=0, atol=1e-4)


def test_of_a_large_clip_a_random_part_is_kept():
    """Of 3 x 1 x 512 x 512 values a third: the components are nearly those of all, and the same each time."""
    large = clips(1, frames=1, size=512)
    model = LinearAutoencoder(1, 4, 6).fit([large])
    assert torch.equal(model(large), LinearAutoencoder(1, 4, 6).fit([large])(large))
    parts = large.unflatten(3, (8, 64)).movedim(3, 0).flatten(0, 1)  # none of which is cut
    assert error(model, large) == pytest.approx(
        error(LinearAutoencoder(1, 4, 6).fit([parts]), large), rel=0.05
    )


def test_large_patches_of_few_clips():
    video = clips(3, frames=9, size=32)
    model = LinearAutoencoder(8, 32, 5).fit([video])
    # Three patches of 24576 values span two directions around their mean.
    torch.testing.assert_close(model(video)[:, :, 1:], video[:, :, 1:], rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: LinearAutoencoder(0, 8, 4), "`time_compression` must be a positive int"),
        (
            lambda: LinearAutoencoder(4, 4, 3).fit([]),
            "`clips` must be at least one clip, but got none",
        ),
        (
            lambda: LinearAutoencoder(4, 4, 3)(torch.zeros(1, 3, 5, 6, 8)),
            "and of multiples of 4 pixels",
        ),
        (
            lambda: LinearAutoencoder(4, 4, 3)(torch.zeros(1, 3, 5, 8, 6)),
            "and of multiples of 4 pixels",
        ),
    ],
)
def test_errors(use, message):
    with pytest.raises(ValueError, match=message):
        use()
