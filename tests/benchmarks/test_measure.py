import os
import sys
from functools import partial

import pytest
import torch


@pytest.mark.slow
@pytest.mark.benchmarks
@pytest.mark.skipif(sys.platform != "linux", reason="without CUDA, only Linux can reset a peak")
def test_extra_peak_is_what_a_step_allocates(benchmark_module):
    extra_peak = benchmark_module("measure").extra_peak
    assert extra_peak(partial, torch.ones, 5_000_000) == pytest.approx(20e6, abs=3e6)
    assert extra_peak(partial, torch.ones, 25_000_000) == pytest.approx(100e6, rel=0.02)
    assert extra_peak(partial, abs, 1) < 2e6
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
        extra_peak(partial, os._exit, 3)


def test_interleaved_runs_all_steps_in_each_round(benchmark_module):
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    ticks = iter(range(100))
    seconds = benchmark_module("measure").interleaved(
        steps, rounds=2, warmup=1, clock=lambda: next(ticks)
    )
    assert calls == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert set(seconds["a"] + seconds["b"]) == {1}


def test_flops_include_gradients_taken_in_the_step(benchmark_module):
    x = torch.ones(2, 3)
    w = torch.ones(3, 5, requires_grad=True)
    count = benchmark_module("measure").count_flops(lambda: torch.autograd.grad((x @ w).sum(), w))
    assert count == 2 * (2 * 2 * 3 * 5)  # the product and its gradient
