"""Wrappers of `forward`: the last one is the outermost, and the first one to be removed."""

import copy

import torch
from torch import nn

from telecine.ops.wrap_forward import unwrap_forward, wrap_forward


def plus(forward, number, x):
    return forward(x) + number


def times(forward, x, *, by):
    return by * forward(x)


def test_wrappers_nest_and_are_removed_one_by_one():
    module = nn.Identity()
    x = torch.tensor(2.0)
    wrap_forward(module, plus, 3)
    wrap_forward(module, times, by=10)
    assert module(x) == 50
    assert nn.Identity()(x) == 2
    unwrap_forward(module)
    assert module(x) == 5
    unwrap_forward(module)
    assert module(x) == 2


def test_a_copy_computes_with_its_weights():
    module = nn.Linear(1, 1)
    wrap_forward(module, plus, 0)
    copied = copy.deepcopy(module)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    nn.init.ones_(copied.weight)
    nn.init.ones_(copied.bias)
    assert copied(torch.ones(1)) == 2
