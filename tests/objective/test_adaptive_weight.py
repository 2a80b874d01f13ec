"""The adaptive weight: the ratio, its bounds, where it is taken, and what is taken where there is none."""

import pytest
import torch
from torch import nn

from telecine.objective.balance import (
    Balance,
    adaptive_weight,
    average_over_ranks,
    layer_gradient_norm,
    sample_gradient_norm,
    with_reduced_gradient,
)


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
    assert layer_gradient_norm(loss, w, lambda gradient: gradient).item() == 5
    assert w.grad is None
    loss.backward()
    assert w.grad.tolist() == [[3.0, 4.0]]


def test_the_gradient_is_reduced_before_the_norm():
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    other_rank = torch.tensor([-3.0, 0.0])
    assert layer_gradient_norm((w**2).sum() / 2, w, lambda gradient: (gradient + other_rank) / 2).item() == 2


def test_half_precision_norms_do_not_overflow():
    w = nn.Parameter(torch.zeros(100, dtype=torch.float16))
    norm = layer_gradient_norm((w * 3e4).sum(), w, average_over_ranks)
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(3e5, rel=1e-3)


def test_a_layer_that_the_loss_does_not_depend_on():
    w, other = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"`last_layer` must be a parameter .*shape \(2, 3\).*decoder.conv_out.weight"):
        layer_gradient_norm(other.sum(), w, average_over_ranks)


def test_without_a_process_group_the_average_is_the_tensor_itself():
    x = torch.ones(2)
    assert average_over_ranks(x) is x


def test_the_norm_at_samples_adds_the_squares_of_the_ranks():
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    assert sample_gradient_norm((x**2).sum() / 2, x, average_over_ranks).item() == 5
    other_rank = 75.0
    assert sample_gradient_norm(
        (x**2).sum() / 2, x, lambda squares: (squares + other_rank) / 2
    ).item() == pytest.approx(50**0.5)
    assert x.grad is None


def test_a_gradient_is_averaged_on_its_way_to_a_parameter():
    w = nn.Parameter(torch.tensor(2.0))
    (3 * with_reduced_gradient(w, lambda gradient: gradient / 2)).backward()
    assert w.grad.item() == 1.5
    with torch.no_grad():
        assert with_reduced_gradient(w, lambda gradient: gradient / 2).item() == 2


class TestBalance:
    def losses(self):
        x = torch.tensor([3.0, 4.0], requires_grad=True)
        return x, (x**2).sum() / 2, {"discr_3d": x.sum() * 2**0.5, "multiscale_discrs.0": x[0] * 4}

    @pytest.mark.parametrize("at", ["last_layer", "reconstruction"])
    def test_each_loss_gets_its_weight(self, at):
        x, reference, losses = self.losses()
        weights = Balance((), at=at, reduce=average_over_ranks)(losses, reference, x)
        assert {name: w.item() for name, w in weights.items()} == pytest.approx(
            {"discr_3d": 2.5, "multiscale_discrs.0": 1.25}
        )

    def test_bounds(self):
        x, reference, losses = self.losses()
        weights = Balance((), max_weight=2.0, min_norm=10.0, reduce=average_over_ranks)(losses, reference, x)
        assert [w.item() for w in weights.values()] == [0.5, 0.5]
        weights = Balance((), max_weight=2.0, reduce=average_over_ranks)(losses, reference, x)
        assert [w.item() for w in weights.values()] == [2.0, 1.25]

    def test_one_where_there_is_nothing_to_compare(self):
        x, reference, losses = self.losses()
        balance = Balance((), reduce=average_over_ranks)
        for given in ((losses, None, x), (losses, reference, None), (losses, reference.detach(), x)):
            assert [w.item() for w in balance(*given).values()] == [1, 1]
        assert balance({}, reference, x) == {}

    def test_the_moving_average_is_of_each_loss_and_saved(self):
        names = ("discr_3d", "multiscale_discrs_0")
        balance = Balance(names, decay=0.5, reduce=average_over_ranks)
        for factor in (1.0, 3.0, 7.0):
            x, reference, losses = self.losses()
            weights = balance(losses, factor * reference, x)
        assert weights["discr_3d"].item() == pytest.approx((2 + 7) / 2 * 2.5)
        assert weights["multiscale_discrs.0"].item() == pytest.approx((2 + 7) / 2 * 1.25)
        restored = Balance(names, decay=0.5, reduce=average_over_ranks)
        restored.load_state_dict(balance.state_dict())
        restored.eval()
        assert restored(losses, reference, x)["discr_3d"].item() == weights["discr_3d"].item()
        assert len(balance.state_dict()) == 4

    def test_without_one_nothing_is_saved(self):
        assert Balance(("discr",), reduce=average_over_ranks).state_dict() == {}
