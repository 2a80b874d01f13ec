"""Grey and RGBA: what the terms and the discriminators see of them."""

import pytest
import torch
from torch import nn

from telecine import VideoAutoencoderLoss
from telecine.discriminators import FeatureDiscriminator, augment
from telecine.losses.perceptual import as_rgb
from telecine.settings import ClipConfig, DiscriminatorConfig, ObjectiveConfig
from telecine.training.build import build_objective


def clips(channels, batch=2, seed=0):
    return (
        torch.rand(batch, channels, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2
        - 1
    )


class Recorder:
    """A distance that records what it sees."""

    def __call__(self, *, reconstruction, target):
        self.seen = (reconstruction, target)
        return (reconstruction - target).square().flatten(1).mean(1)


def loss_of(channels, *, train=True, seed=0, distance=None):
    """Return the frames that the perceptual loss saw, and the gradient at the reconstruction."""
    distance = distance or Recorder()
    loss = VideoAutoencoderLoss(
        0, perceptual={"net": distance, "num_frames": "all", "chunk_size": 6}
    )
    real = clips(channels)
    fake = clips(channels, seed=1).requires_grad_()
    with torch.set_grad_enabled(train):
        total, _ = loss(real, fake, 0, 0, generator=torch.Generator().manual_seed(seed))
    if train:
        total.backward()
    return distance.seen, fake.grad, (real, fake)


def test_grey_is_repeated_and_rgb_and_others_are_left_alone():
    grey = clips(1)
    rgb = clips(3)
    two = clips(2)
    assert torch.equal(as_rgb(grey), grey.repeat(1, 3, 1, 1, 1))
    assert as_rgb(rgb) is rgb
    assert as_rgb(two) is two


def test_rgba_is_composited():
    video = clips(4)
    opaque, transparent = (
        torch.cat([video[:, :3], torch.full_like(video[:, 3:], alpha)], 1) for alpha in (1, -1)
    )
    assert torch.equal(as_rgb(opaque), opaque[:, :3])
    colour = torch.tensor([[0.5, 0.25, -1], [1, 0, 0]])
    expected = colour[:, :, None, None, None].expand_as(video[:, :3])
    assert torch.equal(as_rgb(transparent, colour), expected)
    assert not as_rgb(transparent).any()
    half = torch.cat([video[:, :3], torch.zeros_like(video[:, 3:])], 1)
    torch.testing.assert_close(as_rgb(half, colour), (expected + video[:, :3]) / 2)


def test_the_background_is_random_for_each_clip_and_that_of_both_videos():
    (reconstruction, target), gradient, (real, fake) = loss_of(4)
    alpha = (real[:, 3:] + 1) / 2
    frames = target.unflatten(0, (2, 3)).transpose(1, 2)
    background = (frames - alpha * real[:, :3]) / (1 - alpha)
    background = background.flatten(2).median(2).values
    torch.testing.assert_close(frames, as_rgb(real, background), atol=1e-4, rtol=1e-4)
    of_fake = reconstruction.detach().unflatten(0, (2, 3)).transpose(1, 2)
    torch.testing.assert_close(of_fake, as_rgb(fake.detach(), background), atol=1e-4, rtol=1e-4)
    assert (background[0] - background[1]).abs().min() > 0.01
    assert gradient[:, 3].abs().min() > 0
    assert torch.equal(loss_of(4)[0][1], target), "the generator decides"
    assert not torch.equal(loss_of(4, seed=1)[0][1], target)


def test_validation_sees_mid_grey():
    (_, target), _, (real, _) = loss_of(4, train=False)
    assert torch.equal(target.unflatten(0, (2, 3)).transpose(1, 2), as_rgb(real))


@pytest.mark.parametrize("channels", [1, 3])
def test_other_channels_draw_no_background(channels):
    first, second = (loss_of(channels, seed=seed)[0][1] for seed in (0, 1))
    assert torch.equal(first, second)
    assert first.shape == (6, 3, 16, 16)


@pytest.mark.parametrize("channels", ["grey", "rgba"])
@pytest.mark.parametrize("video", ["patch", "first_frame", "plain"])
def test_discriminators_see_all_channels(channels, video):
    config = DiscriminatorConfig(image="none", video=video, dim=4, max_dim=16)
    objective = ObjectiveConfig(0, perceptual_weight=0, adversarial_loss_weight=1.0)
    size = ClipConfig(3, 16, 16, channels=channels)
    loss = build_objective(objective, config, size)
    number = size.num_channels
    real, fake = (torch.rand(2, number, 3, 16, 16) for _ in range(2))
    both = loss.both_losses(real - 0.5, (fake - 0.5).requires_grad_(), 0)
    assert torch.isfinite(both.loss)
    both.disc_loss.backward()
    first = next(p for p in loss.get_trainable_parameters() if p.ndim > 1)
    assert first.shape[1] == number
    assert (first.grad.flatten(2).abs().sum((0, 2)) > 0).all(), "a channel has no gradient"


class Maps(nn.Module):
    """A network that knows RGB."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, frames):
        return [self.conv(frames)]


def test_frozen_features_are_of_the_composite():
    torch.manual_seed(0)
    network = FeatureDiscriminator(net=Maps(), base_channels=4).eval()
    video = clips(4).requires_grad_()
    logits = network(video).logits
    of_rgb = network(as_rgb(video)).logits
    assert torch.equal(logits, of_rgb)
    logits.sum().backward()
    assert video.grad[:, 3].abs().sum() > 0


def test_colours_change_and_alpha_does_not():
    real = clips(4)
    (changed,) = augment([real], ["color"], torch.Generator().manual_seed(0))
    (rgb,) = augment([real[:, :3]], ["color"], torch.Generator().manual_seed(0))
    assert torch.equal(changed[:, 3:], real[:, 3:])
    assert torch.equal(changed[:, :3], rgb)
    assert not torch.equal(rgb, real[:, :3])


def test_the_colours_of_transparent_pixels_are_outside_the_loss():
    real = clips(4)
    real[:, 3] = 1
    real[:, 3, :, :8] = -1
    gradients = []
    for colour in (0.0, 0.7):
        target = real.clone()
        target[:, :3, :, :8] = colour
        fake = clips(4, seed=1).requires_grad_()
        total, _ = VideoAutoencoderLoss(0, perceptual_weight=0.0)(target, fake, 0, 0)
        total.backward()
        gradients.append(fake.grad)
    assert torch.equal(*gradients)
    assert not gradients[0][:, :3, :, :8].any()
    assert gradients[0][:, 3].all()
    assert gradients[0][:, :3, :, 8:].all()
