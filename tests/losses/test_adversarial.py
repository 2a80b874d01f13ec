"""GAN losses, feature matching and LeCam equal loops over single logits; what a GAN loss declares is true of it."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from telecine.losses import (
    GAN_LOSSES,
    GANLosses,
    JointGANLoss,
    SeparableGANLoss,
    feature_matching,
)
from telecine.losses.lecam import lecam

from .harness import LossCase, LossTester, normal, random

SHAPES = [((6,), (4,)), ((2, 1, 3, 4), (3, 1, 2)), ((1,), (5,)), ((2, 3), (2, 3))]
MAPS = [(2, 3, 4, 5), (2, 6, 2, 2), (2, 7)]
losses = pytest.mark.parametrize("name", sorted(GAN_LOSSES))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > -700 else x


def average(function, logits):
    values = logits.flatten().tolist()
    return sum(function(value) for value in values) / len(values)


def loop_over_logits(name, real, fake):
    """Return the losses of the discriminator and of the generator."""
    if name == "hinge":
        discriminator = average(lambda x: max(0.0, 1 - x), real) + average(
            lambda x: max(0.0, 1 + x), fake
        )
        return discriminator, average(lambda x: -x, fake)
    if name == "least_squares":
        discriminator = average(lambda x: (x - 1) ** 2 / 2, real) + average(
            lambda x: x**2 / 2, fake
        )
        return discriminator, average(lambda x: (x - 1) ** 2 / 2, fake)
    if name == "vanilla":  # the cross-entropy of a sigmoid, log(1 - sigmoid(x)) = log(sigmoid(-x))
        discriminator = -average(log_sigmoid, real) - average(lambda x: log_sigmoid(-x), fake)
        return discriminator, -average(log_sigmoid, fake)
    gaps = real - fake
    return -average(log_sigmoid, gaps), -average(lambda x: log_sigmoid(-x), gaps)


def gan_example(name):
    def example(seed):
        real, fake = SHAPES[seed % len(SHAPES)]
        return {
            "real": 2 * normal(real, seed),
            "fake": 2 * normal(real if name == "relativistic" else fake, seed + 100),
        }

    return example


# Real and fake logits, the discriminator's loss, and the generator's.
KNOWN = {
    "hinge": [(0, 0, 2, 0), (1, -1, 0, 1), (3, -3, 0, 3), (-1, 1, 4, -1), (0.5, -0.25, 1.25, 0.25)],
    "vanilla": [(0, 0, 2 * math.log(2), math.log(2))],
    "least_squares": [(0, 0, 0.5, 0.5), (1, 0, 0, 0.5), (0, 1, 1, 0), (3, -1, 2.5, 2)],
    "relativistic": [
        (7, 7, math.log(2), math.log(2)),
        (1, 0, math.log1p(math.exp(-1)), math.log1p(math.e)),
    ],
}
# Logits at which a side has nothing left to gain.
OPTIMA = {
    ("hinge", "discriminator"): (2.0, -2.0),
    ("least_squares", "discriminator"): (1.0, 0.0),
    ("least_squares", "generator"): (5.0, 1.0),
}
# Half precision cannot exceed its range in the generator's losses that are at most the largest logit.
IN_RANGE = {("hinge", "generator"), ("vanilla", "generator")}


def logits(real, fake, num=3):
    return {"real": torch.full((num,), float(real)), "fake": torch.full((num,), float(fake))}


def gan_case(name, side):
    index = GANLosses._fields.index(side)
    learns = ("real", "fake")
    gaps = [0.9, 0.0, -1.0]  # the larger, the better for the discriminator
    large = logits(-6e4, 6e4)
    if side == "generator":
        gaps.reverse()
        large = logits(6e4, -6e4)
        if name != "relativistic":
            learns = ("fake",)
    optima = []
    if (name, side) in OPTIMA:
        optima.append((logits(*OPTIMA[name, side]), 0.0))
    errors = []
    if name == "relativistic":
        for shape in ((2, 4), (1, 1, 4), (2, 1, 1)):
            message = (
                f"`fake` must be of `real`'s shape (2, 1, 4), but got a torch.float32 tensor of shape {shape} on cpu. "
                "Pass as many real samples as fakes to the discriminator."
            )
            errors.append(({"real": torch.zeros(2, 1, 4), "fake": torch.zeros(shape)}, message))
    return LossCase(
        name=f"{name}-{side}",
        loss=lambda real, fake: getattr(GAN_LOSSES[name](real=real, fake=fake), side),
        example=gan_example(name),
        reference=lambda real, fake: loop_over_logits(name, real, fake)[index],
        learns=learns,
        known=tuple((logits(real, fake), values[index]) for real, fake, *values in KNOWN[name]),
        optima=tuple(optima),
        increasing=tuple(logits(gap, -gap) for gap in gaps),
        large=None if (name, side) in IN_RANGE else large,
        errors=tuple(errors),
        function=GAN_LOSSES[name],
    )


class TestGANLosses(LossTester):
    cases = tuple(gan_case(name, side) for name in sorted(GAN_LOSSES) for side in GANLosses._fields)

    def test_every_loss_has_a_case(self):
        assert (
            sorted(GAN_LOSSES)
            == sorted(KNOWN)
            == ["hinge", "least_squares", "relativistic", "vanilla"]
        )
        assert len(self.cases) == 8


@losses
@pytest.mark.parametrize("level", [-1e4, 1e4])
def test_gradients_of_extreme_logits_are_finite(name, level):
    real, fake = (torch.full((3,), sign * level, requires_grad=True) for sign in (1, -1))
    for side in GAN_LOSSES[name](real=real, fake=fake):
        assert side.isfinite()
        gradients = torch.autograd.grad(side, (real, fake), retain_graph=True, allow_unused=True)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


# What a loss declares decides how its gradients are taken, so that a false declaration would train the wrong way.


def gradient(name, side, logits_of, **inputs):
    inputs = {key: value.clone().requires_grad_() for key, value in inputs.items()}
    loss = getattr(GAN_LOSSES[name](**inputs), side)
    (result,) = torch.autograd.grad(
        loss, inputs[logits_of], allow_unused=True, materialize_grads=True
    )
    return result


@losses
@pytest.mark.parametrize(
    ("side", "logits_of"),
    [("discriminator", "real"), ("discriminator", "fake"), ("generator", "fake")],
)
def test_in_separable_losses_the_gradient_on_one_side_ignores_the_other(name, side, logits_of):
    inputs = {"real": normal((6,), 0), "fake": normal((6,), 1)}
    other = "fake" if logits_of == "real" else "real"
    changed = {**inputs, other: normal((6,), 2)}
    gradients = [gradient(name, side, logits_of, **values) for values in (inputs, changed)]
    assert torch.equal(*gradients) == isinstance(GAN_LOSSES[name], SeparableGANLoss)


@losses
def test_what_both_steps_compute_is_the_whole(name):
    loss, real, fake = GAN_LOSSES[name], normal((6,), 0), normal((6,), 1)
    whole = loss(real=real, fake=fake)
    assert (
        loss.compute_discriminator_loss(real_logits=real, fake_logits=fake) == whole.discriminator
    )
    if isinstance(loss, JointGANLoss):
        assert loss.compute_generator_loss(real_logits=real, fake_logits=fake) == whole.generator
    else:
        assert loss.compute_generator_loss(fake_logits=fake) == whole.generator
        of_real = loss.compute_discriminator_loss(real_logits=real, fake_logits=None)
        of_fake = loss.compute_discriminator_loss(real_logits=None, fake_logits=fake)
        assert of_real + of_fake == whole.discriminator


@losses
def test_the_boundary_is_where_real_and_fake_are_equally_likely(name):
    boundary = GAN_LOSSES[name].boundary
    if name == "relativistic":
        assert boundary is None, "it compares pairs"
        return
    for distance in (0.3, 2.0):
        above, below = (logits(x, x) for x in (boundary + distance, boundary - distance))
        torch.testing.assert_close(
            GAN_LOSSES[name](**above).discriminator, GAN_LOSSES[name](**below).discriminator
        )


@losses
@pytest.mark.parametrize("logits_of", ["real", "fake"])
@pytest.mark.parametrize("logit", [0.9, 1.1, 10.0])
def test_the_margin_is_where_the_gradient_ends(name, logits_of, logit):
    margin = GAN_LOSSES[name].margin
    assert (margin is None) == (name != "hinge")
    has_gradient = gradient(name, "discriminator", logits_of, **logits(logit, -logit)).ne(0).all()
    assert has_gradient == (margin is None or logit < margin)


SCALAR = torch.zeros(())


@pytest.mark.parametrize(
    "result",
    [(SCALAR, SCALAR), GANLosses(torch.zeros(2), SCALAR), GANLosses(SCALAR, torch.zeros(2))],
)
def test_a_function_must_return_two_scalars(result):
    def custom(*, real, fake):
        return result

    message = r"^the result of {} must be `GANLosses` of two 0-d tensors, but got .*tensor\(.*reduce both with `.mean"
    with pytest.raises(TypeError, match=message.format("custom")):
        JointGANLoss(custom)(**logits(1, 0))
    with pytest.raises(TypeError, match=message.format("the GAN loss")):
        JointGANLoss(partial(custom))(**logits(1, 0))


@pytest.mark.parametrize("part", ["real", "fake", "generator"])
def test_a_part_must_return_a_scalar(part):
    def unreduced(logits):
        return logits.relu()

    loss = replace(GAN_LOSSES["hinge"], **{part: unreduced})
    alone = {"real_logits": None, "fake_logits": None, f"{part}_logits": torch.zeros(2)}
    calls = [lambda: loss(**logits(1, 0))]
    if part == "generator":
        calls.append(lambda: loss.compute_generator_loss(fake_logits=torch.zeros(2)))
    else:
        calls.append(lambda: loss.compute_discriminator_loss(**alone))
    message = r"^the result of unreduced must be a 0-d tensor, but got .*tensor of shape .*`{}`\. Reduce it"
    for call in calls:
        with pytest.raises(TypeError, match=message.format(part)):
            call()


def maps(seed):
    return [normal(shape, seed + index) for index, shape in enumerate(MAPS)]


def loop_over_layers(real, fake):
    layers = []
    for x, y in zip(real, fake, strict=True):
        errors = [
            abs(a - b) for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)
        ]
        layers.append(sum(errors) / len(errors))
    return sum(layers) / len(layers)


def loop_over_averages(real, fake, real_average, fake_average):
    def squared(values):
        positive = [max(0.0, value) ** 2 for value in values]
        return sum(positive) / len(positive)

    a, b = real_average.item(), fake_average.item()
    return squared([x - b for x in real.flatten().tolist()]) + squared(
        [a - x for x in fake.flatten().tolist()]
    )


def averages(real, fake, real_average, fake_average):
    return {
        **logits(real, fake),
        "real_average": torch.tensor(real_average),
        "fake_average": torch.tensor(fake_average),
    }


class TestStabilisers(LossTester):
    cases = (
        LossCase(
            name="feature_matching",
            loss=feature_matching,
            example=lambda seed: {"real": maps(seed), "fake": maps(seed + 100)},
            reference=loop_over_layers,
            learns=("fake",),
            known=(
                # Every layer counts the same, whatever its size.
                (
                    {
                        "real": [torch.zeros(1, 100), torch.zeros(1, 2)],
                        "fake": [torch.full((1, 100), 0.5), torch.tensor([[2.0, -1.0]])],
                    },
                    (0.5 + 1.5) / 2,
                ),
            ),
            optima=(
                ({"real": maps(0), "fake": maps(0)}, 0.0),
                ({"real": [torch.ones(2)], "fake": [torch.ones(2)]}, 0.0),
            ),
            increasing=tuple(
                {"real": [0 * x for x in maps(0)], "fake": [k * x for x in maps(0)]}
                for k in (0, 0.1, 1)
            ),
            large={"real": [torch.full((9,), 6e4)], "fake": [torch.full((9,), -6e4)]},
            errors=(
                (
                    {"real": [], "fake": []},
                    "`real` must be one feature map per layer, but got none. Return features from the discriminator.",
                ),
                (
                    {"fake": maps(0)[:2]},
                    "`fake` must be as long as `real`, 3 feature maps, but got 2. "
                    "Take both from the same discriminator.",
                ),
                (
                    {"fake": [maps(0)[0], maps(0)[2], maps(0)[1]]},
                    "`fake[1]` must be of `real[1]`'s shape (2, 6, 2, 2), but got a torch.float64 tensor of shape "
                    "(2, 7) on cpu. Pass both sides through the same layers.",
                ),
            ),
        ),
        LossCase(
            name="lecam",
            loss=lecam,
            example=lambda seed: {
                **gan_example("lecam")(seed),
                "real_average": random((), seed + 200),
                "fake_average": random((), seed + 300),
            },
            reference=loop_over_averages,
            learns=("real", "fake"),
            known=(
                (averages(2.0, -1.0, 1.0, -0.5), 2.5**2 + 2.0**2),
                (averages(1.0, 1.0, 0.0, 0.0), 1.0),
                (averages(-1.0, -1.0, 0.0, 0.0), 1.0),
            ),
            # A discriminator that confuses real and fake is not regularised.
            optima=((averages(-1.0, 1.0, 0.0, 0.0), 0.0), (averages(0.0, 0.0, 0.0, 0.0), 0.0)),
            increasing=tuple(averages(x, -x, 0.0, 0.0) for x in (0, 0.1, 1)),
            large=averages(300.0, -300.0, 1.0, -1.0),
        ),
    )
