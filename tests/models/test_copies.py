"""Copies of a model with other tensors."""

from torch import nn

from telecine.base.frozen import FrozenModule
from telecine.models.copies import copy_with


def test_a_copy_shares_the_frozen_networks():
    model = nn.Module()
    model.teacher = FrozenModule(nn.Linear(2, 2))
    assert copy_with(model, {}).teacher.in_eval_mode() is model.teacher.in_eval_mode()
