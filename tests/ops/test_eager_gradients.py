"""Eager gradients: those of autograd, for any incoming gradient, with no graph kept."""

import weakref

import pytest
import torch

from telecine.ops.eager_gradients import (
    GradientSum,
    attach_gradients,
    differentiate,
    eager_backward,
)


class TestEagerBackward:
    def test_the_loss_scale_is_applied_before_a_gradient_is_rounded_to_half_precision(self):
        x = torch.ones(3, dtype=torch.float16, requires_grad=True)
        value = eager_backward(lambda x: {"term": 1e-9 * x.sum()}, x)["term"]
        (gradient,) = torch.autograd.grad(2.0**16 * value, x)
        assert (gradient > 6e-5).all()

    def test_second_derivatives_raise(self):
        """Also where the incoming gradient is a constant: the term's part would be missing."""
        x = torch.ones(2, requires_grad=True)
        value = eager_backward(lambda x: {"term": x.square().sum()}, x)["term"]
        message = "`create_graph` must be False .* got True. Set `eager_gradients=False`"
        with pytest.raises(RuntimeError, match=message):
            torch.autograd.grad(value + x.square().sum(), x, create_graph=True)


def test_an_input_without_a_gradient():
    a = torch.ones(2, requires_grad=True)
    b = torch.ones(3, requires_grad=True)
    value = attach_gradients(torch.tensor(5.0), [a, b], [torch.tensor([1.0, 2.0]), None])
    (2 * value).backward()
    assert value.item() == 5
    assert a.grad.tolist() == [2, 4]
    assert b.grad is None


class TestGradientsOf:
    def test_autocast_is_off(self):
        w = torch.randn(8, 8, requires_grad=True)
        x = torch.randn(4, 8)
        value = (x @ w).square().sum()
        with torch.autocast("cpu", torch.bfloat16):
            (inside,) = differentiate(value, [w], retain_graph=True)
        assert torch.equal(inside, torch.autograd.grad(value, w)[0])

    def test_a_value_that_does_not_depend_on_the_inputs(self):
        a = torch.ones(2, requires_grad=True)
        assert differentiate(a.sum(), []) == []
        assert differentiate(a.detach().sum(), [a]) == [None]


class TestGradientSum:
    def test_earlier_gradients_are_freed_as_soon_as_they_are_added(self):
        a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
        gradient_sum = GradientSum([a, b, c])
        gradient_sum.backward((5 * a + 7 * c).sum())
        first = weakref.ref(gradient_sum.gradients[0])
        last = gradient_sum.gradients[2]
        assert gradient_sum.gradients[1] is None
        gradient_sum.backward((2 * a + 3 * b).sum())
        assert [x.tolist() for x in gradient_sum.gradients] == [[7, 7], [3, 3], [7, 7]]
        assert first() is None, "the sum and its part would take twice the memory"
        assert gradient_sum.gradients[2] is last
        assert (a.grad, b.grad, c.grad) == (None, None, None)
        (again,) = differentiate(a.sum(), [a])
        assert again.tolist() == [1, 1], "the hooks are removed"

    def test_a_function_that_returns_no_gradient_adds_nothing(self):
        class NoGradient(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, gradient):
                return None

        a = torch.ones(2, requires_grad=True)
        gradient_sum = GradientSum([a])
        gradient_sum.backward(5 * a.sum())
        gradient_sum.backward(NoGradient.apply(a).sum())
        assert gradient_sum.gradients[0].tolist() == [5, 5]

    def test_a_value_that_does_not_depend_on_the_parameters(self):
        a = torch.ones(2, requires_grad=True)
        gradient_sum = GradientSum([a])
        assert gradient_sum.backward(a.detach().sum(), inputs=[a]) == [None]
        assert gradient_sum.gradients == [None]
        GradientSum([]).backward(a.sum())
