"""The losses that an autoencoder brings along: in every form, each with its weight and its name in the log."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from telecine import Ramp
from telecine.objective.auxiliary import named_aux_losses, weighted_sum
from telecine.objective.schedule import as_ramps


class TestAuxLosses:
    def named(self, aux, log=None):
        return named_aux_losses(aux, log, torch.device("cpu"))

    @pytest.mark.parametrize("value", [2, 2.0, torch.tensor(2.0), torch.tensor([[2.0]]), torch.tensor(2.0).bfloat16()])
    def test_one(self, value):
        (loss,) = self.named(value).values()
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert loss.item() == 2

    def test_none(self):
        assert self.named(None) == {}
        assert self.named(None, {}) == {}

    def test_several_keep_their_names_and_graphs(self):
        kl = torch.ones((), dtype=torch.float64, requires_grad=True)
        losses = self.named({"kl": kl, "commit": 0.5})
        assert list(losses) == ["kl", "commit"]
        assert losses["kl"].dtype == torch.float64
        assert losses["kl"].requires_grad

    def test_what_an_engine_logs_of_its_regulariser_stands_in(self):
        log = {"kl_loss": torch.tensor(1.0), "loss/vq": 2.0, "perplexity": torch.ones(9), "indices": "none"}
        assert list(self.named(None, log)) == ["kl_loss", "loss/vq"]
        assert list(self.named(3.0, log)) == [""]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (
                torch.zeros(3),
                r"`aux_losses` must be a number, a floating-point tensor of one element.*\(3,\).*mean\(\)",
            ),
            (torch.zeros(0), r"`aux_losses` must be .*\(0,\)"),
            ("kl", r"`aux_losses` must be a number, .*'kl' \(str\).*dict"),
            (True, r"`aux_losses` must be a number, .*True"),
            (torch.tensor(1), r"`aux_losses` must be .*torch.int64"),
            ([torch.tensor(1.0)], r"`aux_losses` must be .*list"),
            ({"kl": torch.zeros(2)}, r"`aux_losses\['kl'\]` must be .*\(2,\).*mean\(\)"),
            ({"kl": None}, r"`aux_losses\['kl'\]` must be .*None"),
        ],
    )
    def test_mistakes(self, value, message):
        with pytest.raises(ValueError, match=message):
            self.named(value)


def weighted(aux, weights, step=0):
    losses = {name: torch.as_tensor(value) for name, value in aux.items()}
    return weighted_sum(losses, as_ramps("aux_loss_weights", weights), step, like=torch.zeros(())).item()


def test_the_sum_and_its_weights():
    assert weighted({}, {}) == 0
    assert weighted({"kl_loss": 2.0, "commit": 3.0}, {}) == 5
    assert weighted({"kl_loss": 2.0, "commit": 3.0}, {"kl_loss": 0.5}) == 4
    assert [weighted({"kl_loss": 2.0}, {"kl_loss": Ramp(1.0, steps=2)}, step) for step in range(4)] == [0, 1, 2, 2]


def test_a_loss_of_weight_0_is_left_out():
    assert weighted({"kl_loss": float("nan"), "commit": 3.0}, {"kl_loss": 0}) == 3


def test_a_weight_of_a_loss_that_is_not_there():
    with pytest.raises(
        ValueError, match=r"`aux_loss_weights` must be .*\['kl_loss'\], but got 'klloss'.*Did you mean `kl_loss`"
    ):
        weighted({"kl_loss": 2.0}, {"klloss": 1.0})
    with pytest.raises(ValueError, match=r"`aux_loss_weights` must be .*leave its weight out"):
        weighted({}, {"kl": 1.0})


def gaussian(shape=(2, 8, 2, 3, 3)):
    """Return a diffusers posterior of 4 channels, mean and log-variance of its halves."""
    torch.manual_seed(0)
    return DiagonalGaussianDistribution(torch.randn(shape, dtype=torch.float64))


class TestAPosteriorOfDiffusers:
    def test_its_divergence_is_that_of_its_elements(self):
        posterior = gaussian()
        normal = torch.distributions.Normal(posterior.mean, posterior.std)
        expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
        (mean,) = named_aux_losses(posterior, None, "cpu").values()
        (summed,) = named_aux_losses(posterior, None, "cpu", "sum").values()
        torch.testing.assert_close(mean, expected.mean())
        torch.testing.assert_close(summed, expected.sum() / 2)

    def test_by_itself_or_in_a_dict(self):
        assert list(named_aux_losses(gaussian(), None, "cpu")) == ["kl_loss"]
        assert list(named_aux_losses({"kl": gaussian(), "commit": 1.0}, None, "cpu")) == ["kl", "commit"]

    def test_in_the_loss(self, make_loss, clip):
        loss = make_loss(perceptual_weight=0, quantizer_aux_loss_weight=2, aux_loss_weights={"kl_loss": 0.25})
        posterior = gaussian()
        total, log = loss(clip(), clip(), 0, 0, posterior)
        (expected,) = named_aux_losses(posterior, None, "cpu").values()
        assert log["train/kl_loss"].item() == pytest.approx(expected.item())
        assert total.item() == pytest.approx(0.5 * expected.item())

    def test_the_sum_over_the_latent_goes_with_the_sum_over_pixels(self, make_loss, clip):
        loss = make_loss(perceptual_weight=0, quantizer_aux_loss_weight=1, reconstruction={"nll_reduction": "sum"})
        posterior = gaussian()
        total, log = loss(clip(), clip(seed=2), 0, 0, posterior)
        (kl,) = named_aux_losses(posterior, None, "cpu", "sum").values()
        squares = (clip() - clip(seed=2)).double().square().sum() / 2
        assert total.item() == pytest.approx((squares + kl).item(), rel=1e-5)
        assert log["train/recon_loss"].item() == pytest.approx(squares.item() / clip()[0].numel(), rel=1e-5)

    def test_a_distribution_without_variance(self):
        with pytest.raises(ValueError, match="logvar"):
            named_aux_losses(SimpleNamespace(mean=torch.zeros(1)), None, "cpu")
