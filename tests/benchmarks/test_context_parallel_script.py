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
