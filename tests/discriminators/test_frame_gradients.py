"""The relative gradient of each frame."""

import jaxtyping
import pytest
import torch
from torch import nn

from telecine.discriminators import (
    Discriminator3D,
    Discriminator3DWithfirstframe,
    PatchDiscriminator3D,
    frame_gradients,
)


class Weighted(nn.Module):
    """Logits are a weighted sum of frames."""

    def __init__(self, *weights, wrap=lambda logits: logits):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))
        self.wrap = wrap

    def forward(self, x):
        return self.wrap((x.mean((1, 3, 4)) * self.weights).sum(1))


WRAPS = {
    "logits": lambda logits: logits,
    "pair": lambda logits: (logits, ()),
    "patches": lambda logits: logits[:, None, None] / torch.full((2, 2), 4.0),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_sum_of_frames(wrap):
    relative = frame_gradients(Weighted(3.0, -1.0, 0.0, 0.5, wrap=wrap), torch.randn(2, 3, 4, 5, 6))
    torch.testing.assert_close(relative, torch.tensor([3.0, 1.0, 0.0, 0.5]) / 1.125)


def test_equals_a_loop_over_frames():
    torch.manual_seed(0)
    network = PatchDiscriminator3D(dim=2).double()
    video = torch.randn(3, 3, 6, 16, 16, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(video).logits.sum(), video)
    norms = torch.stack([sum(gradient[b, :, t].norm() for b in range(3)) / 3 for t in range(6)])
    relative = frame_gradients(network, video.detach())
    torch.testing.assert_close(relative, norms / (norms.sum() / 6))
    assert relative.mean().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("mode", "training"), [(torch.no_grad, True), (torch.inference_mode, False), (torch.enable_grad, True)]
)
def test_the_network_is_not_changed(mode, training):
    network = Discriminator3D(dim=1, image_size=16, frame_num=4).train(training)
    with mode():
        video = torch.randn(1, 3, 4, 16, 16)
        relative = frame_gradients(network, video)
    assert relative.shape == (4,)
    assert not relative.requires_grad
    assert not video.requires_grad
    assert network.training is training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_zero_gradients():
    assert frame_gradients(Weighted(0.0, 0.0), torch.randn(1, 3, 2, 4, 4)).tolist() == [0, 0]


def test_half_precision():
    network = Discriminator3D(dim=1, image_size=16, frame_num=4)
    video = torch.randn(1, 3, 4, 16, 16)
    expected = frame_gradients(network, video)
    relative = frame_gradients(network.bfloat16(), video.bfloat16())
    assert relative.dtype == torch.float32
    torch.testing.assert_close(relative, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("video", [torch.zeros(3, 2, 4, 4), torch.zeros(1, 3, 2, 4, 4, dtype=torch.uint8), None])
def test_error_for_something_else_than_a_video(video, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="`video` must be a floating-point tensor"):
        frame_gradients(Weighted(1.0, 1.0), video)


def test_error_for_something_else_than_a_discriminator():
    with pytest.raises(TypeError, match="`output` must be a tensor of logits"):
        frame_gradients(Weighted(1.0, 1.0, wrap=lambda logits: {"logits": logits}), torch.zeros(1, 3, 2, 4, 4))


def first_to_others(make, time, seeds=3):
    """Return the first frame's value divided by the mean of the others, averaged over networks."""
    total = 0.0
    for seed in range(seeds):
        torch.manual_seed(seed)
        relative = frame_gradients(make(), torch.randn(1, 3, time, 32, 32))
        total += (relative[0] / relative[1:].mean()).item()
    return total / seeds


@pytest.mark.slow
def test_the_first_frame_as_published_and_with_both_options():
    """As published, the first frame alone is one of two positions and has over ten times the gradient (17 frames)."""
    ratios = [
        first_to_others(
            lambda options=options: Discriminator3DWithfirstframe(dim=4, image_size=64, frame_num=17, **options),
            time=17,
        )
        for options in ({}, {"time_weighting": "frames"}, {"time_weighting": "frames", "pad_mode": "constant"})
    ]
    assert ratios[0] > 10
    assert 2 < ratios[1] < 4
    assert 1 < ratios[2] < 2


def test_patches_weigh_the_first_frame_almost_equally():
    assert 0.4 < first_to_others(lambda: PatchDiscriminator3D(dim=4), time=17) < 1
