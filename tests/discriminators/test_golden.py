"""The discriminators reproduce values of the reference, computed in float64 with the reference's code."""

import json
import math
from pathlib import Path

import pytest
import torch

from telecine import discriminators
from telecine.losses import gradient_penalty

CASES = json.loads((Path(__file__).parent / "golden.json").read_text())


def wave(numel, phase=0.0):
    return torch.sin(0.37 * torch.arange(1, numel + 1, dtype=torch.float64) + phase)


def fill_parameters(module):
    for rank, (name, parameter) in enumerate(sorted(module.named_parameters()), start=1):
        values = wave(parameter.numel(), 1.7 * rank).view_as(parameter)
        if name.endswith("gamma"):
            values = 1 + 0.1 * values
        elif parameter.ndim == 1:
            values = 0.1 * values
        else:
            values = values * (parameter.numel() / parameter.shape[0]) ** -0.5
        parameter.data.copy_(values)


def golden_input(shape):
    k = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return (0.6 * torch.sin(0.05 * k) + 0.4 * torch.cos(1.3 * k)).view(shape)


def build(case):
    module = getattr(discriminators, case["discriminator"])(**case["config"]).double()
    fill_parameters(module)
    return module


def test_every_class_has_a_case():
    assert {case["discriminator"] for case in CASES} == {
        "Discriminator",
        "Discriminator3D",
        "Discriminator3DWithfirstframe",
    }


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['discriminator']}-{len(case['config'])}"
)
class TestGolden:
    def test_parameter_names_and_shapes(self, case):
        ours = {name: list(parameter.shape) for name, parameter in build(case).named_parameters()}
        assert ours == case["parameters"]

    def test_logits(self, case):
        logits = build(case)(golden_input(case["input_shape"])).logits
        assert logits.tolist() == pytest.approx(case["logits"], rel=1e-6)

    def test_input_gradient(self, case):
        x = golden_input(case["input_shape"]).requires_grad_()
        (gradient,) = torch.autograd.grad(build(case)(x).logits.sum(), x)
        golden = case["input_grad"]
        assert gradient.abs().sum().item() == pytest.approx(golden["l1"], rel=1e-6)
        assert gradient.norm().item() == pytest.approx(golden["l2"], rel=1e-6)
        assert golden["samples"]
        for index, value in golden["samples"].items():
            assert gradient.flatten()[int(index)].item() == pytest.approx(value, rel=1e-6)

    def test_gradient_penalty_and_its_gradient(self, case):
        module = build(case)
        x = golden_input(case["input_shape"]).requires_grad_()
        penalty = gradient_penalty(real=x, logits=module(x).logits)
        assert penalty.item() == pytest.approx(case["gradient_penalty"], rel=1e-6)
        golden = case["gradient_penalty_grad"]
        (gradient,) = torch.autograd.grad(penalty, module.get_parameter(golden["parameter"]))
        assert gradient.norm().item() == pytest.approx(golden["l2"], rel=1e-6)
