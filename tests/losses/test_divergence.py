"""The KL divergence equals that of PyTorch's distributions, for latents and for posteriors."""

import inspect

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from telecine.losses import kl_to_standard_normal, posterior_kl

from .harness import LossCase, LossTester, normal

SHAPES = [(2, 4, 3, 5, 2), (3, 4, 1, 1, 1), (3,), (1, 2)]


def example(seed):
    shape = SHAPES[seed % len(SHAPES)]
    return {"mean": normal(shape, seed), "logvar": normal(shape, seed + 100)}


def elements(mean, logvar):
    return kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0))


def kl_case(reduction, reference, known):
    zero, large = torch.zeros(2, 3), torch.full((2, 3), 400.0)
    return LossCase(
        name=f"kl_{reduction}",
        loss=lambda **inputs: kl_to_standard_normal(**{"reduction": reduction, **inputs}),
        example=example,
        reference=reference,
        learns=("mean", "logvar"),
        known=(({"mean": torch.full((2, 3), 1.5), "logvar": zero}, known),),
        optima=(({"mean": zero, "logvar": zero}, 0.0),),
        increasing=tuple({"mean": zero + x, "logvar": zero - 2 * x} for x in (0, 1e-3, 0.1, 1)),
        large={"mean": large, "logvar": zero},
        errors=(
            (
                {"logvar": torch.zeros(2, 1)},
                "`logvar` must be of `mean`'s shape (2, 4, 3, 5, 2), but got a torch.float32 tensor of shape (2, 1) on "
                "cpu. Pass one mean and one logvar per element.",
            ),
            (
                {"reduction": "none"},
                '`reduction` must be "mean" or "sum", but got \'none\' (str). Both average over the batch.',
            ),
        ),
        function=kl_to_standard_normal,
        unchecked=lambda **inputs: inspect.unwrap(kl_to_standard_normal)(
            **{"reduction": reduction, **inputs}
        ),
    )


class TestKL(LossTester):
    cases = (
        kl_case("mean", lambda mean, logvar: elements(mean, logvar).mean(), 1.5**2 / 2),
        # The sum over the elements of a sample, averaged over the batch.
        kl_case(
            "sum", lambda mean, logvar: elements(mean, logvar).sum() / len(mean), 3 * 1.5**2 / 2
        ),
    )


class Posterior:
    """The attributes of diffusers' `DiagonalGaussianDistribution` that the divergence uses."""

    def __init__(self, shape):
        self.mean, self.logvar = normal(shape, 0), normal(shape, 1)


@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (2, 4, 3, 5, 6)])
def test_kl_of_a_posterior_is_that_of_its_moments_over_all_axes(shape):
    posterior = Posterior(shape)
    every_element = elements(posterior.mean, posterior.logvar)
    torch.testing.assert_close(
        posterior_kl(posterior, reduction="sum"), every_element.flatten(1).sum(1).mean()
    )
    torch.testing.assert_close(posterior_kl(posterior=posterior), every_element.mean())


class Identity:
    def sample(self):
        return torch.zeros(1)


class WithNumbers:
    mean = 0.0
    logvar = torch.zeros(2)


@pytest.mark.parametrize(
    ("posterior", "got"),
    [
        (Identity(), "Identity without `mean` and `logvar`"),
        (Normal(torch.zeros(2), torch.ones(2)), "Normal without `logvar`"),
        (WithNumbers(), "WithNumbers without `mean`"),
    ],
)
def test_a_posterior_without_moments_has_no_divergence(posterior, got):
    with pytest.raises(ValueError, match="must be") as error:
        posterior_kl(posterior)
    assert str(error.value) == (
        f"`posterior` must be a diagonal Gaussian with tensors `mean` and `logvar`, but got {got}. "
        "Such a posterior has no divergence; pass `aux_losses=None`."
    )
