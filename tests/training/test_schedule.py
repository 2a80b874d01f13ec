from itertools import pairwise

import pytest
import torch

from telecine.training.config import OptimizerConfig
from telecine.training.schedule import FINAL_SHARE, lr_scale, set_lr


def test_warm_up_rises_linearly_to_one():
    config = OptimizerConfig(warmup_steps=4)
    assert [lr_scale(config, step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_without_warm_up_the_first_step_is_full():
    assert lr_scale(OptimizerConfig(warmup_steps=0), 0, 10) == 1.0


def test_cosine_falls_from_one_to_its_last_share():
    config = OptimizerConfig(warmup_steps=10, schedule="cosine")
    scales = [lr_scale(config, step, 110) for step in range(10, 111)]
    assert scales[0] == 1.0
    assert scales[50] == pytest.approx((1 + FINAL_SHARE) / 2)
    assert scales[-1] == pytest.approx(FINAL_SHARE)
    assert all(later <= earlier for earlier, later in pairwise(scales))


def test_a_run_shorter_than_its_warm_up_stays_positive():
    config = OptimizerConfig(warmup_steps=500, schedule="cosine")
    assert all(0 < lr_scale(config, step, 20) <= 1 for step in range(20))


def test_set_lr_reaches_every_group():
    first, second = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([{"params": [first]}, {"params": [second], "lr": 3.0}], lr=1.0)
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
