"""The pixel losses equal loops over single values, and the likelihood equals that of PyTorch's distributions."""

import math

import pytest
import torch
from jaxtyping import TypeCheckError
from torch.distributions import Laplace, Normal
from torch.nn import functional as F

from telecine.losses import RECONSTRUCTION_LOSSES, gaussian_nll, l1, mse
from telecine.losses.reconstruction import MAX_PSNR, psnr_of_mse

from .harness import LossCase, LossTester, random

EPSILON = 1e-3
ERRORS = {
    "mse": lambda d: d * d,
    "l1": abs,
    "charbonnier": lambda d: math.sqrt(d * d + EPSILON * EPSILON) - EPSILON,
}
SHAPES = [(3, 2, 4), (2, 3, 2, 3, 4), (4,), (1, 3, 1, 2, 2), (2, 1), (1, 5)]
VIDEO = (2, 3, 2, 4, 4)


def pair(shape, seed=0):
    return {"reconstruction": random(shape, seed), "target": random(shape, seed + 100)}


def example(seed):
    """Return a pair without sample weights for an even seed, with them for an odd one."""
    shape = SHAPES[seed % len(SHAPES)]
    weight = 1 + random(shape[:1], seed + 200) if seed % 2 else None
    return {**pair(shape, seed), "weight": weight}


def loop_over_values(error):
    def reference(reconstruction, target, weight=None):
        weights = [1.0] * len(target) if weight is None else weight.tolist()
        samples = []
        for x, y, w in zip(reconstruction, target, weights, strict=True):
            errors = [
                error(p - q)
                for p, q in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)
            ]
            samples.append(w * sum(errors) / len(errors))
        return sum(samples) / len(samples)

    return reference


def filled(value, shape=VIDEO):
    return torch.full(shape, value, dtype=torch.float64)


def pixel_case(name, *, maximum, errors=()):
    """Return the case of a pixel loss, given its value for errors of 2 and of 0."""
    identical = [filled(-1.0), filled(0.0), filled(1.0), random(VIDEO, 0)]
    return LossCase(
        name=name,
        loss=RECONSTRUCTION_LOSSES[name],
        example=example,
        reference=loop_over_values(ERRORS[name]),
        learns=("reconstruction", "target", "weight"),
        known=(
            ({"reconstruction": filled(1.0), "target": filled(-1.0)}, maximum),
            # Weights are not divided by their sum.
            (
                {
                    "reconstruction": filled(1.0),
                    "target": filled(-1.0),
                    "weight": torch.full((2,), 0.5),
                },
                maximum / 2,
            ),
            (
                {
                    "reconstruction": filled(1.0),
                    "target": filled(-1.0),
                    "weight": torch.tensor([0, 3]),
                },
                maximum * 1.5,
            ),
            (
                {
                    "reconstruction": filled(1.0),
                    "target": filled(-1.0),
                    "weight": torch.tensor([True, False]),
                },
                maximum / 2,
            ),
        ),
        optima=tuple(({"reconstruction": x, "target": x}, 0.0) for x in identical),
        increasing=tuple(
            {"reconstruction": random(VIDEO, 0) * scale, "target": filled(0.0)}
            for scale in (0, 0.1, 1)
        ),
        large={
            "reconstruction": filled(4e4, (4, 100)),
            "target": filled(-4e4, (4, 100)),
            "weight": torch.ones(4),
        },
        errors=(
            *errors,
            (
                {"reconstruction": torch.zeros(1, 2, 4)},
                "`reconstruction` must be of `target`'s shape (3, 2, 4), but got a torch.float32 tensor of shape "
                "(1, 2, 4) on cpu. Crop or pad one to match the other.",
            ),
            *(
                (
                    {"weight": torch.ones(shape)},
                    f"the sample weights must be of shape (3,), but got a torch.float32 tensor of shape {shape} on "
                    "cpu. Pass one weight per sample.",
                )
                for shape in ((2,), (3, 1), ())
            ),
        ),
    )


class TestReconstruction(LossTester):
    cases = (
        pixel_case("mse", maximum=4.0),
        pixel_case("l1", maximum=2.0),
        pixel_case(
            "charbonnier",
            maximum=1.9990002499999844,
            errors=tuple(
                (
                    {"epsilon": value},
                    f"`epsilon` must be a finite number above 0, but got {value} (float). Use `l1` for the limit at 0.",
                )
                for value in (0.0, -1e-3, math.nan)
            ),
        ),
        LossCase(
            name="gaussian_nll",
            loss=gaussian_nll,
            example=lambda seed: {
                "distance": 1.5 + random((), seed),
                "logvar": 8 * random((), seed + 100),
            },
            reference=lambda distance, logvar: (
                distance.item() / math.exp(logvar.item()) + logvar.item()
            ),
            learns=("distance", "logvar"),
            known=(
                (
                    {"distance": torch.tensor(2.0), "logvar": torch.tensor(4.0).log()},
                    0.5 + math.log(4),
                ),
                ({"distance": torch.tensor(0.3), "logvar": torch.tensor(0.0)}, 0.3),
            ),
            large={"distance": torch.tensor(0.5), "logvar": torch.tensor(-12.0)},
        ),
    )

    def test_every_loss_has_a_case(self):
        tested = {case.name: case.loss for case in self.cases}
        assert tested == {**RECONSTRUCTION_LOSSES, "gaussian_nll": gaussian_nll}
        assert (RECONSTRUCTION_LOSSES["mse"], RECONSTRUCTION_LOSSES["l1"]) == (mse, l1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_mse_without_weights_has_the_bits_of_pytorch(dtype):
    inputs = {name: tensor.to(dtype) for name, tensor in pair((2, 3, 4, 7, 5)).items()}
    ours, theirs = (inputs["reconstruction"].clone().requires_grad_() for _ in range(2))
    wide = torch.promote_types(dtype, torch.float32)
    value = mse(reconstruction=ours, target=inputs["target"])
    expected = F.mse_loss(theirs.to(wide), inputs["target"].to(wide))
    value.backward()
    expected.backward()
    assert torch.equal(value, expected)
    assert torch.equal(ours.grad, theirs.grad)


def test_mse_without_weights_saves_only_its_inputs_for_the_backward():
    inputs = pair((2, 3))
    inputs["reconstruction"].requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.data_ptr()), lambda _: None
    ):
        mse(**inputs)
    assert set(saved) == {tensor.data_ptr() for tensor in inputs.values()}


def test_the_result_has_the_wider_input_type_whatever_the_type_of_the_weight():
    x, y = torch.rand(3), torch.rand(3, dtype=torch.float64)
    assert mse(reconstruction=x, target=y).dtype == torch.float64
    assert mse(reconstruction=x.bfloat16(), target=x).dtype == torch.float32
    assert mse(reconstruction=x, target=x, weight=y).dtype == torch.float32


@pytest.mark.parametrize(
    ("error", "distribution", "power", "area"), [(l1, Laplace, 1, 2), (mse, Normal, 2, 2 * math.pi)]
)
def test_nll_is_that_of_a_laplace_distribution_or_twice_that_of_a_gaussian(
    error, distribution, power, area
):
    inputs, logvar = pair((2, 3, 4)), torch.tensor(-0.7, dtype=torch.float64)
    density = distribution(inputs["reconstruction"], (logvar / power).exp())
    expected = -power * density.log_prob(inputs["target"]).mean() - math.log(area)
    torch.testing.assert_close(gaussian_nll(distance=error(**inputs), logvar=logvar), expected)


def test_shape_types_are_checked_in_tests():
    with pytest.raises(TypeCheckError):
        gaussian_nll(distance=torch.zeros(2), logvar=torch.tensor(0.0))


def test_psnr_of_mse():
    mse = torch.tensor([0.0, 0.04, 4.0, torch.nan])
    assert psnr_of_mse(mse)[:3].tolist() == pytest.approx([MAX_PSNR, 20, 0], abs=1e-5)
    assert psnr_of_mse(mse)[3].isnan()
    assert psnr_of_mse(torch.tensor(255.0**2 / 10), value_range=255.0).item() == pytest.approx(10)
