"""One backward serves both steps: the gradients are those of two."""

import pytest
import torch
from torch import nn

from telecine import Discriminator, PatchDiscriminator
from telecine.losses import GAN_LOSSES
from telecine.objective.shared_backward import can_share, cotangents, shared_backward

SEPARABLE = ("hinge", "vanilla", "least_squares")


class Judge(nn.Module):
    samples_are_independent = True

    def __init__(self, biases):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 1))
        self.biases = torch.tensor(biases)

    def forward(self, x):
        return self.net(x).flatten() + self.biases.to(x.dtype)


def separately(gan_loss, judge, view):
    logits = judge(view)
    duel = gan_loss(real=logits.detach(), fake=logits)
    (of_view,) = torch.autograd.grad(duel.generator, view, retain_graph=True)
    return of_view, torch.autograd.grad(duel.discriminator, list(judge.parameters()))


# Of the hinge, -3 and -9 are right by far: the discriminator's loss ignores them, the generator's does not.
@pytest.mark.parametrize("biases", [[0.0, 0.5, 2.0], [0.0, -3.0, -9.0], [-3.0, -9.0, -4.0], [9.0, 40.0, -40.0]])
@pytest.mark.parametrize("name", SEPARABLE)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_both_gradients_are_those_of_two_backwards(name, biases, dtype, rtol):
    torch.manual_seed(0)
    judge = Judge(biases).to(dtype)
    view = torch.randn(3, 3, 8, 8, dtype=dtype, requires_grad=True)
    expected_view, expected = separately(GAN_LOSSES[name], judge, view)
    of_view, of_parameters = shared_backward(
        GAN_LOSSES[name], judge(view), view, list(judge.parameters()), retain_graph=False
    )
    assert len(expected) == 4
    cancelled = rtol * expected_view.abs().max().item()  # where an element is the small rest of large ones
    torch.testing.assert_close(of_view, expected_view, rtol=rtol, atol=cancelled)
    largest = max(gradient.abs().max().item() for gradient in expected)
    assert (largest > 0) == (name != "hinge" or max(biases) > -1)
    for ours, theirs in zip(of_parameters, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-10)


def test_where_neither_step_pulls_there_is_no_gradient():
    def deaf(*, real, fake):
        return GAN_LOSSES["least_squares"](real=0 * real, fake=0 * fake)

    judge = Judge([0.0, 1.0])
    view = torch.randn(2, 3, 8, 8, requires_grad=True)
    of_view, of_parameters = shared_backward(deaf, judge(view), view, list(judge.parameters()), retain_graph=False)
    assert of_view.eq(0).all()
    assert all(gradient.eq(0).all() for gradient in of_parameters)


def test_the_cotangents_are_known_for_the_hinge():
    of_generator, of_discriminator = cotangents(GAN_LOSSES["hinge"], torch.tensor([0.0, -2.0]))
    assert of_generator.tolist() == [-0.5, -0.5]
    assert of_discriminator.tolist() == [0.5, 0.0]


@pytest.mark.parametrize("again", [False, True])
def test_the_graph_is_kept_only_if_asked(again):
    judge = Judge([0.0])
    view = torch.randn(1, 3, 8, 8, requires_grad=True)
    logits = judge(view)
    shared_backward(GAN_LOSSES["hinge"], logits, view, list(judge.parameters()), retain_graph=again)
    if again:
        logits.sum().backward()
        assert view.grad.abs().max() > 0
    else:
        with pytest.raises(RuntimeError, match="second time"):
            logits.sum().backward()


def test_who_can_share():
    view = torch.randn(2, 3, 16, 16, requires_grad=True)
    judge = Discriminator(dim=1, image_size=16, linear_attn_heads=2)
    logits = judge(view).logits
    assert can_share(judge, logits, view)
    assert not can_share(judge, logits, view.detach()), "nothing to share with"
    assert not can_share(judge, logits.half(), view), "its range is too small for a faint cotangent"
    assert not can_share(nn.BatchNorm2d(3), logits, view), "samples of another's network may see each other"
    patches = PatchDiscriminator(dim=1, num_layers=1)
    assert not can_share(patches, patches(view).logits, view), "a sample's logits pull with different strengths"
