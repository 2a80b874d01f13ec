"""Every check of the harness fails for a loss with the fault that it looks for."""

import dataclasses

import pytest
import torch

from .harness import Item, LossCase, LossTester, random

X = random((2, 3), 0)
SHAPE_ERROR = "`reconstruction` must be of `target`'s shape."


def right(*, reconstruction, target):
    if reconstruction.shape != target.shape:
        raise ValueError(SHAPE_ERROR)
    return (
        (reconstruction.float() if reconstruction.dtype.itemsize < 4 else reconstruction)
        .sub(target)
        .square()
        .mean()
    )


# Losses with one fault each, given x and y.


def narrow(x, y):
    return (x - y).square().mean()


def narrow_sum(x, y):
    return narrow(x, y).float()


def rounded_by_autocast(x, y):
    root = right(reconstruction=x, target=y).sqrt().reshape(1, 1)
    return (root @ root).reshape(()).to(root.dtype)


def reads_a_value(x, y):
    return right(reconstruction=x, target=y) * float(y.abs().max().item() < 9)


def modifies_its_target(x, y):
    loss = right(reconstruction=x, target=y)
    y.detach().mul_(2)
    return loss


def scaled(x, y):
    return 1.001 * right(reconstruction=x, target=y)


def offset(x, y):
    return right(reconstruction=x, target=y) + x.mean() - x.mean().detach()


def without_gradient(x, y):
    return right(reconstruction=x.detach(), target=y) + 0 * x.mean()


def root(x, y):
    return right(reconstruction=x, target=y).sqrt().square()


def shrinks(x, y):
    return -right(reconstruction=x, target=y)


def misnamed(x, y):
    if x.shape != y.shape:
        raise ValueError("`target` must be of `reconstruction`'s shape.")
    return narrow(x, y)


def positional(reconstruction, target):
    return right(reconstruction=reconstruction, target=target)


def keyword_only(fault):
    return lambda *, reconstruction, target: fault(reconstruction, target)


def case_of(loss):
    return LossCase(
        name="case",
        loss=loss,
        example=lambda seed: {
            "reconstruction": random((2, 3), seed),
            "target": random((2, 3), seed + 100),
        },
        reference=narrow_by_name,
        learns=("reconstruction", "target"),
        increasing=tuple({"reconstruction": X * scale, "target": 0 * X} for scale in (0, 1, 2)),
        large={"reconstruction": torch.full((2,), 3e4), "target": torch.full((2,), -3e4)},
    )


narrow_by_name = keyword_only(narrow)


def item(case, reconstruction, expected):
    return Item(case, {"reconstruction": reconstruction, "target": X}, expected)


# A check, the arguments after the case, and losses with a fault that it finds.
FAULTS = [
    (lambda tester, case: tester.test_known_values(item(case, X + 2, 4.0)), [scaled]),
    (lambda tester, case: tester.test_gradient_is_zero_at_an_optimum(item(case, X, 0.0)), [offset]),
    (lambda tester, case: tester.test_grows(case), [shrinks]),
    (
        lambda tester, case: tester.test_half_precision_does_not_overflow(case, torch.float16),
        [narrow_sum],
    ),
    (
        lambda tester, case: tester.test_at_least_float32(case, torch.float16, False),
        [narrow, narrow_sum],
    ),
    (
        lambda tester, case: tester.test_at_least_float32(case, torch.float32, True),
        [rounded_by_autocast],
    ),
    (lambda tester, case: tester.test_gradients_of_constant_inputs_are_finite(case, 0.0), [root]),
    (lambda tester, case: tester.test_errors(item(case, X[:1], SHAPE_ERROR)), [narrow, misnamed]),
    (lambda tester, case: tester.test_equals_the_reference(case), [scaled]),
    (lambda tester, case: tester.test_gradcheck(case), [offset]),
    (
        lambda tester, case: tester.test_only_the_inputs_that_learn_get_a_gradient(case),
        [without_gradient],
    ),
    (lambda tester, case: tester.test_nothing_waits_for_the_device(case), [reads_a_value]),
    (lambda tester, case: tester.test_inputs_are_not_modified(case), [modifies_its_target]),
    (lambda tester, case: tester.test_pairs_are_keyword_only(case), [positional]),
]


@pytest.mark.parametrize(
    ("check", "fault"), [(check, fault) for check, faults in FAULTS for fault in faults]
)
def test_a_fault_is_found(check, fault):
    check(LossTester(), case_of(right))
    with pytest.raises((AssertionError, RuntimeError, pytest.fail.Exception)):
        check(LossTester(), case_of(fault if fault is positional else keyword_only(fault)))


def test_a_gradient_of_an_input_that_does_not_learn_is_found():
    case = dataclasses.replace(case_of(right), learns=("reconstruction",))
    with pytest.raises(AssertionError):
        LossTester().test_only_the_inputs_that_learn_get_a_gradient(case)


def test_every_check_has_a_fault():
    checks = {name for name in vars(LossTester) if name.startswith("test_")}
    assert checks == {
        name for check, _ in FAULTS for name in check.__code__.co_names if name.startswith("test_")
    }
