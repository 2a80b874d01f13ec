"""Eager gradients and an ordinary graph: the same values and the same gradients, over every value of every option."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from telecine import VideoAutoencoderLoss

options = runpy.run_path(str(Path(__file__).with_name("test_options.py")))
VIDEO, settings = options["VIDEO"], options["settings"]
CASES = [(name, value) for name, value in options["CASES"] if name != "eager_gradients"]


@pytest.fixture
def build(vgg, narrow_lpips, cached_weights):
    """Return a function that makes the loss of a case."""

    def make(name, value, **more):
        torch.manual_seed(0)
        return VideoAutoencoderLoss(**settings(name, value, vgg, narrow_lpips), **more)

    return make


def both_steps(loss, autoencoder, real, step, scale=1.0, autocast=None):
    """Return totals, logs and gradients of both steps; `scale` stands for a gradient scaler's."""
    results = []
    parameters = [*autoencoder.parameters(), *loss.parameters()]
    torch.manual_seed(step)
    for index in (0, 1):
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            fake = autoencoder(real)
            aux = {"kl_loss": autoencoder.encoder.weight.square().mean(), "codebook_loss": 0.1}
            total, log = loss(real, fake, index, step, aux, autoencoder.last_layer)
        for parameter in parameters:
            parameter.grad = None
        (scale * total).backward()
        gradients = [None if parameter.grad is None else parameter.grad / scale for parameter in parameters]
        results.append((total.detach(), log, gradients))
    return results


def assert_same(ours, theirs, rtol, atol):
    for (total, log, gradients), (total_2, log_2, gradients_2) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(total, total_2, rtol=rtol, atol=atol)
        torch.testing.assert_close(log, log_2, rtol=max(rtol, 1e-6), atol=max(atol, 1e-6))  # logs are float32
        assert [gradient is None for gradient in gradients] == [gradient is None for gradient in gradients_2]
        for gradient, gradient_2 in zip(gradients, gradients_2, strict=True):
            if gradient is not None:
                torch.testing.assert_close(gradient, gradient_2, rtol=rtol, atol=atol)


def test_how_many_cases_there_are():
    assert len(CASES) == 118


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}-{index}" for index, (name, _) in enumerate(CASES)])
def test_every_option(name, value, build, autoencoder, clip):
    autoencoder.double()
    size = 32 if name == "perceptual_net" else 16
    real = clip((2, 3, 3, size, size), dtype=torch.float64)
    results = []
    for eager in (True, False):
        loss = build(name, value, eager_gradients=eager).double()
        results.append([both_steps(loss, autoencoder, real, step, scale=2.0**10) for step in (0, 3)])
    for ours, theirs in zip(*results, strict=True):
        # Adaptive weights are ratios of float32 norms.
        assert_same(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_under_autocast(autocast, build, autoencoder, clip):
    """In float32 and bfloat16 gradients are eager; in float16 the graph is an ordinary one, for the caller's scale."""
    real = clip((2, 3, 3, 16, 16))
    results = []
    for eager in (True, False):
        loss = build("eager_gradients", eager, penalty={"every": 2})
        results.append(both_steps(loss, autoencoder, real, 1, scale=2.0**12, autocast=autocast))
    assert_same(*results, rtol=2e-2 if autocast else 1e-4, atol=1e-2 if autocast else 1e-5)


def update(loss, autoencoder, real, step):
    torch.manual_seed(step)
    fake = autoencoder(real)
    aux = {"kl_loss": autoencoder.encoder.weight.square().mean(), "codebook_loss": 0.1}
    both = loss.update(real, fake, step, aux, autoencoder.last_layer)
    results = []
    parameters = [*autoencoder.parameters(), *loss.parameters()]
    for total, log in (both[:2], both[2:]):
        for parameter in parameters:
            parameter.grad = None
        total.backward()
        results.append((total.detach(), log, [parameter.grad for parameter in parameters]))
    return results


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}-{index}" for index, (name, _) in enumerate(CASES)])
def test_an_update_is_both_steps(name, value, build, autoencoder, clip):
    """One frame a clip, so that the discriminators of frames see the same ones; spectral norms move in every pass."""
    autoencoder.double()
    size = 32 if name == "perceptual_net" else 16
    real = clip((2, 3, 1, size, size), dtype=torch.float64)
    results = []
    for run in (both_steps, update):
        loss = build(name, value).double().eval()
        results.append([run(loss, autoencoder, real, step) for step in (0, 3)])
    for ours, theirs in zip(*results, strict=True):
        assert_same(ours, theirs, rtol=1e-5, atol=1e-8)


def count_passes(loss, autoencoder, clip, **call):
    passes = []
    loss.discr_3d.register_forward_hook(lambda *_: passes.append(1))
    real = clip((2, 3, 3, 16, 16))
    loss.update(real, autoencoder(real), call.get("step", 0), last_layer=autoencoder.last_layer)
    return len(passes)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, 2),  # reconstructions once, real clips once
        ({"grad_penalty_loss_weight": 1}, 2),
        ({"eager_gradients": False}, 3),
        ({"gan": {"lecam_loss_weight": 1}}, 3),
        ({"grad_penalty_loss_weight": 1, "penalty": {"kind": "r2"}}, 3),
        ({"gan": {"loss": "relativistic"}}, 4),
        ({"gan": {"feature_matching_loss_weight": 1}}, 3),
        ({"gan": {"disc_train_start": 1}}, 1),
        ({"disc_start": 1}, 2),
    ],
)
def test_how_often_a_discriminator_is_run(make_loss, autoencoder, clip, more, expected):
    loss = make_loss(**{"adversarial_loss_weight": 1, "discr_3d_kwargs": VIDEO, **more})
    assert count_passes(loss, autoencoder, clip) == expected


def saved_bytes(loss, *call, **more):
    """Return the most memory that the graphs of a step hold at once, weights left out, in bytes."""
    weights = [*loss.parameters(), *loss.perceptual_model.distance._frozen.values()]
    ignored = {weight.untyped_storage().data_ptr() for weight in weights}
    alive, peak = {}, 0

    def pack(tensor):
        nonlocal peak
        storage = tensor.untyped_storage()
        if storage.data_ptr() in ignored:
            return tensor
        alive.setdefault(storage.data_ptr(), [0, storage.nbytes()])[0] += 1
        peak = max(peak, sum(size for _, size in alive.values()))
        return Saved(tensor, alive)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: getattr(saved, "tensor", saved)):
        loss(*call, **more)[0].backward()
    return peak


class Saved:
    """A saved tensor that says when its graph lets it go."""

    def __init__(self, tensor, alive):
        self.tensor, self.alive = tensor, alive

    def __del__(self):
        pointer = self.tensor.untyped_storage().data_ptr()
        entry = self.alive[pointer]
        entry[0] -= 1
        if entry[0] == 0:
            del self.alive[pointer]


def test_memory_does_not_grow_with_the_number_of_frames(make_loss, clip):
    real, fake = clip((1, 3, 16, 32, 32)), clip((1, 3, 16, 32, 32), seed=2).requires_grad_()

    def peak(eager, frames):
        return saved_bytes(make_loss(perceptual={"num_frames": frames}, eager_gradients=eager), real, fake, 0, 0)

    assert peak(eager=True, frames=16) <= peak(eager=True, frames=1) + 3 * 4 * fake.numel()
    assert peak(eager=False, frames=16) > 8 * peak(eager=True, frames=16)


def test_memory_is_that_of_the_largest_term(make_loss, autoencoder, clip):
    real = clip((1, 3, 4, 32, 32))

    def peak(eager):
        network = {**VIDEO, "dim": 8, "image_size": 32}
        loss = make_loss(adversarial_loss_weight=1, discr_3d_kwargs=network, eager_gradients=eager)
        return saved_bytes(loss, real, autoencoder(real), 0, 0, last_layer=autoencoder.last_layer)

    assert peak(eager=True) < 0.7 * peak(eager=False)


class Judge(nn.Module):
    """A discriminator of somebody's own, whose weight is a sum as reparametrisations have it."""

    samples_are_independent = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.base = nn.Parameter(0.2 * torch.randn(6, 3, 3, 3, 3))
        self.delta = nn.Parameter(torch.zeros(6, 3, 3, 3, 3))
        self.positions = nn.Parameter(torch.zeros(1, 3, 4, 16, 16))
        self.out = nn.Linear(6, 1)

    def forward(self, x):
        y = nn.functional.conv3d(x + self.positions, self.base + self.delta)
        return self.out(y.relu().mean((2, 3, 4))).squeeze(1)


def judged(judge, **more):
    weights = {"perceptual_weight": 0, "adversarial_loss_weight": 1.0}
    return VideoAutoencoderLoss(0, discr_3d_kwargs=judge, **{**weights, **more})


def discriminators_gradients(loss, real, fake, step=0):
    """Return them by the discriminators' step, and by an update of both."""
    found = []
    for take in (lambda: loss(real, fake, 1, step)[0], lambda: loss.update(real, fake, step).disc_loss):
        loss.zero_grad()
        take().backward()
        found.append([parameter.grad for parameter in loss.get_trainable_parameters()])
    return found


@pytest.fixture
def pair(clip):
    real = clip((2, 3, 4, 16, 16))
    return real, (0.9 * real + 0.05).requires_grad_()


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_weights_that_are_a_sum(weight, pair):
    more = {"grad_penalty_loss_weight": weight}
    expected = discriminators_gradients(judged(Judge(), eager_gradients=False, **more), *pair)
    found = discriminators_gradients(judged(Judge(), **more), *pair)
    assert all(gradient.abs().max() > 0 for gradient in expected[0][:2])
    torch.testing.assert_close(found, expected)


def test_hooks_on_parameters_are_called_once(pair):
    judges = Judge(), Judge()
    calls = []
    for judge in judges:
        judge.out.weight.register_hook(lambda gradient: calls.append(0) or 0.5 * gradient)
    expected = discriminators_gradients(judged(judges[0], eager_gradients=False), *pair)
    assert len(calls) == 2
    torch.testing.assert_close(discriminators_gradients(judged(judges[1]), *pair), expected)
    assert len(calls) == 4


@pytest.mark.parametrize("eager", [False, True])
def test_a_discriminator_that_does_not_train(eager, pair):
    loss = judged(Judge().requires_grad_(False), eager_gradients=eager)
    assert discriminators_gradients(loss, *pair) == [[None] * 5] * 2
    total, log = loss(*pair, 1, 0)
    assert total.item() == log["train/total_disc_loss"].item() > 0


@pytest.mark.parametrize("eager", [False, True])
def test_an_update_without_gradients_for_the_autoencoder(eager, pair):
    """As with a frozen autoencoder, while discriminators warm up."""
    real, fake = pair[0], pair[1].detach()
    loss = judged(Judge(), learn_logvar=True, eager_gradients=eager)
    both = loss.update(real, fake, 0)
    both.loss.backward()
    assert loss.logvar.grad is not None
    assert all(parameter.grad is None for parameter in loss.discr_3d.parameters())
    both.disc_loss.backward()
    found = [parameter.grad.clone() for parameter in loss.discr_3d.parameters()]
    loss.zero_grad()
    loss(real, fake, 1, 0)[0].backward()
    torch.testing.assert_close(found, [parameter.grad for parameter in loss.discr_3d.parameters()])


def test_a_discriminator_that_has_nothing_to_learn_gets_no_gradient_at_all(pair):
    """Where the hinge is satisfied; only the generator's loss still pulls."""

    class Sure(nn.Module):
        samples_are_independent = True

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1, bias=False)
            nn.init.constant_(self.linear.weight, 10.0)

        def forward(self, x):
            return self.linear(x.mean((2, 3, 4))).squeeze(1)

    real = torch.full_like(pair[0], 0.5)
    found = discriminators_gradients(judged(Sure(), grad_penalty_loss_weight=0.0), real, (-real).requires_grad_())
    assert [gradients[0].tolist() for gradients in found] == [[[0.0] * 3]] * 2


def test_kept_logs_do_not_change(pair):
    real, fake = pair
    loss, aux = judged(Judge(), learn_logvar=True), torch.tensor(1.0)
    total, log = loss(real, fake, 0, 0, {"commitment": aux})
    before = {name: value.item() for name, value in log.items()}
    with torch.no_grad():
        loss.logvar.add_(5.0)
        aux.add_(3.0)
    total /= 4
    assert {name: value.item() for name, value in log.items()} == before


def test_masks_and_weights_of_inference_mode(pair):
    with torch.inference_mode():
        mask, weight = torch.ones(2, 1, 4, 1, 1, dtype=torch.bool), torch.ones(2)
    loss = judged(Judge())
    for more in ({"mask": mask}, {"sample_weight": weight}):
        loss(*pair, 0, 0, **more)[0].backward()
        torch.testing.assert_close(loss(*pair, 0, 0, **more)[0], loss(*pair, 0, 0)[0])
