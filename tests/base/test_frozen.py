import copy
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from telecine.base.frozen import FrozenModule, FrozenTensors


def of_tensors():
    named = {"a": torch.rand(3), "b": torch.arange(3), "c": torch.rand(3, dtype=torch.float64)}
    return FrozenTensors(named), lambda frozen: list(frozen.weights.values())


def of_module():
    module = nn.Linear(2, 3)
    module.register_buffer("b", torch.arange(3))
    module.register_buffer("c", torch.rand(3, dtype=torch.float64))
    return FrozenModule(module), lambda frozen: [module.weight, *module.buffers()]


@pytest.fixture(params=[of_tensors, of_module])
def hiding(request):
    """Return a frozen module and a function from it to what it hides: float32, int64 and float64."""
    return request.param()


def dtypes(tensors):
    return [tensor.dtype for tensor in tensors]


def test_hides_and_freezes(hiding):
    frozen, tensors_of = hiding
    parent = nn.Sequential(frozen)
    assert [*parent.parameters(), *parent.buffers(), *parent.state_dict()] == []
    assert not any(tensor.requires_grad for tensor in tensors_of(frozen))


def test_is_never_in_training():
    dropout = nn.Dropout()
    frozen = FrozenModule(dropout)
    assert not frozen.training
    assert frozen.train() is frozen
    parent = nn.Sequential(frozen, nn.Dropout()).train()
    assert [child.training for child in parent] == [False, True]
    dropout.train()  # it may also belong to another model
    assert not frozen.in_eval_mode().training


def test_moves_with_its_parent(hiding):
    frozen, tensors_of = hiding
    nn.Sequential(frozen).to("meta")
    assert {tensor.device.type for tensor in tensors_of(frozen)} == {"meta"}


def test_keeps_its_precision_against_half_and_follows_double(hiding):
    frozen, tensors_of = hiding
    expected = [torch.float32, torch.int64, torch.float64]
    values = [x.clone() for x in tensors_of(frozen)]
    for cast in (nn.Module.half, nn.Module.bfloat16):
        assert cast(frozen) is frozen
        assert dtypes(tensors_of(frozen)) == expected
    assert all(map(torch.equal, tensors_of(frozen), values))
    assert dtypes(tensors_of(frozen.double())) == [torch.float64, torch.int64, torch.float64]
    assert dtypes(tensors_of(frozen.float())) == [torch.float32, torch.int64, torch.float32]


def test_a_module_in_half_precision_becomes_float32():
    assert FrozenModule(nn.Linear(2, 3).bfloat16()).in_eval_mode().weight.dtype == torch.float32


def test_copies_are_independent(hiding):
    frozen, tensors_of = hiding
    copied = copy.deepcopy(frozen)
    copied.to("meta")
    assert {tensor.device.type for tensor in tensors_of(frozen)} == {"cpu"}


def test_a_function_is_left_as_it_is():
    assert FrozenModule(abs).double().in_eval_mode() is abs


def test_a_float32_module_keeps_its_tensors():
    """Those without values, as in plans, cannot be replaced while something refers to them."""
    with FakeTensorMode():
        module = nn.Linear(2, 2)
        weight = weakref.ref(module.weight)
        assert FrozenModule(module).in_eval_mode().weight is weight()
