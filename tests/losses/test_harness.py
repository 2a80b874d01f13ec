"""Every check of the harness fails for a loss with the fault that it looks for."""

import math

import pytest
import torch

from .harness import Item, LossCase, LossTester, random


def right(*, reconstruction, target):
    if reconstruction.shape != target.shape:
        raise ValueError("`reconstruction` must be of `target`'s shape.")
    return (reconstruction.float() if reconstruction.dtype.itemsize < 4 else reconstruction).sub(target).square().mean()


def narrow(*, reconstruction, target):
    return (reconstruction - target).square().mean()


def narrow_sum(*, reconstruction, target):
    return (reconstruction - target).square().mean().float()


def rounded_by_autocast(*, reconstruction, target):
    error = right(reconstruction=reconstruction, target=target)
    return (error.sqrt().reshape(1, 1) @ error.sqrt().reshape(1, 1)).reshape(()).to(error.dtype)


def reads_a_value(*, reconstruction, target):
    scale = 1.0 if target.abs().max().item() < math.inf else 0.0
    return scale * right(reconstruction=reconstruction, target=target)


def modifies_its_target(*, reconstruction, target):
    loss = right(reconstruction=reconstruction, target=target)
    target.detach().mul_(2)
    return loss


def positional(reconstruction, target):
    return right(reconstruction=reconstruction, target=target)


def scaled(*, reconstruction, target):
    return 1.001 * right(reconstruction=reconstruction, target=target)


def offset(*, reconstruction, target):
    return right(reconstruction=reconstruction, target=target) + reconstruction.mean() - reconstruction.mean().detach()


def without_gradient(*, reconstruction, target):
    return right(reconstruction=reconstruction.detach(), target=target) + 0 * reconstruction.mean()


def teaches_the_target(*, reconstruction, target):
    return right(reconstruction=reconstruction, target=target)


def root(*, reconstruction, target):
    return right(reconstruction=reconstruction, target=target).sqrt().square()


def shrinks(*, reconstruction, target):
    return -right(reconstruction=reconstruction, target=target)


def unchecked(*, reconstruction, target):
    return (reconstruction - target).square().mean()


def misnamed(*, reconstruction, target):
    if reconstruction.shape != target.shape:
        raise ValueError("`target` must be of `reconstruction`'s shape.")
    return right(reconstruction=reconstruction, target=target)


def case(loss):
    return LossCase(
        name=loss.__name__,
        loss=loss,
        example=lambda seed: {"reconstruction": random((2, 3), seed), "target": random((2, 3), seed + 100)},
        reference=lambda reconstruction, target: (reconstruction - target).square().mean(),
        learns=("reconstruction",) if loss is teaches_the_target else ("reconstruction", "target"),
    )


X = random((2, 3), 0)
GROWING = tuple({"reconstruction": X * scale, "target": 0 * X} for scale in (0, 1, 2))
LARGE = {"reconstruction": torch.full((2,), 3e4), "target": torch.full((2,), -3e4)}
SHAPE_ERROR = "`reconstruction` must be of `target`'s shape."
tester = LossTester()


def known(loss):
    tester.test_known_values(Item(case(loss), {"reconstruction": X + 2, "target": X}, 4.0))


def optimum(loss):
    tester.test_gradient_is_zero_at_an_optimum(Item(case(loss), {"reconstruction": X, "target": X}, 0.0))


def grows(loss):
    ordered = LossCase(**{**vars(case(loss)), "increasing": GROWING})
    tester.test_grows(ordered)


def large(loss):
    tester.test_half_precision_does_not_overflow(LossCase(**{**vars(case(loss)), "large": LARGE}), torch.float16)


def half(loss):
    tester.test_at_least_float32(case(loss), torch.float16, False)


def autocast(loss):
    tester.test_at_least_float32(case(loss), torch.float32, True)


def constant(loss):
    tester.test_gradients_of_constant_inputs_are_finite(case(loss), 0.0)


def error(loss):
    tester.test_errors(Item(case(loss), {"reconstruction": X[:1]}, SHAPE_ERROR))


def reference(loss):
    tester.test_equals_the_reference(case(loss))


def gradcheck(loss):
    tester.test_gradcheck(case(loss))


def learns(loss):
    tester.test_only_the_inputs_that_learn_get_a_gradient(case(loss))


def device(loss):
    tester.test_nothing_waits_for_the_device(case(loss))


def inputs(loss):
    tester.test_inputs_are_not_modified(case(loss))


def keywords(loss):
    tester.test_pairs_are_keyword_only(case(loss))


FAULTS = [
    (known, scaled),
    (optimum, offset),
    (grows, shrinks),
    (large, narrow_sum),
    (half, narrow),
    (half, narrow_sum),
    (autocast, rounded_by_autocast),
    (constant, root),
    (error, unchecked),
    (error, misnamed),
    (reference, scaled),
    (gradcheck, offset),
    (learns, without_gradient),
    (learns, teaches_the_target),
    (device, reads_a_value),
    (inputs, modifies_its_target),
    (keywords, positional),
]


@pytest.mark.parametrize(("check", "fault"), FAULTS, ids=lambda function: function.__name__)
def test_a_fault_is_found(check, fault):
    check(right)
    with pytest.raises((AssertionError, RuntimeError, pytest.fail.Exception)):
        check(fault)


def test_every_check_has_a_fault():
    checks = {name for name in vars(LossTester) if name.startswith("test_")}
    assert checks == {name for check, _ in FAULTS for name in check.__code__.co_names if name.startswith("test_")}
