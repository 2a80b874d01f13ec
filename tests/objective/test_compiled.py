"""Compiled steps of the discriminators against eager ones, in float64 where nothing else is said."""

import copy

import pytest
import torch
import torch._inductor.config
from torch import nn
from torch._dynamo.backends.registry import lookup_backend

from telecine import PatchDiscriminator3D, VideoAutoencoderLoss
from telecine.base.randomness import clip_generators
from telecine.discriminators.blocks import _Conv3d
from telecine.losses import Penalty
from telecine.objective.compiled import compile_networks
from telecine.ops.compilation import Compiler

CPU = torch.device("cpu")


@pytest.fixture
def compiled_graphs():
    """Return a backend that only traces, and the list of its graphs."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    return backend, graphs


def patches(**options):
    torch.manual_seed(0)
    return PatchDiscriminator3D(**{"dim": 4, "num_layers": 1, "num_temporal_layers": 1, **options})


def make(discr_3d_kwargs=None, **options):
    defaults = {"disc_start": 0, "perceptual_weight": 0, "adversarial_loss_weight": 0.5, "grad_penalty_loss_weight": 10}
    adaptive = {"reference": "recon_and_perceptual"}
    video = patches() if discr_3d_kwargs is None else discr_3d_kwargs
    return VideoAutoencoderLoss(**{**defaults, **options}, discr_3d_kwargs=video, adaptive_weight=adaptive)


def figures(loss, *, dtype=torch.float64, amp=None, steps=(0, 1), size=(2, 16, 16)):
    """Return the losses, logs, gradients and buffers of an update at each of the steps."""
    loss = loss.to(dtype)
    found = []
    for step in steps:
        torch.manual_seed(step)
        real = torch.rand(2, 3, *size, dtype=dtype) * 2 - 1
        last = torch.eye(3, dtype=dtype)[:, :, None, None, None].requires_grad_()
        with torch.autocast("cpu", amp or torch.bfloat16, enabled=amp is not None):
            fake = nn.functional.conv3d(0.5 * real, last)
            both = loss.update(real, fake, step, last_layer=last, generator=clip_generators(0, [0, 1], CPU))
        both.loss.backward()
        both.disc_loss.backward()
        gradients = [weight.grad for weight in loss.get_trainable_parameters()]
        assert all(gradient is not None for gradient in gradients)
        values = [both.loss, both.disc_loss, last.grad, *both.log.values(), *both.disc_log.values(), *loss.buffers()]
        found += [value.detach().clone() for value in values + gradients]
        loss.zero_grad()
    return found


def compare(loss, backend, **options):
    expected = figures(copy.deepcopy(loss), **options)
    compile_networks(loss, Compiler(backend))
    with loss.compiler.update():
        found = figures(loss, **options)
    tolerance = {torch.bfloat16: 1e-2, torch.float32: 1e-4}.get(options.get("amp") or options.get("dtype"), 1e-9)
    for value, by_eager in zip(found, expected, strict=True):
        torch.testing.assert_close(value, by_eager, rtol=tolerance, atol=tolerance)
    return loss.compiler.functions


class Scaled(torch.autograd.Function):
    """The identity, whose backward is not that of the identity."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad_output):
        return 3 * grad_output


class Cheap(nn.Module):
    """A discriminator that is traced in a fraction of the time."""

    samples_are_independent = True

    def __init__(self):
        super().__init__()
        self.conv = _Conv3d(3, 2, 1)

    def forward(self, x):
        features = self.conv(Scaled.apply(x))
        return features.square().mean((1, 2, 3, 4)), [features]


def test_the_exact_penalty_and_own_backwards(compiled_graphs):
    """A weight that changes is no constant of the compiled code, and the backward of a function is the one written."""
    backend, graphs = compiled_graphs
    loss = make(Cheap(), grad_penalty_loss_weight={"weight": 2.0, "steps": 4}, penalty={"kind": "r1"})
    compare(loss, backend, steps=(1, 2, 4))
    assert len(graphs) == 1


# Together they reach each branch: all modes of gradients, drawn numbers, and known spectral norms.
OPTIONS = {
    "joint": {
        "penalty": {"kind": "wgan_gp"},
        "gan": {"loss": "vanilla", "lecam_loss_weight": 0.1, "feature_matching_loss_weight": 1.0},
    },
    "shared": {"penalty": {"kind": "approximate_r1"}, "gan": {"loss": "least_squares"}},
    "scales": {
        "multiscale_adversarial_loss_weight": {"weight": 0.5, "start": 2},
        "multiscale_discr_kwargs": lambda: (Cheap(),),
        "discr_3d_kwargs": lambda: patches(norm="spectral"),
        "grad_penalty_loss_weight": 0,
    },
}


@pytest.mark.parametrize(("name", "num_functions"), [("joint", 2), ("shared", 1), ("scales", 2)])
def test_options_equal_eager(name, num_functions, compiled_graphs):
    options = {key: value() if callable(value) else value for key, value in OPTIONS[name].items()}
    options = {"discr_3d_kwargs": Cheap(), **options}
    assert len(compare(make(**options), compiled_graphs[0])) == num_functions
    assert len(compiled_graphs[1]) >= num_functions


def test_half_precision(compiled_graphs):
    """Without autocast only where a penalty needs it: the two steps are two functions."""
    functions = compare(make(Cheap()), compiled_graphs[0], dtype=torch.float32, amp=torch.bfloat16)
    assert len(functions) == 2


def test_float16_is_refused_also_with_a_penalty(compiled_graphs):
    with pytest.raises(ValueError, match=r"`dynamo_backend` must be no with .* autocast to float16"):
        compare(make(Cheap()), compiled_graphs[0], dtype=torch.float32, amp=torch.float16)


def test_one_code_for_several_sizes(compiled_graphs):
    backend, graphs = compiled_graphs
    loss = make(Cheap(), grad_penalty_loss_weight=0)
    eager = copy.deepcopy(loss)
    compile_networks(loss, Compiler(backend, is_dynamic=True))
    for size in ((4, 16, 20), (6, 24, 16)):
        expected = figures(eager, steps=(0,), size=size)
        torch.testing.assert_close(figures(loss, steps=(0,), size=size), expected, rtol=1e-9, atol=1e-11)
    assert len(graphs) == 1


@pytest.mark.slow
def test_inductor(compiled_graphs):
    """Without kernels, each of which takes two seconds to compile: the operators are PyTorch's."""
    with torch._inductor.config.patch(fallback_by_default=True):
        compare(make(penalty={"kind": "r1"}), "inductor", dtype=torch.float32, steps=(0,))


class Branching(nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3, 4)) if x.mean() > 0 else -x.mean((1, 2, 3, 4))


def test_a_network_that_cannot_be_compiled(compiled_graphs):
    loss = make(nn.Sequential(nn.Conv3d(3, 1, 1), Branching()))
    compile_networks(loss, Compiler("aot_eager"))
    contract = "`dynamo_backend` must be no for what PyTorch cannot compile, but got aot_eager"
    with pytest.raises(ValueError, match=contract), loss.compiler.update():
        figures(loss)


def test_hooks_and_random_numbers_are_refused():
    def noisy(*, real, real_logits, generator=None):
        return real_logits.mean()

    loss = make(penalty={"kind": noisy})
    with pytest.raises(ValueError, match=r"`penalty.kind` must be without random numbers of its own"):
        compile_networks(loss, Compiler("aot_eager"))
    own = make(penalty={"kind": Penalty(noisy, noise=lambda real, generator: torch.zeros(()))})
    compile_networks(own, Compiler("aot_eager"))
    next(own.discr_3d.parameters()).register_hook(lambda gradient: gradient)
    with pytest.raises(ValueError, match="`dynamo_backend` must be no with hooks on the discriminators' parameters"):
        figures(own)


def test_without_gradients_nothing_is_compiled(compiled_graphs):
    backend, graphs = compiled_graphs
    loss = make()
    compile_networks(loss, Compiler(backend))
    real = torch.rand(1, 3, 2, 16, 16) * 2 - 1
    with torch.no_grad():
        value, _ = loss(real, real, 1, 0)
        expected, _ = make()(real, real, 1, 0)
    assert value == expected
    assert not graphs
