import pytest
import torch
from torch import nn

from telecine.perceptual.frozen import Frozen


class Hidden(Frozen):
    def __init__(self):
        super().__init__()
        self.tensors = [torch.rand(3), torch.arange(3), torch.rand(3, dtype=torch.float64)]

    def _move(self, fn):
        self.tensors = [fn(tensor) for tensor in self.tensors]


def dtypes(module):
    return [tensor.dtype for tensor in module.tensors]


def test_a_subclass_must_say_what_moves():
    with pytest.raises(TypeError, match="_move"):
        Frozen()


def test_is_never_in_training():
    module = Hidden()
    assert not module.training
    assert module.train() is module
    parent = nn.Sequential(module, nn.Dropout()).train()
    assert [child.training for child in parent] == [False, True]


def test_moves_with_its_parent():
    module = Hidden()
    nn.Sequential(module).to("meta")
    assert {tensor.device.type for tensor in module.tensors} == {"meta"}


def test_keeps_its_precision_against_half_and_follows_double():
    module, expected = Hidden(), [torch.float32, torch.int64, torch.float64]
    values = [tensor.clone() for tensor in module.tensors]
    for cast in (nn.Module.half, nn.Module.bfloat16):
        assert cast(module) is module
        assert dtypes(module) == expected
    assert all(map(torch.equal, module.tensors, values))
    assert dtypes(module.double()) == [torch.float64, torch.int64, torch.float64]
    assert dtypes(module.float()) == [torch.float32, torch.int64, torch.float32]
