"""The checks of the harness find the faults that losses have had."""

import pytest
import torch

from .harness import Item, LossCase, LossTester, random

X = random((2, 3), 0)


def right(*, reconstruction, target):
    wide = reconstruction.float() if reconstruction.dtype.itemsize < 4 else reconstruction
    return (wide - target).square().mean()


def narrow_sum(*, reconstruction, target):
    return (reconstruction - target).square().mean().float()


def without_gradient(*, reconstruction, target):
    return right(reconstruction=reconstruction.detach(), target=target) + 0 * reconstruction.mean()


def reads_a_value(*, reconstruction, target):
    is_small = float(target.abs().max().item() < 9)
    return right(reconstruction=reconstruction, target=target) * is_small


def modifies_its_target(*, reconstruction, target):
    loss = right(reconstruction=reconstruction, target=target)
    target.detach().mul_(2)
    return loss


def offset(*, reconstruction, target):
    mean = reconstruction.mean()
    return right(reconstruction=reconstruction, target=target) + mean - mean.detach()


def case_of(loss):
    return LossCase(
        name="case",
        loss=loss,
        example=lambda seed: {
            "reconstruction": random((2, 3), seed),
            "target": random((2, 3), seed + 100),
        },
        reference=right,
        learns=("reconstruction", "target"),
        optima=(({"reconstruction": X, "target": X}, 0.0),),
        large={"reconstruction": torch.full((2,), 3e4), "target": torch.full((2,), -3e4)},
    )


def check_overflow(case):
    LossTester().test_half_precision_does_not_overflow(case, torch.float16)


def check_optimum(case):
    LossTester().test_gradient_is_zero_at_an_optimum(Item(case, *case.optima[0]))


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (narrow_sum, check_overflow),
        (without_gradient, LossTester().test_only_the_inputs_that_learn_get_a_gradient),
        (reads_a_value, LossTester().test_nothing_waits_for_the_device),
        (modifies_its_target, LossTester().test_inputs_are_not_modified),
        (offset, check_optimum),
        (offset, LossTester().test_gradcheck),
    ],
)
def test_a_fault_is_found_and_a_right_loss_passes(fault, check):
    check(case_of(right))
    with pytest.raises((AssertionError, RuntimeError)):
        check(case_of(fault))
