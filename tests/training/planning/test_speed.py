"""A run that is too large for a CPU says so before it starts."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn

from telecine.settings import ClipConfig, TrainConfig
from telecine.settings.parse import read_config
from telecine.training import train
from telecine.training.planning import capacity
from telecine.training.planning.update import UpdatePlan

GIB = 2**30


@pytest.fixture
def planned(monkeypatch):
    """Give every plan a peak of 6 GiB and 4 TFLOP, on a CPU with 0.1 TFLOP/s and 20 GiB."""
    plan = UpdatePlan(
        held={},
        at_peak={"autoencoder": 6 * GIB},
        largest={},
        flops={"a": 3 * 10**12, "b": 10**12},
        operators={},
        moved={},
        checkpoint=0,
    )
    monkeypatch.setattr(capacity, "plan_update", lambda *_, **__: plan)
    monkeypatch.setattr(capacity, "_measured_flops", lambda device, dtype: 1e11)
    monkeypatch.setattr(capacity, "free_memory", lambda device: 20 * GIB)


def model_of(num_weights):
    return nn.ParameterList([torch.empty(num_weights, device="meta")])


@pytest.mark.usefixtures("planned")
def test_need_and_time_are_said_and_days_are_warned_of(monkeypatch):
    config = TrainConfig(steps=900)
    text = "on this CPU an update needs 6.00 GiB and about 40 s, the run 10 hours"
    assert capacity.describe_on_cpu(config, model_of(10**7), num_processes=1) == text
    text = capacity.describe_on_cpu(replace(config, steps=100_000), model_of(10**7), num_processes=3)
    assert text.startswith("warning: on this CPU an update needs 6.00 GiB and about 40 s, the run 46 days. `--config")
    monkeypatch.setattr(capacity, "_measured_flops", lambda device, dtype: 1.5e10)
    text = capacity.describe_on_cpu(replace(config, steps=100), model_of(10**7), num_processes=1)
    assert text.endswith("about 267 s, the run 7.4 hours")
    with pytest.raises(ValueError, match=r"`memory` must be enough .* but got 5.00 GiB, and an update needs 6.00"):
        capacity.describe_on_cpu(config, model_of(10**7), num_processes=4)


def test_small_runs_are_not_planned():
    assert capacity.describe_on_cpu(read_config("demo"), model_of(1_400_000), num_processes=1) is None
    assert capacity.describe_on_cpu(read_config("demo_long"), model_of(3_000_000), num_processes=1) is None


@pytest.mark.usefixtures("planned")
def test_the_size_of_an_update_is_its_weights_times_its_pixels(monkeypatch):
    config = TrainConfig(batch_size=3, gradient_accumulation_steps=2, clips=ClipConfig(5, 40, 50))
    monkeypatch.setattr(capacity, "_SMALLEST_TO_PLAN", 7 * (6 * 5 * 40 * 50))
    assert capacity.describe_on_cpu(config, model_of(6), num_processes=1) is None
    assert capacity.describe_on_cpu(config, model_of(7), num_processes=1) is not None


@pytest.mark.slow
def test_a_run_is_refused_before_it_computes(light, monkeypatch):
    monkeypatch.setattr(capacity, "free_memory", lambda device: 2**20)
    monkeypatch.setattr(capacity, "_SMALLEST_TO_PLAN", 1)
    monkeypatch.setattr("telecine.training.prepare.prepare_linear", None)
    with pytest.raises(ValueError, match=r"but got 0\.00 GiB, and an update needs .*`--config demo` is sized"):
        train(light(linear_baseline=True), console=Console(quiet=True))
