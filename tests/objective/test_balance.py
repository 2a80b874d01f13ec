"""The adaptive weight: the ratio, its bounds, and what is taken where there is none."""

import pytest
import torch
from torch import nn

from telecine.objective.balance import adaptive_weight, average_over_ranks, gradient_norm


def weight(reference, norm):
    return adaptive_weight(reference_norm=torch.tensor(reference), norm=torch.tensor(norm)).item()


@pytest.mark.parametrize(
    ("reference", "norm", "expected"),
    [
        (2.0, 4.0, 0.5),
        (0.0, 4.0, 0.0),
        (0.5, 1e-4, 500.0),  # the denominator is 1e-3 at least
        (0.5, 0.0, 500.0),
        (5.0, 0.0, 1000.0),  # the ratio is 1e3 at most
        (0.0, 0.0, 0.0),
        (float("nan"), 1.0, 1.0),
        (1.0, float("nan"), 1.0),
        (float("inf"), 1.0, 1.0),
        (float("inf"), float("inf"), 1.0),
    ],
)
def test_ratio_bounds_and_non_finite(reference, norm, expected):
    assert weight(reference, norm) == pytest.approx(expected)


def test_there_is_no_graph():
    norms = torch.ones(2, requires_grad=True)
    assert not adaptive_weight(reference_norm=norms[0], norm=norms[1]).requires_grad


def test_the_norm_is_that_of_the_gradient_and_the_graph_is_kept():
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    loss = (w**2).sum() / 2
    assert gradient_norm(loss, w, lambda gradient: gradient).item() == 5
    assert w.grad is None
    loss.backward()
    assert w.grad.tolist() == [[3.0, 4.0]]


def test_the_gradient_is_reduced_before_the_norm():
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    other_rank = torch.tensor([-3.0, 0.0])
    assert gradient_norm((w**2).sum() / 2, w, lambda gradient: (gradient + other_rank) / 2).item() == 2


def test_half_precision_norms_do_not_overflow():
    w = nn.Parameter(torch.zeros(100, dtype=torch.float16))
    norm = gradient_norm((w * 3e4).sum(), w, average_over_ranks)
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(3e5, rel=1e-3)


def test_a_layer_that_the_loss_does_not_depend_on():
    w, other = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"`last_layer` must be a parameter .*shape \(2, 3\).*decoder.conv_out.weight"):
        gradient_norm(other.sum(), w, average_over_ranks)


def test_without_a_process_group_the_average_is_the_tensor_itself():
    x = torch.ones(2)
    assert average_over_ranks(x) is x
