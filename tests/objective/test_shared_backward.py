"""One backward for both steps has the gradients of two, also where the discriminator's loss has none."""

import pytest
import torch
from torch import nn

from telecine.losses import GAN_LOSSES, SeparableGANLoss
from telecine.objective.shared_backward import shared_backward
from telecine.ops.eager_gradients import GradientSum


class TanhDiscriminator(nn.Module):
    """Discriminates frames (3, 8, 8); adds a fixed bias to each sample's logit."""

    samples_are_independent = True

    def __init__(self, biases):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 1))
        self.biases = torch.tensor(biases)

    def forward(self, x):
        return self.net(x).flatten() + self.biases.to(x.dtype)


def both_gradients(loss, logits, x, parameters):
    generator = loss.compute_generator_loss(fake_logits=logits)
    discriminator = loss.compute_discriminator_loss(real_logits=None, fake_logits=logits)
    gradient_sum = GradientSum(parameters)
    grad_x = shared_backward(generator, discriminator, logits, x, gradient_sum, retain_graph=False)
    return grad_x, gradient_sum.gradients


def two_backwards(loss, discriminator, x):
    logits = discriminator(x)
    losses = loss(real=logits.detach(), fake=logits)
    (grad_x,) = torch.autograd.grad(losses.generator, x, retain_graph=True)
    return grad_x, torch.autograd.grad(losses.discriminator, list(discriminator.parameters()))


# Beyond the hinge's margin, as -3 and -9 are, the discriminator's loss has no gradient, the generator's has one.
@pytest.mark.parametrize(
    "biases", [[0.0, 0.5, 2.0], [0.0, -3.0, -9.0], [-3.0, -9.0, -4.0], [9.0, 40.0, -40.0]]
)
@pytest.mark.parametrize("name", ["hinge", "vanilla", "least_squares"])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_both_gradients_are_those_of_two_backwards(name, biases, dtype, rtol):
    torch.manual_seed(0)
    discriminator = TanhDiscriminator(biases).to(dtype)
    x = torch.randn(3, 3, 8, 8, dtype=dtype, requires_grad=True)
    parameters = list(discriminator.parameters())
    expected_x, expected = two_backwards(GAN_LOSSES[name], discriminator, x)
    grad_x, gradients = both_gradients(GAN_LOSSES[name], discriminator(x), x, parameters)
    cancelled = (
        rtol * expected_x.abs().max().item()
    )  # elements that are small differences of large ones
    torch.testing.assert_close(grad_x, expected_x, rtol=rtol, atol=cancelled)
    largest = max(gradient.abs().max().item() for gradient in expected)
    assert (largest > 0) == (name != "hinge" or max(biases) > -1)
    torch.testing.assert_close(gradients, list(expected), rtol=rtol, atol=1e-10)


def test_no_gradient_of_either_loss():
    def zero(logits):
        return (0 * logits).sum()

    constant = SeparableGANLoss(real=zero, fake=zero, generator=zero)
    discriminator = TanhDiscriminator([0.0, 1.0])
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    grad_x, gradients = both_gradients(
        constant, discriminator(x), x, list(discriminator.parameters())
    )
    assert grad_x.eq(0).all()
    assert all(gradient.eq(0).all() for gradient in gradients)
