"""Results of several processes that differ from one, and layouts that do not exist, are reported."""

import math

import torch


def test_a_nan_is_the_largest_difference_wherever_it_is(benchmark_module):
    """Tensors after the NaN are equal or have small differences."""
    ours = {"weights": {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)}}
    theirs = {
        "weights": {
            "a": torch.tensor([1.0, math.nan]),
            "b": torch.ones(2),
            "c": torch.tensor([1.0, 1.5]),
        }
    }
    module = benchmark_module("context_parallel")
    (difference,) = module.differences(ours, theirs, is_divided=False)
    assert difference == ("weights", "a", math.inf)


def test_a_number_of_processes_without_a_layout_is_refused(run_here):
    error = run_here("context_parallel.py", "values", "--processes", "3", returns=2)
    assert "`--processes` must be one of 2, 4, which have a layout, but got 3." in error


def test_cases_whose_batch_cannot_be_divided_are_said(benchmark_module, monkeypatch, capsys):
    module = benchmark_module("context_parallel")
    monkeypatch.setattr(module, "train_cases", lambda *arguments: None)
    assert module.compare({"short_flow": 1}, torch.float64, [(4, 2)])
    row = "short_flow                4 processes, 2 for a clip"
    assert capsys.readouterr().out == f"{row}  skipped: 2 does not divide its batch\n"
