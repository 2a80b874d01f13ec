"""The checks that every loss has to pass. A test module declares `LossCase`s in a subclass of `LossTester`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

# The keyword arguments of a loss: tensors, sequences of tensors, and other values.
Inputs = dict[str, Any]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class LossCase:
    """A loss and what it is checked against."""

    name: str
    loss: Callable[..., Tensor]
    """Called with keyword arguments; returns a 0-d tensor."""
    example: Callable[[int], Inputs]
    """Maps a seed to random float64 inputs; the seed may also choose shapes and options."""
    reference: Callable[..., float | Tensor]
    """An independent implementation. It gets the inputs in float64."""
    learns: tuple[str, ...]
    """Names of the inputs that get a gradient; no other tensor may get one."""
    known: tuple[tuple[Inputs, float], ...] = ()
    """Inputs and the value of the loss, calculated by hand."""
    optima: tuple[tuple[Inputs, float], ...] = ()
    """Inputs and the value of the loss where the gradient is exactly 0."""
    increasing: tuple[Inputs, ...] = ()
    """Inputs for which the loss grows strictly from one to the next."""
    large: Inputs | None = None
    """Inputs that float16 can represent, for which arithmetic in float16 overflows."""
    errors: tuple[tuple[Inputs, str], ...] = ()
    """Changes of the inputs of seed 0, and the whole message of the `ValueError`."""
    num_examples: int = 6
    half_rel: float = 1e-5
    """Relative tolerance for inputs of other dtypes, and under autocast; infinite to check only the dtype."""
    function: Callable[..., Any] | None = None
    """The public function, if `loss` is an adapter of it. If it has several arguments, they are keyword-only."""
    unchecked: Callable[..., Tensor] | None = None
    """The loss without the run-time check of its types, which would raise before the loss does."""

    def __repr__(self):
        return self.name


@dataclass(frozen=True)
class Item:
    """One known value, optimum or error of a case."""

    case: LossCase
    inputs: Inputs
    expected: Any
    index: int = field(default=0)

    def __repr__(self):
        return f"{self.case.name}-{self.index}"


def map_tensors(function, inputs):
    """Apply a function to every floating-point tensor of the inputs."""

    def apply(value):
        if isinstance(value, list | tuple):
            return [apply(item) for item in value]
        return function(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    return {name: apply(value) for name, value in inputs.items()}


def tensors_of(value):
    """Return the floating-point tensors in one input."""
    values = value if isinstance(value, list | tuple) else [value]
    return [item for item in values if isinstance(item, Tensor) and item.is_floating_point()]


def with_gradients(inputs, dtype=torch.float64):
    """Return copies of all tensors that require gradients."""
    return map_tensors(lambda tensor: tensor.detach().to(dtype, copy=True).requires_grad_(), inputs)


def gradients(inputs):
    """Yield the name of every tensor and its gradient."""
    for name, value in inputs.items():
        for tensor in tensors_of(value):
            yield name, tensor.grad


class LossTester:
    """Checks the losses that a subclass lists in `cases`."""

    cases: tuple[LossCase, ...] = ()

    def pytest_generate_tests(self, metafunc):
        """Parametrise each check by the cases, or by what they declare."""
        lists = {
            "case": list(self.cases),
            "paired_case": [case for case in self.cases if len(case.example(0)) > 1],
            "ordered_case": [case for case in self.cases if case.increasing],
            "large_case": [case for case in self.cases if case.large is not None],
            "known": self.items("known"),
            "optimum": self.items("optima"),
            "invalid": self.items("errors"),
        }
        for name, values in lists.items():
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values, ids=repr)

    def items(self, attribute):
        """Return every entry of one attribute of the cases."""
        return [
            Item(case, inputs, expected, index)
            for case in self.cases
            for index, (inputs, expected) in enumerate(getattr(case, attribute))
        ]

    def test_known_values(self, known):
        value = known.case.loss(**known.inputs)
        assert value.shape == ()
        assert value.item() == pytest.approx(known.expected, rel=1e-6, abs=1e-12)

    def test_equals_the_reference(self, case):
        for seed in range(case.num_examples):
            inputs = case.example(seed)
            value = case.loss(**inputs)
            assert value.shape == ()
            assert value.dtype == torch.float64
            assert value.item() == pytest.approx(
                float(case.reference(**inputs)), rel=1e-8, abs=1e-12
            ), f"seed {seed}"

    def test_gradient_is_zero_at_an_optimum(self, optimum):
        inputs = with_gradients(optimum.inputs)
        value = optimum.case.loss(**inputs)
        value.backward()
        assert value.item() == pytest.approx(optimum.expected, rel=1e-12, abs=0)
        for name, gradient in gradients(inputs):
            assert gradient is None or gradient.eq(0).all(), name

    def test_grows(self, ordered_case):
        values = [ordered_case.loss(**inputs).item() for inputs in ordered_case.increasing]
        assert len(values) > 1
        assert values == sorted(set(values))

    def test_gradcheck(self, case):
        for seed in range(2):
            inputs = with_gradients(case.example(seed))
            checked = [tensor for name in case.learns for tensor in tensors_of(inputs.get(name))]
            assert checked

            def loss(*tensors, inputs=inputs):
                perturbed = iter(tensors)
                learned = {name: inputs[name] for name in case.learns if name in inputs}
                return case.loss(**{**inputs, **map_tensors(lambda _: next(perturbed), learned)})

            assert torch.autograd.gradcheck(loss, checked, fast_mode=seed > 0)

    def test_only_the_inputs_that_learn_get_a_gradient(self, case):
        for seed in range(2):
            inputs = with_gradients(case.example(seed))
            case.loss(**inputs).backward()
            for name, gradient in gradients(inputs):
                if name in case.learns:
                    assert gradient is not None, name
                    assert gradient.ne(0).any(), name
                else:
                    assert gradient is None, name

    @pytest.mark.parametrize("fill", [-1.0, 0.0, 1.0])
    def test_gradients_of_constant_inputs_are_finite(self, case, fill):
        inputs = with_gradients(
            map_tensors(lambda tensor: torch.full_like(tensor, fill), case.example(0))
        )
        value = case.loss(**inputs)
        value.backward()
        assert value.isfinite()
        for name, gradient in gradients(inputs):
            assert gradient is None or gradient.isfinite().all(), name

    @pytest.mark.parametrize("autocast", [False, True])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_at_least_float32(self, case, dtype, autocast):
        for seed in range(2):
            inputs = with_gradients(case.example(seed), dtype)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                value = case.loss(**inputs)
            value.backward()
            assert value.dtype == torch.promote_types(dtype, torch.float32)
            expected = float(
                case.reference(**map_tensors(lambda tensor: tensor.detach().double(), inputs))
            )
            assert value.item() == pytest.approx(expected, rel=case.half_rel, abs=1e-6)
            assert all(
                gradient is None or gradient.isfinite().all() for _, gradient in gradients(inputs)
            )

    @pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
    def test_half_precision_does_not_overflow(self, large_case, dtype):
        inputs = map_tensors(lambda tensor: tensor.to(dtype), large_case.large)
        value = large_case.loss(**inputs)
        expected = float(large_case.reference(**map_tensors(Tensor.double, inputs)))
        assert expected > torch.finfo(torch.float16).max
        assert value.item() == pytest.approx(expected, rel=1e-3)

    def test_nothing_waits_for_the_device(self, case):
        for seed in range(2):
            # The device "meta" has no values, so that reading one raises.
            inputs = map_tensors(
                lambda tensor: tensor.to("meta").requires_grad_(), case.example(seed)
            )
            value = case.loss(**{name: to_meta(item) for name, item in inputs.items()})
            value.backward()
            assert (value.shape, value.device.type) == ((), "meta")

    def test_inputs_are_not_modified(self, case):
        inputs, before = case.example(0), case.example(0)
        case.loss(**inputs)
        for name, value in inputs.items():
            for tensor, original in zip(tensors_of(value), tensors_of(before[name]), strict=True):
                assert torch.equal(tensor, original), name
                assert tensor.requires_grad == original.requires_grad, name

    def test_pairs_are_keyword_only(self, paired_case):
        with pytest.raises(TypeError):
            (paired_case.function or paired_case.loss)(*paired_case.example(0).values())

    def test_errors(self, invalid):
        loss = invalid.case.unchecked or invalid.case.loss
        with pytest.raises(ValueError, match="must be") as error:
            loss(**{**invalid.case.example(0), **invalid.inputs})
        assert str(error.value) == invalid.expected


def to_meta(value):
    """Move a mask to the device "meta", too."""
    return value.to("meta") if isinstance(value, Tensor) and value.dtype == torch.bool else value


def random(shape, seed):
    """Return float64 numbers in [-1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


def normal(shape, seed):
    """Return float64 numbers with a standard normal distribution."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
