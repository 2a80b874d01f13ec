"""The gradient penalties equal loops over samples and differences of logits; what they declare is true of them."""

import dataclasses
import functools
import math
from contextlib import nullcontext

import pytest
import torch

from telecine.losses import (
    GRAD_PENALTIES,
    Penalty,
    approximate_r1,
    as_penalty,
    gradient_penalty,
    wgan_gp,
)
from telecine.losses.penalty import PENALTY_INPUTS

from .harness import LossCase, LossTester, normal, random

IMAGE, VIDEO = (3, 2, 3, 2), (2, 2, 2, 2, 3)
SHAPES = [IMAGE, VIDEO]
SEED = 5
RANDOM = ("approximate_r1", "wgan_gp")
NAMES = ["approximate_r1", "one_centered", "r1", "r1_and_r2", "r2", "wgan_gp"]
penalties = pytest.mark.parametrize("name", NAMES)


def discriminator_of(hidden, bias, out):
    """Return a smooth discriminator with one logit per sample or a map of them."""

    def discriminator(x):
        logits = torch.tanh(2 * (x.flatten(1).to(hidden.dtype) @ hidden.T + bias)) @ out.T
        return logits.squeeze(1) if logits.shape[1] == 1 else logits.unflatten(1, (1, -1))

    return discriminator


def call(penalty, discriminator, real, fake, **options):
    """Return a penalty whose inputs require gradients only where it declares so."""
    x = real.detach().clone().requires_grad_(penalty.differentiates("real"))
    y = fake.detach().clone().requires_grad_(penalty.differentiates("fake"))
    if "generator" not in options and real.device.type == "cpu":
        options["generator"] = torch.Generator().manual_seed(SEED)
    return penalty(
        discriminator=discriminator,
        real=x,
        fake=y,
        real_logits=discriminator(x),
        fake_logits=discriminator(y),
        **options,
    )


def example(seed):
    """Return weights and inputs of a discriminator, of images or videos, with one logit or six."""
    shape, num_logits = SHAPES[seed % 2], (1, 6)[seed // 2 % 2]
    size = torch.Size(shape[1:]).numel()
    return {
        "hidden": random((6, size), seed) / size**0.5,
        "bias": random((6,), seed + 100),
        "out": random((num_logits, 6), seed + 200),
        "real": normal(shape, seed + 300),
        "fake": normal(shape, seed + 400),
    }


def squared_norm(discriminator, sample):
    x = sample.detach().clone()[None].requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x)
    return sum(element**2 for element in gradient.flatten().tolist())


def loop_over_samples(name, hidden, bias, out, real, fake):
    discriminator = discriminator_of(hidden, bias, out)
    generator = torch.Generator().manual_seed(SEED)
    epsilons = torch.rand(
        (len(real), *[1] * (real.ndim - 1)), generator=generator, dtype=real.dtype
    ).flatten()
    noises = torch.randn(real.shape, generator=generator.manual_seed(SEED), dtype=real.dtype)
    total = 0.0
    for x, y, epsilon, noise in zip(real, fake, epsilons.tolist(), noises, strict=True):
        if name == "one_centered":
            total += (squared_norm(discriminator, x) ** 0.5 - 1) ** 2
        if name in ("r1", "r1_and_r2"):
            total += squared_norm(discriminator, x) / 2
        if name in ("r2", "r1_and_r2"):
            total += squared_norm(discriminator, y) / 2
        if name == "wgan_gp":
            total += (squared_norm(discriminator, epsilon * x + (1 - epsilon) * y) ** 0.5 - 1) ** 2
        if name == "approximate_r1":
            step = (discriminator((x + 0.01 * noise)[None]) - discriminator(x[None])).sum().item()
            total += (step / 0.01) ** 2 / 2
    return total / len(real)


PAIR_ERRORS = (
    (
        {"fake": normal((1, *IMAGE[1:]), 0)},
        "`fake` must be of `real`'s shape (3, 2, 3, 2), but got a torch.float64 tensor of shape (1, 2, 3, 2) on cpu. "
        "Pass as many real samples as fakes to the discriminator.",
    ),
)


def penalty_case(name):
    penalty = GRAD_PENALTIES[name]
    flat = {**example(0), "out": torch.zeros(1, 6, dtype=torch.float64)}
    return LossCase(
        name=name,
        loss=lambda *, hidden, bias, out, real, fake: call(
            penalty, discriminator_of(hidden, bias, out), real, fake
        ),
        example=example,
        reference=lambda **inputs: loop_over_samples(name, **inputs),
        learns=("hidden", "bias", "out"),
        # A discriminator that ignores its input.
        optima=((flat, 1.0 if name in ("one_centered", "wgan_gp") else 0.0),),
        increasing=tuple(
            {**example(0), "out": scale * example(0)["out"]} for scale in (10, 20, 40)
        ),
        errors=PAIR_ERRORS if name == "wgan_gp" else (),
        # A half-precision discriminator has inexact gradients. Random numbers depend on the dtype.
        half_rel=math.inf if name in RANDOM else 0.1,
        function=penalty.function,
    )


class TestPenalties(LossTester):
    cases = tuple(penalty_case(name) for name in NAMES)

    @pytest.mark.slow  # third derivatives
    def test_gradcheck(self, case):
        super().test_gradcheck(case)

    def test_every_penalty_has_a_case(self):
        assert sorted(GRAD_PENALTIES) == NAMES
        for name, penalty in GRAD_PENALTIES.items():
            assert penalty.function.__name__ == name


# What a penalty declares decides what the objective prepares for it.


@pytest.fixture
def inputs():
    return example(0)


@pytest.fixture
def discriminator(inputs):
    inputs["hidden"].requires_grad_()
    return discriminator_of(inputs["hidden"], inputs["bias"], inputs["out"])


@penalties
@pytest.mark.parametrize("missing", ["real", "fake"])
def test_inputs_must_require_gradients_exactly_where_declared(name, missing, inputs, discriminator):
    penalty = GRAD_PENALTIES[name]
    arguments = {key: inputs[key].requires_grad_(key != missing) for key in ("real", "fake")}
    logits = {f"{key}_logits": discriminator(x) for key, x in arguments.items()}
    message = (
        "the input of D must be a tensor that requires gradients, but got .* Call `requires_grad_"
    )
    is_error = penalty.differentiates(missing)
    with pytest.raises(ValueError, match=message) if is_error else nullcontext():
        penalty(discriminator=discriminator, generator=None, **arguments, **logits)


@penalties
def test_the_penalty_depends_on_fakes_and_random_numbers_exactly_where_declared(
    name, inputs, discriminator
):
    def value(fake, seed):
        generator = torch.Generator().manual_seed(seed)
        return call(
            GRAD_PENALTIES[name], discriminator, inputs["real"], fake, generator=generator
        ).item()

    expected = value(inputs["fake"], 1)
    assert value(inputs["fake"], 1) == expected
    assert (value(inputs["real"], 1) != expected) == GRAD_PENALTIES[name].reads_fake
    assert (value(inputs["fake"], 2) != expected) == (name in RANDOM)


@penalties
def test_the_discriminator_is_called_only_for_further_inputs(name, inputs, discriminator):
    seen = []

    def counting(x):
        seen.append(x.shape)
        return discriminator(x)

    real = inputs["real"].requires_grad_()
    fake = inputs["fake"].requires_grad_()
    logits = {"real_logits": discriminator(real), "fake_logits": discriminator(fake)}
    value = GRAD_PENALTIES[name](
        discriminator=counting, real=real, fake=fake, **logits, generator=None
    )
    value.backward()
    assert seen == [real.shape] * (name in RANDOM)
    assert inputs["hidden"].grad.ne(0).any()
    if name == "wgan_gp":
        assert real.grad is fake.grad is None


class Once(torch.autograd.Function):
    """The sine, whose gradient cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * x.cos()


@penalties
def test_a_double_backward_runs_exactly_where_declared(name, inputs, discriminator):
    penalty = GRAD_PENALTIES[name]
    value = call(penalty, lambda x: discriminator(Once.apply(x)), inputs["real"], inputs["fake"])
    error = (
        pytest.raises(RuntimeError, match="once_differentiable")
        if penalty.double_backward
        else nullcontext()
    )
    with error:
        value.backward()


def test_a_function_gets_the_declaration_that_always_holds():
    def custom(*, real, real_logits, **_):
        return real_logits.mean()

    penalty = as_penalty(custom)
    assert penalty.inputs == PENALTY_INPUTS
    assert penalty.double_backward
    assert penalty.differentiates("real")
    assert penalty.differentiates("fake")
    assert as_penalty(penalty) is penalty
    assert as_penalty(functools.partial(custom)).gradient_at == "inputs"


def test_a_partial_of_a_built_in_penalty_keeps_its_declaration():
    function = functools.partial(approximate_r1, sigma=0.1)
    assert as_penalty(function) == dataclasses.replace(
        GRAD_PENALTIES["approximate_r1"], function=function
    )


def test_a_penalty_gets_the_arguments_that_it_has():
    arguments = {name: torch.tensor(float(number)) for number, name in enumerate(PENALTY_INPUTS)}
    assert Penalty(lambda fake, real: 10 * fake + real)(**arguments) == 21
    assert Penalty(lambda **tensors: torch.stack(list(tensors.values())).sum())(**arguments) == 15


# Half precision and autocast.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_a_finite_difference_is_not_lost_in_the_rounding_of_logits(dtype):
    inputs = {key: tensor.float() for key, tensor in example(2).items()}
    discriminator = discriminator_of(
        inputs["hidden"].requires_grad_(), inputs["bias"], inputs["out"]
    )
    x = inputs["real"].to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = call(GRAD_PENALTIES["approximate_r1"], discriminator, x, x)
        assert discriminator(x).dtype == torch.bfloat16
    expected = call(GRAD_PENALTIES["approximate_r1"], discriminator, x.float(), x.float())
    # bfloat16 would round the logits by more than their difference.
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0)
    gradients = [torch.autograd.grad(loss, inputs["hidden"])[0] for loss in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "expected"),
    [("r1", 4.5e6), ("r2", 4.5e6), ("r1_and_r2", 9e6), ("one_centered", 2999**2)],
)
def test_squares_are_summed_in_float32(dtype, name, expected):
    x = torch.zeros(2, 100, dtype=dtype, requires_grad=True)
    logits = (x * 300).sum(1)  # 300^2 = 90000 exceeds the range of float16
    value = GRAD_PENALTIES[name](real=x, fake=x, real_logits=logits, fake_logits=logits)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_logits_are_subtracted_in_float32():
    x = normal((2, 1, 4, 4), 1).float()
    logits = torch.full((2, 3), 256.0, dtype=torch.bfloat16)
    near_1 = torch.full(
        (2, 3), 1 + 2**-7, dtype=torch.bfloat16
    )  # bfloat16 cannot represent the difference to 256
    value = approximate_r1(discriminator=lambda x: near_1, real=x, real_logits=logits)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx((3 * (255 - 2**-7) / 0.01) ** 2 / 2, rel=1e-5)


# Interpolates and finite differences.


@pytest.fixture
def seen():
    """Return the inputs of `plane`."""
    return []


@pytest.fixture
def plane(seen):
    def discriminator(x):
        seen.append(x.detach())
        return x.flatten(1).sum(1)

    return discriminator


def test_interpolates_lie_between_real_and_fake_with_one_position_per_sample(plane, seen):
    real = torch.ones(200, 1, 2, 2)
    wgan_gp(discriminator=plane, real=real, fake=-real, generator=torch.Generator().manual_seed(0))
    position = seen[0].flatten(1)
    assert torch.equal(position, position[:, :1].expand_as(position))
    assert position.abs().max() <= 1
    assert position[:, 0].mean().abs() < 0.15  # uniform: the standard error is 0.04
    assert position[:, 0].std().item() == pytest.approx(3**-0.5, abs=0.06)


def test_interpolates_of_half_precision_lie_at_float32_positions(plane, seen):
    real = torch.full((50, 1), 3.0).bfloat16()
    fake = torch.full((50, 1), -1.0).bfloat16()
    wgan_gp(
        discriminator=plane, real=real, fake=fake, generator=torch.Generator().manual_seed(SEED)
    )
    positions = torch.rand((50, 1), generator=torch.Generator().manual_seed(SEED))
    assert torch.equal(seen[0], (positions * real + (1 - positions) * fake).bfloat16())


@pytest.mark.parametrize(
    ("real", "fake", "expected"),
    [
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float64, torch.float64),
    ],
)
def test_interpolates_have_the_wider_type(real, fake, expected, plane, seen):
    wgan_gp(
        discriminator=plane, real=torch.ones(2, 3, dtype=real), fake=torch.ones(2, 3, dtype=fake)
    )
    assert seen[0].dtype == expected


def test_the_mean_over_noises_approaches_r1(inputs, discriminator):
    sample = inputs["real"][:1]
    many = sample.expand(20_000, *sample.shape[1:])
    exact = call(GRAD_PENALTIES["r1"], discriminator, sample, sample).item()
    estimates = [
        call(GRAD_PENALTIES["approximate_r1"], discriminator, many, sample, sigma=sigma).item()
        for sigma in (0.01, 3.0)
    ]
    # The standard error of the estimate is sqrt(2 / 20000) = 1 %; a smooth discriminator adds about sigma^2.
    assert estimates[0] == pytest.approx(exact, rel=0.04)
    assert abs(estimates[1] - exact) > 2 * 0.04 * exact


@pytest.mark.parametrize("sigma", [0.0, -0.1, math.nan])
def test_sigma_must_be_above_0(sigma):
    x = torch.ones(2, 3)
    message = (
        f"`sigma` must be a finite number above 0, but got {sigma} .*Use `r1` for the limit at 0"
    )
    with pytest.raises(ValueError, match=message):
        approximate_r1(discriminator=lambda x: x.sum(1), real=x, real_logits=x.sum(1), sigma=sigma)


@pytest.mark.parametrize("options", [{}, {"center": 0.0}, {"center": 2.5}])
def test_a_penalty_of_any_center_equals_its_derivative_by_hand(options):
    x, weight = normal((3, 2, 4), 1).requires_grad_(), normal((2, 4), 2)
    logits = (weight * x**2).flatten(1).sum(1)
    norms = (2 * weight * x.detach()).flatten(1).norm(dim=1)
    expected = (norms - options.get("center", 1.0)).square().mean()
    torch.testing.assert_close(
        gradient_penalty(real=x, logits=logits, **options).detach(), expected
    )
