"""Checkpointed calls compute the values and gradients of plain ones, also where they keep tensors between calls."""

import copy
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from telecine.ops.checkpoint_call import checkpoint_call, checkpoint_module
from telecine.ops.pass_options import ContextGroup, pass_options, using_pass_options
from telecine.ops.wrap_forward import unwrap_forward


class Recurrent(nn.Module):
    """Adds what it keeps of the call before: in a list, a nested dict, or an attribute."""

    def __init__(self, where):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.where = where
        self.kept = None
        self.num_calls = 0

    def forward(self, x, cache=None):
        self.num_calls += 1
        if self.where == "attribute":
            before = self.kept
        elif self.where == "list":
            before = cache[0]
        else:
            before = cache["a"]["b"]
        if before is not None:
            x = x + before
        y = self.layer(x).tanh()
        after = y.square()
        if self.where == "attribute":
            self.kept = after
        elif self.where == "list":
            cache[0] = after
        else:
            cache["a"]["b"] = after
        return y


def outputs(module, x, where):
    cache = {"attribute": None, "list": [None], "dict": {"a": {"b": None}}}[where]
    module.kept = None
    return torch.cat([module(part, cache=cache) for part in x.split(1)])


@pytest.mark.parametrize("where", ["attribute", "list", "dict"])
def test_what_a_call_keeps_is_an_input_of_the_next(where):
    torch.manual_seed(0)
    module = Recurrent(where).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    expected = outputs(module, x, where)
    inputs = [x, *module.parameters()]
    expected_gradients = torch.autograd.grad(expected.square().sum(), inputs)
    checkpoint_module(module, "kept" if where == "attribute" else "")
    module.num_calls = 0
    output = outputs(module, x, where)
    assert module.num_calls == 4
    after = module.kept
    assert torch.equal(output, expected)
    gradients = torch.autograd.grad(output.square().sum(), inputs)
    assert module.num_calls == 8, "each call is computed once more"
    assert module.kept is after, "the backward pass leaves what the layers keep as it is"
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(gradient, reference)
    with torch.no_grad():
        assert torch.equal(outputs(module, x, where), expected)
    unwrap_forward(module)
    num_calls = module.num_calls
    torch.autograd.grad(outputs(module, x, where).square().sum(), inputs)
    assert module.num_calls == num_calls + 4, "it computes nothing again"


def test_checkpointed_calls_can_be_nested():
    torch.manual_seed(0)
    inner = Recurrent("list").double()
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = torch.autograd.grad(outputs(inner, x, "list").square().sum(), inner.layer.weight)[0]
    outer = copy.deepcopy(inner)
    checkpoint_module(outer, "")

    def both(x, cache):
        return torch.cat([outer(part, cache=cache) for part in x.split(1)])

    cache = [None]
    output = torch.cat([checkpoint_call(both, part, cache) for part in x.split(2)])
    gradient = torch.autograd.grad(output.square().sum(), outer.layer.weight)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def test_a_copy_of_the_module_is_independent():
    module = Recurrent("list")
    checkpoint_module(module, "")
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.layer.weight.zero_()
        other.layer.bias.zero_()
    assert outputs(other, torch.ones(2, 3), "list").eq(0).all()
    assert outputs(module, torch.ones(2, 3), "list").ne(0).any()


def test_layers_keep_their_tensors_after_an_error():
    module = Recurrent("attribute")
    module.kept = torch.ones(1, 3)
    checkpoint_module(module, "kept")
    kept = module.kept
    with pytest.raises(RuntimeError, match="must match the size"):
        module(torch.ones(1, 5))
    assert module.kept is kept
    assert pass_options().checkpointed_call is None


def test_random_numbers_are_the_same_again():
    torch.manual_seed(0)
    x = torch.ones(1000, requires_grad=True)
    y = checkpoint_call(nn.functional.dropout, x.sin())
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient != 0, y != 0)


def test_the_backward_pass_computes_one_call_after_the_other_again():
    events = []

    def forward(x, cache, number):
        events.append(f"forward {number}")
        cache[0] = (x if cache[0] is None else x + cache[0]).exp()
        return cache[0].sin()

    parts = [torch.zeros(8, requires_grad=True) for _ in range(3)]
    for number, part in enumerate(parts):
        part.register_hook(lambda _, number=number: events.append(f"backward {number}"))
    cache = [None]
    total = sum(
        checkpoint_call(forward, part, cache, number).sum() for number, part in enumerate(parts)
    )
    events.clear()
    total.backward()
    assert events == [
        "forward 2",
        "backward 2",
        "forward 1",
        "backward 1",
        "forward 0",
        "backward 0",
    ]


def test_a_graph_without_a_backward_pass_is_freed():
    """What a call keeps for the next must not tie its graph to itself."""
    alive = weakref.WeakSet()

    class Layer(nn.Linear):
        def forward(self, x, cache):
            alive.add(pass_options().checkpointed_call)
            cache[0] = super().forward(x if cache[0] is None else x + cache[0])
            return cache[0].sin()

    layer, cache = Layer(3, 3), [None]
    output = [checkpoint_call(layer, part, cache) for part in torch.ones(4, 3).split(1)]
    assert len(alive) == 4
    del output, cache
    assert len(alive) == 0


def test_a_recomputation_in_another_thread_has_the_group_of_the_call():
    """The backward of a GPU runs in a thread of its own, which has other options."""
    sizes = []

    def forward(x):
        sizes.append(pass_options().context_group.size)
        return x.sin()

    with using_pass_options(context_group=ContextGroup(size=2)):
        output = checkpoint_call(forward, torch.ones(2, requires_grad=True))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(output.sum().backward).result()
    assert sizes == [2, 2]
