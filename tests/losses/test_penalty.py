"""The gradient penalties equal loops over samples and differences of logits; what they declare is true of them."""

import dataclasses
import functools
import inspect
import math

import pytest
import torch
from torch import nn

from telecine.losses import (
    GRAD_PENALTIES,
    Penalty,
    approximate_r1,
    as_penalty,
    gradient_penalty,
    one_centered,
    r1,
    r1_and_r2,
    r2,
    wgan_gp,
)
from telecine.ops.convolution import is_differentiated_twice

from .harness import LossCase, LossTester, normal, random

IMAGE, VIDEO = (3, 2, 3, 2), (2, 2, 2, 2, 3)
SHAPES = [IMAGE, VIDEO]
SEED = 5
RANDOM = ("approximate_r1", "wgan_gp")
NAMES = ["approximate_r1", "one_centered", "r1", "r1_and_r2", "r2", "wgan_gp"]
shapes = pytest.mark.parametrize("shape", SHAPES)
penalties = pytest.mark.parametrize("name", NAMES)


def discriminator_of(hidden, bias, out):
    """Return a smooth discriminator with one logit per sample or a map of them."""

    def discriminator(x):
        logits = torch.tanh(2 * (x.flatten(1).to(hidden.dtype) @ hidden.T + bias)) @ out.T
        return logits.squeeze(1) if logits.shape[1] == 1 else logits.unflatten(1, (1, -1))

    return discriminator


def call(penalty, discriminator, real, fake, **options):
    """Return a penalty whose inputs require gradients only where it declares so."""
    x = real.detach().clone().requires_grad_(penalty.differentiates_real)
    y = fake.detach().clone().requires_grad_(penalty.differentiates_fake)
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
    epsilons = torch.rand((len(real), *[1] * (real.ndim - 1)), generator=generator, dtype=real.dtype).flatten()
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
        loss=lambda *, hidden, bias, out, real, fake: call(penalty, discriminator_of(hidden, bias, out), real, fake),
        example=example,
        reference=lambda **inputs: loop_over_samples(name, **inputs),
        learns=("hidden", "bias", "out"),
        # A discriminator that ignores its input.
        optima=((flat, 1.0 if name in ("one_centered", "wgan_gp") else 0.0),),
        increasing=tuple({**example(0), "out": scale * example(0)["out"]} for scale in (10, 20, 40)),
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


def differences(discriminator, sample, step=1e-5):
    """Return the squared norm of the gradient from central differences of the logits."""
    total = 0.0
    for k in range(sample.numel()):
        offset = torch.zeros_like(sample).flatten()
        offset[k] = step
        higher, lower = (discriminator((sample + s * offset.view_as(sample))[None]).sum() for s in (1, -1))
        total += ((higher - lower) / (2 * step)).item() ** 2
    return total


@pytest.mark.parametrize("seed", [2, 3])
def test_gradients_are_those_of_differences_of_logits(seed):
    inputs = example(seed)
    real, fake = inputs.pop("real"), inputs.pop("fake")
    discriminator = discriminator_of(**inputs)
    squares_real, squares_fake = ([differences(discriminator, sample) for sample in x] for x in (real, fake))
    expected = {
        "one_centered": sum((square**0.5 - 1) ** 2 for square in squares_real) / len(real),
        "r1": sum(squares_real) / len(real) / 2,
        "r2": sum(squares_fake) / len(fake) / 2,
        "r1_and_r2": (sum(squares_real) + sum(squares_fake)) / len(real) / 2,
    }
    values = {name: call(GRAD_PENALTIES[name], discriminator, real, fake).item() for name in expected}
    assert values == pytest.approx(expected, rel=1e-6)


class Plane(nn.Module):
    """Logits `scale * sum(x)`, whose gradient is `scale` everywhere."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x):
        return self.scale * x.flatten(1).sum(1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("one_centered", 25.0), ("r1", 18.0), ("r2", 18.0), ("r1_and_r2", 36.0), ("wgan_gp", 25.0)],
)
def test_known_values_of_a_plane(name, expected):
    shape = (3, 1, 2, 2)  # the norm of the gradient is 3 sqrt(4) = 6
    value = call(GRAD_PENALTIES[name], Plane(3.0), normal(shape, 1), normal(shape, 2))
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["one_centered", "wgan_gp"])
def test_centered_penalties_are_0_for_a_norm_of_1(name):
    shape = (3, 1, 2, 2)
    value = call(GRAD_PENALTIES[name], Plane(0.5), normal(shape, 1), normal(shape, 2))
    assert value.item() == pytest.approx(0, abs=1e-20)


# What a penalty declares decides what the objective prepares for it.


@penalties
def test_inputs_must_require_gradients_exactly_where_declared(name):
    inputs, penalty = example(0), GRAD_PENALTIES[name]
    discriminator = discriminator_of(inputs["hidden"], inputs["bias"], inputs["out"])
    for differentiates_real in (True, False):
        for differentiates_fake in (True, False):
            given = Penalty(
                penalty.function, differentiates_real=differentiates_real, differentiates_fake=differentiates_fake
            )
            missing = (penalty.differentiates_real > differentiates_real) or (
                penalty.differentiates_fake > differentiates_fake
            )
            if missing:
                with pytest.raises(ValueError, match="must be a tensor that requires gradients"):
                    call(given, discriminator, inputs["real"], inputs["fake"])
            else:
                call(given, discriminator, inputs["real"], inputs["fake"])


def test_the_error_of_an_input_without_gradients():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="must be") as error:
        gradient_penalty(real=x, logits=x.sum(1))
    assert str(error.value) == (
        "`real or fake` must be a tensor that requires gradients, but got a torch.float32 tensor of shape (2, 3) on "
        "cpu. Call `requires_grad_()` on it before its logits are computed."
    )


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
def test_a_double_backward_runs_exactly_where_declared(name):
    inputs = example(0)
    hidden = inputs["hidden"].requires_grad_()
    smooth = discriminator_of(hidden, inputs["bias"], inputs["out"])
    value = call(GRAD_PENALTIES[name], lambda x: smooth(Once.apply(x)), inputs["real"], inputs["fake"])
    if GRAD_PENALTIES[name].double_backward:
        with pytest.raises(RuntimeError, match="once_differentiable"):
            value.backward()
    else:
        value.backward()
        assert hidden.grad.ne(0).any()


@penalties
def test_the_penalty_depends_on_fakes_exactly_where_declared(name):
    inputs = example(0)
    discriminator = discriminator_of(inputs["hidden"], inputs["bias"], inputs["out"])
    values = [
        call(GRAD_PENALTIES[name], discriminator, inputs["real"], fake) for fake in (inputs["fake"], inputs["real"])
    ]
    assert (values[0] != values[1]) == GRAD_PENALTIES[name].uses_fake


@penalties
def test_random_numbers_come_from_the_generator(name):
    inputs = example(0)
    discriminator = discriminator_of(inputs["hidden"], inputs["bias"], inputs["out"])
    values = [
        call(
            GRAD_PENALTIES[name],
            discriminator,
            inputs["real"],
            inputs["fake"],
            generator=torch.Generator().manual_seed(seed),
        ).item()
        for seed in (1, 1, 2)
    ]
    assert values[0] == values[1]
    assert (values[1] != values[2]) == (name in RANDOM)


@penalties
def test_the_discriminator_is_called_only_for_further_inputs(name):
    inputs, seen = example(0), []
    discriminator = discriminator_of(inputs["hidden"], inputs["bias"], inputs["out"])

    def counting(x):
        seen.append(x.shape)
        return discriminator(x)

    real, fake = inputs["real"].requires_grad_(), inputs["fake"].requires_grad_()
    GRAD_PENALTIES[name](
        discriminator=counting,
        real=real,
        fake=fake,
        real_logits=discriminator(real),
        fake_logits=discriminator(fake),
        generator=None,
    )
    assert seen == [real.shape] * (name in RANDOM)


def test_a_function_gets_the_declarations_that_always_hold():
    def custom(*, real, real_logits, **_):
        return real_logits.mean()

    penalty = as_penalty(custom)
    assert penalty == Penalty(
        custom, differentiates_real=True, differentiates_fake=True, double_backward=True, uses_fake=True
    )
    assert as_penalty(penalty) is penalty
    assert as_penalty(functools.partial(custom)).differentiates_fake


def test_declarations_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GRAD_PENALTIES["r1"].uses_fake = True


def test_a_partial_of_a_known_penalty_keeps_its_declarations():
    function = functools.partial(approximate_r1, sigma=0.1)
    penalty, known = as_penalty(function), GRAD_PENALTIES["approximate_r1"]
    assert penalty == Penalty(
        function,
        differentiates_real=known.differentiates_real,
        differentiates_fake=known.differentiates_fake,
        double_backward=known.double_backward,
        uses_fake=known.uses_fake,
    )


# Half precision and autocast.


@penalties
def test_float32_under_autocast(name):
    inputs = {key: tensor.float() for key, tensor in example(0).items()}
    inputs["hidden"].requires_grad_()
    discriminator = discriminator_of(inputs["hidden"], inputs["bias"], inputs["out"])
    outside = call(GRAD_PENALTIES[name], discriminator, inputs["real"], inputs["fake"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = call(GRAD_PENALTIES[name], discriminator, inputs["real"], inputs["fake"])
    assert inside.dtype == torch.float32
    # The objective computes penalties with a double backward without autocast; here they have bfloat16's rounding.
    # The finite difference is divided by its small step, and so is the rounding of float32.
    assert inside.item() == pytest.approx(outside.item(), rel=0.1 if GRAD_PENALTIES[name].double_backward else 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_a_finite_difference_is_not_lost_in_the_rounding_of_logits(dtype):
    inputs = {key: tensor.float() for key, tensor in example(2).items()}
    inputs["hidden"].requires_grad_()
    discriminator = discriminator_of(inputs["hidden"], inputs["bias"], inputs["out"])
    x = inputs["real"].to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = call(GRAD_PENALTIES["approximate_r1"], discriminator, x, x)
        assert discriminator(x).dtype == torch.bfloat16
    expected = call(GRAD_PENALTIES["approximate_r1"], discriminator, x.float(), x.float())
    # bfloat16 would round the logits by more than their difference.
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0)
    ours, theirs = (torch.autograd.grad(loss, inputs["hidden"])[0] for loss in (value, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("penalty", [r1, r2, r1_and_r2])
def test_squares_are_summed_in_float32(dtype, penalty):
    x = torch.zeros(2, 100, dtype=dtype, requires_grad=True)
    logits = (x * 300).sum(1)  # 300^2 = 90000 exceeds the range of float16
    value = as_penalty(penalty)(real=x, fake=x, real_logits=logits, fake_logits=logits)
    assert value.item() == pytest.approx(100 * 300**2 / 2 * (2 if penalty is r1_and_r2 else 1), rel=1e-5)


def test_logits_are_subtracted_in_float32():
    x = normal((2, 1, 4, 4), 1).float()
    logits = torch.full((2, 3), 256.0, dtype=torch.bfloat16)
    near_1 = torch.full((2, 3), 1 + 2**-7, dtype=torch.bfloat16)  # bfloat16 cannot represent the difference to 256
    value = approximate_r1(discriminator=lambda x: near_1, real=x, real_logits=logits)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx((3 * (255 - 2**-7) / 0.01) ** 2 / 2, rel=1e-5)


# Interpolates and finite differences.


def test_interpolates_lie_between_real_and_fake_with_one_position_per_sample():
    shape, seen = (200, 1, 2, 2), []

    def discriminator(x):
        seen.append(x)
        return x.flatten(1).sum(1)

    real, fake = (torch.full(shape, value) for value in (1.0, -1.0))
    wgan_gp(discriminator=discriminator, real=real, fake=fake, generator=torch.Generator().manual_seed(0))
    (x_hat,) = seen
    position = x_hat.detach().flatten(1)
    assert torch.equal(position, position[:, :1].expand_as(position))
    assert position.abs().max() <= 1
    assert position[:, 0].mean().abs() < 0.15  # uniform: the standard error is 0.04
    assert position[:, 0].std().item() == pytest.approx(3**-0.5, abs=0.06)


@pytest.mark.parametrize("name", RANDOM)
def test_penalties_at_further_inputs_give_the_given_inputs_no_gradient(name):
    inputs = example(0)
    real, fake = inputs["real"].requires_grad_(), inputs["fake"].requires_grad_()
    hidden = inputs["hidden"].requires_grad_()
    discriminator = discriminator_of(hidden, inputs["bias"], inputs["out"])
    real_logits, fake_logits = discriminator(real.detach()), discriminator(fake.detach())
    GRAD_PENALTIES[name](
        discriminator=discriminator, real=real, fake=fake, real_logits=real_logits, fake_logits=fake_logits
    ).backward()
    assert hidden.grad.ne(0).any()
    assert real.grad is None
    assert fake.grad is None


@pytest.mark.parametrize(
    ("name", "real", "fake", "expected"),
    [
        ("wgan_gp", torch.float32, torch.bfloat16, torch.float32),
        ("wgan_gp", torch.bfloat16, torch.bfloat16, torch.bfloat16),
        ("wgan_gp", torch.bfloat16, torch.float64, torch.float64),
        ("approximate_r1", torch.bfloat16, torch.float32, torch.bfloat16),
    ],
)
def test_further_inputs_have_the_type_of_the_given_ones(name, real, fake, expected):
    seen = []

    def discriminator(x):
        seen.append(x.dtype)
        return x.flatten(1).sum(1)

    call(GRAD_PENALTIES[name], discriminator, torch.ones(2, 3, dtype=real), torch.ones(2, 3, dtype=fake))
    assert seen == [real, fake, expected]


def test_interpolates_of_half_precision_lie_at_float32_positions():
    seen = []

    def discriminator(x):
        seen.append(x.detach())
        return x.sum(1)

    real, fake = torch.full((50, 1), 3.0).bfloat16(), torch.full((50, 1), -1.0).bfloat16()
    wgan_gp(discriminator=discriminator, real=real, fake=fake, generator=torch.Generator().manual_seed(SEED))
    positions = torch.rand((50, 1), generator=torch.Generator().manual_seed(SEED))
    assert torch.equal(seen[0], (positions * real + (1 - positions) * fake).bfloat16())


def test_interpolates_are_prepared_for_a_double_backward():
    seen = []

    def discriminator(x):
        seen.append(is_differentiated_twice())
        return x.sum(1)

    wgan_gp(discriminator=discriminator, real=torch.ones(2, 3), fake=torch.zeros(2, 3))
    assert seen == [True]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_mean_over_noises_approaches_r1(seed):
    inputs = example(seed)
    discriminator = discriminator_of(inputs["hidden"], inputs["bias"], inputs["out"])
    sample = inputs["real"][:1]
    many = sample.expand(20_000, *sample.shape[1:])
    exact = call(GRAD_PENALTIES["r1"], discriminator, sample, sample).item()
    fine, coarse = (
        call(GRAD_PENALTIES["approximate_r1"], discriminator, many, sample, sigma=sigma).item() for sigma in (0.01, 3.0)
    )
    # The standard error of the estimate is sqrt(2 / 20000) = 1 %; a smooth discriminator adds about sigma^2.
    assert fine == pytest.approx(exact, rel=0.04)
    assert abs(coarse - exact) > 2 * 0.04 * exact


def test_the_estimate_of_a_plane_does_not_depend_on_sigma():
    x = normal((4, 1, 2, 2), 1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    expected = (3 * noise.flatten(1).sum(1)).square().mean().item() / 2
    for sigma in (1e-3, 0.01, 10.0):
        value = call(GRAD_PENALTIES["approximate_r1"], Plane(3.0), x, x, sigma=sigma)
        assert value.item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("sigma", [0.0, -0.1, math.nan])
def test_sigma_must_be_above_0(sigma):
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="must be") as error:
        approximate_r1(discriminator=lambda x: x.sum(1), real=x, real_logits=x.sum(1), sigma=sigma)
    assert (
        str(error.value)
        == f"`sigma` must be a finite number above 0, but got {sigma} (float). Use `r1` for the limit at 0."
    )


# The penalty as a function of given logits.


@pytest.mark.parametrize("center", [1.0, 0.0, 2.5])
def test_gradient_penalty_equals_a_loop_over_samples(center):
    x, weight = normal((3, 2, 4), 1).requires_grad_(), normal((2, 4), 2)
    logits = (weight * x**2).flatten(1).sum(1)
    norms = [math.hypot(*(2 * weight * sample).flatten().tolist()) for sample in x.detach()]
    expected = sum((norm - center) ** 2 for norm in norms) / len(norms)
    assert gradient_penalty(real=x, logits=logits, center=center).item() == pytest.approx(expected, rel=1e-12)


def test_the_center_is_1_unless_given():
    x = normal((2, 4), 1).requires_grad_()
    assert gradient_penalty(real=x, logits=x[:, 0]) == 0
    assert gradient_penalty(real=x, logits=3 * x[:, 0]) == 4
    assert one_centered(real=x, real_logits=3 * x[:, 0]) == 4


def test_a_map_of_logits_is_summed():
    x = normal((2, 3), 1).requires_grad_()
    value = gradient_penalty(real=x, logits=torch.stack([x, 2 * x], 1))
    assert value.item() == pytest.approx((27**0.5 - 1) ** 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_are_float32(dtype):
    x = torch.zeros(2, 100, dtype=dtype, requires_grad=True)
    value = gradient_penalty(real=x, logits=300 * x)
    assert value.dtype == torch.float32
    assert value.item() == 2999**2


def test_an_ignored_sample_has_a_finite_gradient():
    x, weight = normal((2, 4), 1).requires_grad_(), torch.zeros(4, dtype=torch.float64, requires_grad=True)
    value = gradient_penalty(real=x, logits=x * weight)
    value.backward()
    assert value.item() == 1
    assert weight.grad.tolist() == [0] * 4


def test_a_penalty_gets_the_arguments_that_it_has():
    names = ("discriminator", "real", "fake", "real_logits", "fake_logits", "generator")
    arguments = {name: torch.tensor(float(number)) for number, name in enumerate(names)}
    for penalty in GRAD_PENALTIES.values():
        parameters = inspect.signature(penalty.function).parameters.values()
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
        assert {p.name for p in parameters if p.default is p.empty} < set(arguments)
    assert Penalty(lambda fake, real: 10 * fake + real)(**arguments) == 21
    assert Penalty(lambda **given: torch.stack(list(given.values())).sum())(**arguments) == 15
