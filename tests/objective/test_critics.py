"""What each discriminator is shown, and that freezing one leaves no trace."""

import pytest
import torch
from torch import nn

from telecine.objective.critics import Critic, frozen, one_frame, scaled_down, whole_video


def test_the_whole_video():
    x = torch.randn(2, 3, 4, 5, 6)
    assert whole_video(x, torch.zeros(2, 1, dtype=torch.int64)) is x


def test_one_frame_of_each_clip():
    x = torch.randn(3, 2, 4, 5, 6)
    frames = one_frame(x, torch.tensor([[2], [0], [3]]))
    assert torch.equal(frames, torch.stack([x[0, :, 2], x[1, :, 0], x[2, :, 3]]))


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (16, 5)])
def test_scaled_down_are_means_of_cells(factor, size):
    x = torch.randn(2, 3, 2, *size, dtype=torch.float64)
    small = scaled_down(factor)(x, torch.zeros(2, 1, dtype=torch.int64))
    assert small.shape == (2, 3, 2, *(-(-n // factor) for n in size))
    for row in range(small.shape[-2]):
        for column in range(small.shape[-1]):
            cell = x[..., row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            torch.testing.assert_close(small[..., row, column], cell.mean((-1, -2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_videos_are_scaled_down(dtype):
    assert scaled_down(2)(torch.ones(1, 3, 1, 4, 4, dtype=dtype), None).eq(1).all()


def test_a_view_is_cast_to_the_parameters_type():
    critic = Critic("discr", nn.Linear(4, 1).double(), whole_video)
    assert critic.judge(torch.zeros(1, 4, dtype=torch.bfloat16)).dtype == torch.float64
    assert Critic("discr", nn.Flatten(), whole_video).judge(torch.zeros(1, 4).half()).dtype == torch.float16


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
