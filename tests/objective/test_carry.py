"""Carried gradients: what autograd would have said, at once, for any incoming gradient, with nothing kept."""

import gc
import weakref

import pytest
import torch
from torch import nn

from telecine.objective.carry import carry, gradients_of, with_gradients


def terms(x):
    return (x.square().sum(), x.sin().sum(), torch.tensor(3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_those_of_the_term(dtype):
    x = torch.linspace(-1, 1, 7).to(dtype).requires_grad_()
    wide = x.detach().float() if dtype.itemsize == 2 else x.detach()
    ours = carry(terms, x)
    assert [value.requires_grad for value in ours] == [True, True, False]
    torch.testing.assert_close(torch.stack(ours[:2]), torch.stack(terms(wide)[:2]))
    (gradient,) = torch.autograd.grad(2 * ours[0] - 3 * ours[1], x)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, (4 * wide - 3 * wide.cos()).to(dtype), rtol=2e-2, atol=1e-2)


def test_a_gradient_of_half_precision_meets_the_loss_scale_before_it_is_rounded():
    x = torch.ones(3, dtype=torch.float16, requires_grad=True)
    (value,) = carry(lambda x: [1e-9 * x.sum()], x)
    (gradient,) = torch.autograd.grad(2.0**16 * value, x)
    assert (gradient > 6e-5).all()


def test_it_is_the_beginning_of_the_callers_graph():
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    (value,) = carry(lambda x: [x.square().sum()], 3 * w)
    value.backward()
    assert w.grad.tolist() == [18.0, 36.0]


def test_without_gradients_it_is_a_plain_call():
    seen = []
    x = torch.ones(2)
    carry(lambda y: [seen.append(y) or y.sum()], x)
    with torch.no_grad():
        carry(lambda y: [seen.append(y) or y.sum()], x.requires_grad_())
    assert all(y is x for y in seen)


def test_the_terms_own_graph_is_let_go():
    kept = []

    def term(x):
        y = x.exp()
        kept.append(weakref.ref(y))
        return [y.sum()]

    x = torch.ones(5, requires_grad=True)
    values = carry(term, x)
    gc.collect()
    assert kept[0]() is None
    assert values[0].requires_grad


def test_backward_twice_where_the_graph_is_kept():
    x = torch.ones(2, requires_grad=True)
    (value,) = carry(lambda x: [x.square().sum()], x)
    first, second = (torch.autograd.grad(value, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_there_is_no_gradient_of_a_gradient():
    x = torch.ones(2, requires_grad=True)
    (value,) = carry(lambda x: [x.square().sum()], x)
    incoming = torch.ones((), requires_grad=True)
    (gradient,) = torch.autograd.grad(value, x, incoming, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_several_inputs_of_which_some_have_no_gradient():
    a, b = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    value = with_gradients(torch.tensor(5.0), [a, b], [torch.tensor([1.0, 2.0]), None])
    (2 * value).backward()
    assert value.item() == 5
    assert a.grad.tolist() == [2, 4]
    assert b.grad is None


def test_gradients_are_taken_outside_of_autocast():
    w = torch.randn(8, 8, requires_grad=True)
    x = torch.randn(4, 8)
    value = (x @ w).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        (inside,) = gradients_of(value, [w], retain_graph=True)
    assert torch.equal(inside, torch.autograd.grad(value, w)[0])


def test_gradients_are_added_to_known_ones_which_are_let_go():
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    known = [torch.full((2,), 5.0), None, torch.full((2,), 7.0)]
    first, last = weakref.ref(known[0]), known[2]
    found = gradients_of((2 * a + 3 * b).sum(), [a, b, c], onto=known)
    assert [x.tolist() for x in found] == [[7, 7], [3, 3], [7, 7]]
    assert first() is None, "beside the sum it would take as much memory again"
    assert found[2] is last
    assert (a.grad, b.grad, c.grad) == (None, None, None)
    (again,) = gradients_of(a.sum(), [a])
    assert again.tolist() == [1, 1]


def test_known_gradients_may_share_memory():
    a, b = (torch.ones(2, 3, requires_grad=True) for _ in range(2))
    known = list(gradients_of((a + b).square().sum(), [a, b]))
    assert known[0].data_ptr() == known[1].data_ptr(), "as PyTorch has it for a sum"
    found = gradients_of((3 * (a + b)).sum(), [a, b], onto=known)
    assert [x.tolist() for x in found] == [[[7.0] * 3] * 2] * 2


def test_known_gradients_may_be_expanded():
    a = torch.ones(2, 3, requires_grad=True)
    known = list(gradients_of(a.sum(), [a]))
    assert known[0].stride() == (0, 0)
    assert gradients_of(2 * a.sum(), [a], onto=known)[0].tolist() == [[3.0] * 3] * 2


def test_a_gradient_that_a_function_does_not_give_adds_nothing():
    class Deaf(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return None

    a = torch.ones(2, requires_grad=True)
    assert gradients_of(Deaf.apply(a).sum(), [a], onto=[torch.full((2,), 5.0)])[0].tolist() == [5, 5]


def test_what_depends_on_nothing_that_is_asked_for_has_no_gradients():
    a = torch.ones(2, requires_grad=True)
    assert gradients_of(a.sum(), []) == []
    assert gradients_of(a.detach().sum(), [a]) == [None]
    assert gradients_of(a.detach().sum(), [a], onto=[torch.ones(2)])[0].tolist() == [1, 1]
