"""Freezing a network leaves no trace."""

import pytest
import torch
from torch import nn

from telecine.discriminators.frozen import frozen


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_restores_each_parameter(fails):
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    before = [parameter.requires_grad for parameter in module.parameters()]
    assert before == [False, False, True, True]
    try:
        with frozen(module):
            assert not any(parameter.requires_grad for parameter in module.parameters())
            assert not module(torch.zeros(1, 2)).requires_grad
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [parameter.requires_grad for parameter in module.parameters()] == before
