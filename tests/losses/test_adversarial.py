"""Each GAN loss against a loop over single logits, finite differences, and known values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.losses import (
    GAN_LOSSES,
    Duel,
    adversarial,
    generator_needs_real,
    hinge,
    is_separable,
    least_squares,
    relativistic,
    vanilla,
)

numbers = st.floats(-5, 5, width=32)
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=9).map(
    lambda values: torch.tensor(values, dtype=torch.float64).unbind(1)
)
logits = st.lists(numbers, min_size=1, max_size=9).map(lambda values: torch.tensor(values, dtype=torch.float64))
UNPAIRED = ("hinge", "least_squares", "vanilla")
losses = pytest.mark.parametrize("name", sorted(GAN_LOSSES))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def average(function, logits):
    values = logits.flatten().tolist()
    return sum(function(value) for value in values) / len(values)


def naive(name, real, fake):
    if name == "hinge":
        discriminator = average(lambda x: max(0.0, 1 - x), real) + average(lambda x: max(0.0, 1 + x), fake)
        return discriminator, average(lambda x: -x, fake)
    if name == "least_squares":
        discriminator = average(lambda x: (x - 1) ** 2 / 2, real) + average(lambda x: x**2 / 2, fake)
        return discriminator, average(lambda x: (x - 1) ** 2 / 2, fake)
    if name == "vanilla":  # the cross-entropy of a sigmoid, log(1 - sigmoid(x)) = log(sigmoid(-x))
        discriminator = -average(log_sigmoid, real) - average(lambda x: log_sigmoid(-x), fake)
        return discriminator, -average(log_sigmoid, fake)
    leads = real - fake
    return -average(log_sigmoid, leads), -average(lambda x: log_sigmoid(-x), leads)


def assert_equals_the_loop(name, real, fake, rel=1e-10):
    duel = GAN_LOSSES[name](real=real, fake=fake)
    assert isinstance(duel, Duel)
    assert [side.shape for side in duel] == [(), ()]
    expected = naive(name, real, fake)
    assert duel.discriminator.item() == pytest.approx(expected[0], rel=rel, abs=1e-12)
    assert duel.generator.item() == pytest.approx(expected[1], rel=rel, abs=1e-12)


def test_every_loss_is_tested():
    assert sorted(GAN_LOSSES) == ["hinge", "least_squares", "relativistic", "vanilla"]
    assert all(GAN_LOSSES[name] is getattr(adversarial, name) for name in GAN_LOSSES)


@losses
@settings(max_examples=25, deadline=None)
@given(pair=pairs)
def test_equals_a_loop_over_pairs(name, pair):
    assert_equals_the_loop(name, *pair)


@pytest.mark.parametrize("name", UNPAIRED)
@settings(max_examples=15, deadline=None)
@given(real=logits, fake=logits)
def test_equals_a_loop_over_logits_of_different_number(name, real, fake):
    assert_equals_the_loop(name, real, fake)


@losses
def test_maps_of_logits_count_each_logit(name):
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 2, 1, 3, 4, generator=generator, dtype=torch.float64)
    assert_equals_the_loop(name, real, fake)


@pytest.mark.parametrize(
    ("name", "real", "fake", "discriminator", "generator"),
    [
        ("hinge", 0.0, 0.0, 2.0, 0.0),
        ("hinge", 1.0, -1.0, 0.0, 1.0),
        ("hinge", 3.0, -3.0, 0.0, 3.0),
        ("hinge", -1.0, 1.0, 4.0, -1.0),
        ("hinge", 0.5, -0.25, 1.25, 0.25),
        ("vanilla", 0.0, 0.0, 2 * math.log(2), math.log(2)),
        ("least_squares", 0.0, 0.0, 0.5, 0.5),
        ("least_squares", 1.0, 0.0, 0.0, 0.5),
        ("least_squares", 0.0, 1.0, 1.0, 0.0),
        ("least_squares", 3.0, -1.0, 2.5, 2.0),
        ("relativistic", 7.0, 7.0, math.log(2), math.log(2)),
        ("relativistic", 1.0, 0.0, math.log(1 + math.exp(-1)), math.log(1 + math.e)),
    ],
)
def test_known_values(name, real, fake, discriminator, generator):
    duel = GAN_LOSSES[name](real=torch.tensor([real]), fake=torch.tensor([fake]))
    assert duel.discriminator.item() == pytest.approx(discriminator)
    assert duel.generator.item() == pytest.approx(generator)


@losses
def test_each_side_pulls_its_way(name):
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    duel = GAN_LOSSES[name](real=real, fake=fake)
    of_real, of_fake = torch.autograd.grad(duel.discriminator, (real, fake), allow_unused=True)
    # At 0, the label of fakes, least squares has nothing to teach about them.
    assert of_real.lt(0).all()
    assert of_fake.ge(0).all() if name == "least_squares" else of_fake.gt(0).all()
    (of_generator,) = torch.autograd.grad(duel.generator, fake)
    assert of_generator.lt(0).all()


def test_the_hinge_generator_pulls_every_logit_alike():
    fake = torch.tensor([-9.0, 0.0, 1.0, 9.0], requires_grad=True)
    GAN_LOSSES["hinge"](real=fake.detach(), fake=fake).generator.backward()
    assert fake.grad.tolist() == [-0.25] * 4


def test_the_vanilla_generator_does_not_saturate_where_it_loses():
    fake = torch.tensor([-30.0], requires_grad=True)
    GAN_LOSSES["vanilla"](real=fake.detach(), fake=fake).generator.backward()
    assert fake.grad.item() == pytest.approx(-1.0)


def test_relativistic_sees_only_the_lead_within_each_pair():
    generator = torch.Generator().manual_seed(0)
    real, fake, shift = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(3))
    duel, shifted = relativistic(real=real, fake=fake), relativistic(real=real + shift, fake=fake + shift)
    torch.testing.assert_close(tuple(shifted), tuple(duel))
    assert relativistic(real=real.flip(0), fake=fake).discriminator != duel.discriminator
    swapped = relativistic(real=fake, fake=real)
    torch.testing.assert_close(tuple(swapped), (duel.generator, duel.discriminator))


@pytest.mark.parametrize("shapes", [((3,), (2,)), ((2, 1, 4), (2, 4)), ((3,), (1,))])
def test_relativistic_needs_pairs(shapes):
    real, fake = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="`fake` must be of `real`'s shape"):
        relativistic(real=real, fake=fake)


@losses
def test_gradcheck(name):
    torch.manual_seed(0)
    real, fake = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for side in Duel._fields:
        assert torch.autograd.gradcheck(lambda r, f: getattr(GAN_LOSSES[name](real=r, fake=f), side), (real, fake))  # noqa: B023


@losses
@pytest.mark.parametrize("level", [-1e4, -1.0, 0.0, 1.0, 1e4])
def test_gradients_of_constant_logits_are_finite(name, level):
    real, fake = (torch.full((3,), level, requires_grad=True) for _ in range(2))
    duel = GAN_LOSSES[name](real=real, fake=-fake)
    for side in duel:
        assert side.isfinite()
        gradients = torch.autograd.grad(side, (real, fake), retain_graph=True, allow_unused=True)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@losses
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_least_float32_also_under_autocast(name, dtype):
    # 1 + 1/512 is no bfloat16, and the mean of these is none either.
    real = torch.tensor([1.0, 1 / 128, -1 / 64], dtype=dtype)
    fake = torch.tensor([1 / 128, -1 / 64, 1.0], dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        duel = GAN_LOSSES[name](real=real, fake=fake)
    assert [side.dtype for side in duel] == [torch.promote_types(dtype, torch.float32)] * 2
    assert tuple(side.item() for side in duel) == pytest.approx(naive(name, real, fake), rel=1e-6)


@losses
def test_half_precision_does_not_overflow(name):
    half = torch.full((100,), 6e4, dtype=torch.float16)
    duel = GAN_LOSSES[name](real=half, fake=-half)
    assert all(side.isfinite() for side in duel)
    assert duel.generator.item() == pytest.approx(
        {"least_squares": 1.8e9, "relativistic": 1.2e5}.get(name, 6e4), rel=1e-3
    )


@losses
def test_pairs_are_named_so_that_they_cannot_be_swapped(name):
    with pytest.raises(TypeError):
        GAN_LOSSES[name](torch.zeros(1), torch.zeros(1))


@losses
def test_nothing_waits_for_the_device(name):
    real, fake = (torch.empty(2, 3, device="meta", requires_grad=True) for _ in range(2))
    duel = GAN_LOSSES[name](real=real, fake=fake)
    duel.discriminator.backward(retain_graph=True)
    duel.generator.backward()
    assert fake.grad.shape == (2, 3)


def only_the_lead_of_means(*, real, fake):
    lead = real.mean() - fake.mean()
    return Duel(discriminator=-lead, generator=lead)


def wasserstein(*, real, fake):
    return Duel(discriminator=fake.mean() - real.mean(), generator=-fake.mean())


@pytest.mark.parametrize(
    ("gan_loss", "needs"),
    [
        *((GAN_LOSSES[name], False) for name in UNPAIRED),
        (GAN_LOSSES["relativistic"], True),
        (only_the_lead_of_means, True),
        (wasserstein, False),
    ],
)
def test_whether_the_generator_needs_the_real_logits(gan_loss, needs):
    assert generator_needs_real(gan_loss) is needs


def test_the_probe_runs_on_the_cpu_whatever_the_default_device():
    seen = []

    def spy(*, real, fake):
        seen.append((real, fake))
        return wasserstein(real=real, fake=fake)

    with torch.device("meta"):
        assert generator_needs_real(spy) is False
        assert is_separable(spy) is True
    assert len(seen) == 3 + 4
    assert all(logits.device.type == "cpu" for pair in seen for logits in pair)


def test_a_loss_that_only_compares_with_the_real_logits_needs_them():
    def compares(*, real, fake):
        return Duel(fake.mean() - real.mean(), torch.where(real > fake, -fake, torch.zeros_like(fake)).mean())

    assert generator_needs_real(compares)


@pytest.mark.parametrize(
    ("loss", "separable"), [(hinge, True), (vanilla, True), (least_squares, True), (relativistic, False)]
)
def test_which_losses_are_a_part_of_the_real_and_a_part_of_the_fake_logits(loss, separable):
    assert is_separable(loss) == separable


def test_a_loss_of_which_one_side_looks_at_the_other_is_not_separable():
    def centered(*, real, fake):
        discriminator, generator = hinge(real=real - fake.mean().detach(), fake=fake)
        return Duel(discriminator, generator)

    assert not is_separable(centered)
