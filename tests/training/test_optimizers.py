"""The optimizers that the settings name, and their states in checkpoints."""

import copy
import sys
from dataclasses import replace
from types import ModuleType
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from telecine.settings import OptimizerConfig
from telecine.training import train
from telecine.training.build import build_accelerator, build_autoencoder, build_state
from telecine.training.optimizers import OPTIMIZERS, load_optimizer, optimizer_tensors
from telecine.training.tensor_files import save_tensors

from .helpers import assert_equal


def test_an_optimizer_of_eight_bits(tiny, monkeypatch):
    config = tiny(
        optimizer=OptimizerConfig(name="adamw_8bit", lr=0.5, disc_lr=0.25, weight_decay=0.125)
    )
    accelerator = build_accelerator(config)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(
        ImportError, match=r"`optimizer.name: adamw_8bit` needs bitsandbytes. Run `pip install"
    ):
        build_state(config, accelerator, build_autoencoder(config))

    class AdamW8bit(torch.optim.AdamW):
        pass

    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["bitsandbytes.optim"].AdamW8bit = AdamW8bit
    state = build_state(config, accelerator, build_autoencoder(config))
    for optimizer, lr in zip(state.optimizers.values(), (0.5, 0.25), strict=True):
        assert type(optimizer) is AdamW8bit
        assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (lr, 0.125)
    elsewhere = nn.Linear(1, 1, device="meta")
    with pytest.raises(
        ValueError, match=r"`optimizer.name` must be adamw on meta, but got adamw_8bit"
    ):
        OPTIMIZERS[config.optimizer.name](list(elsewhere.parameters()), lr=0.5)
    assert set(OPTIMIZERS) == set(get_args(get_type_hints(OptimizerConfig)["name"]))


@pytest.mark.slow
def test_a_run_with_states_of_eight_bits_resumes(tiny):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    config = tiny(
        optimizer=OptimizerConfig(name="adamw_8bit", warmup_steps=0), steps=1, trackers=()
    )
    train(config)
    with pytest.raises(
        ValueError, match=r"`optimizer.name` must be 'adamw_8bit' as in .*, but got 'adamw'"
    ):
        train(replace(config, optimizer=OptimizerConfig()))
    assert train(replace(config, steps=2)).last["psnr"] > 5


class Scaled(nn.Module):
    """Two layers between weights with one element, one of them without dimensions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 1))
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.layers(x) * self.scale + self.shift


def adamw(model):
    return torch.optim.AdamW(model.parameters(), 0.1, betas=(0.5, 0.9))


def adamw_8bit(model):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    return bitsandbytes.optim.AdamW8bit(
        model.parameters(), 0.1, betas=(0.5, 0.9)
    )  # 8 bits from 4096 weights on


def update(model, optimizer, num_steps=2):
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(torch.ones(3, 80)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("make", [adamw, adamw_8bit])
def test_an_optimizer_resumes_bit_for_bit_with_new_hyperparameters(tmp_path, make):
    model = Scaled()
    optimizer = make(model)
    save_tensors(tmp_path / "new.safetensors", optimizer_tensors(optimizer))
    update(model, optimizer)
    save_tensors(tmp_path / "optimizer.safetensors", optimizer_tensors(optimizer))
    resumed = copy.deepcopy(model)
    restored = make(resumed)
    load_optimizer(restored, tmp_path, "optimizer")
    restored.param_groups[0]["initial_lr"] = 0.25
    for network, opt in ((model, optimizer), (resumed, restored)):
        update(network, opt)
    assert_equal(resumed.state_dict(), model.state_dict())
    assert_equal(optimizer_tensors(restored), optimizer_tensors(optimizer))
    load_optimizer(restored, tmp_path, "new")
    assert restored.state_dict()["state"] == {}
    assert restored.param_groups[0]["initial_lr"] == 0.25, (
        "hyperparameters are settings of the resumed run"
    )
