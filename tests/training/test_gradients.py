import math

import pytest
import torch

from telecine.training.gradients import ADVERSARIAL_SHARE, ReconstructionGradient, is_about_gradients


def video():
    return torch.rand(2, 3, 4, 8, 8, requires_grad=True) * 1.0


def test_each_frame_is_measured_against_an_even_share():
    x = video()
    gradient = ReconstructionGradient(x)
    (x * torch.tensor([0.0, 1.0, 1.0, 2.0])[:, None, None]).sum().backward()
    assert list(gradient.log) == [f"train/frame_gradient_{frame:03d}" for frame in range(4)]
    assert [value.item() for value in gradient.log.values()] == pytest.approx([0.0, 1.0, 1.0, 2.0])


def test_the_last_backward_counts():
    x = video()
    gradient = ReconstructionGradient(x)
    torch.autograd.grad(x[:, :, 0].sum(), x, retain_graph=True)
    x.sum().backward()
    assert [value.item() for value in gradient.log.values()] == pytest.approx([1.0] * 4)


def test_a_single_frame_has_no_share():
    x = torch.rand(2, 3, 1, 8, 8, requires_grad=True) * 1.0
    gradient = ReconstructionGradient(x)
    x.sum().backward()
    assert gradient.log == {}


def test_the_discriminators_share():
    x = video()
    gradient = ReconstructionGradient(x)
    judged = x.view_as(x)
    judged.register_hook(gradient.see_adversarial)
    (3 * judged + x).sum().backward()
    assert gradient.log[ADVERSARIAL_SHARE].item() == pytest.approx(0.75)


def test_no_gradient_has_no_share_but_says_so():
    x = video()
    gradient = ReconstructionGradient(x)
    (0 * x).sum().backward()
    assert all(math.isnan(value) for value in gradient.log.values())
    assert all(is_about_gradients(name) for name in [*gradient.log, ADVERSARIAL_SHARE])
    assert not is_about_gradients("train/grad_norm")
