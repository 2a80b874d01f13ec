"""Measures that foretell a generator: the interpolated Frechet distance, and VIV."""

import math

import pytest
import torch

from telecine.evaluation.metrics.frechet import frechet_distance
from telecine.evaluation.metrics.metric import Metric
from telecine.settings import LatentsConfig
from telecine.tools.latents.generator_quality import (
    INTERPOLATED,
    RECONSTRUCTIONS,
    interpolated_latents,
    measure_frechet,
    velocity_irreducible_variance,
)
from telecine.tools.latents.measures import measure_latent_spaces


class MeanColours:
    """Three features of a video."""

    metric = Metric(name="mean colours", definition="", min_frames=2)
    origin = "a test"

    def __init__(self, device):
        pass

    def __call__(self, video):
        return video.mean((2, 3, 4))


def test_identical_neighbours_give_the_distance_of_the_reconstructions(tiny_model):
    torch.manual_seed(0)
    latents = torch.randn(6, 4, 2, 4, 6)
    network = MeanColours(None)
    reference = torch.rand(12, 3)
    distances = measure_frechet(tiny_model, latents.repeat(2, 1, 1, 1, 1), network, reference)
    assert distances[INTERPOLATED] == pytest.approx(distances[RECONSTRUCTIONS], rel=1e-5)
    with torch.no_grad():
        features = network(tiny_model.decode(latents).clamp(-1, 1)).repeat(2, 1)
    expected = frechet_distance(features=features, reference=reference)
    assert distances[RECONSTRUCTIONS] == pytest.approx(expected, rel=1e-5)
    others = measure_frechet(tiny_model, torch.randn(12, 4, 2, 4, 6), network, reference)
    assert others[INTERPOLATED] != pytest.approx(others[RECONSTRUCTIONS], rel=1e-4)


def test_latents_are_interpolated_on_the_sphere_with_the_nearest_one():
    directions = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [-0.8, -0.6]])
    latents = directions.view(4, 1, 1, 1, 2)  # mean 0
    middle = (directions[0] + directions[1]) / 2
    middle = middle / middle.norm()
    expected = torch.stack([middle, middle, -middle, -middle]).view(4, 1, 1, 1, 2)
    torch.testing.assert_close(interpolated_latents(latents), expected)


def test_the_variance_is_that_of_a_normal_latent_in_closed_form():
    torch.manual_seed(0)
    noise = torch.randn(2000, 4, 3, 2, 2)
    assert velocity_irreducible_variance(5 + 3 * noise) == pytest.approx(math.pi / 2, rel=0.01)
    positions = 0.9 ** (torch.arange(12)[:, None] - torch.arange(12)).abs().double()
    correlated = noise.flatten(2).double() @ torch.linalg.cholesky(positions).T
    expected = math.pi / 2 * torch.linalg.eigvalsh(positions).sqrt().mean()
    latents = correlated.view_as(noise)
    assert velocity_irreducible_variance(latents) == pytest.approx(float(expected), rel=0.01)
    assert velocity_irreducible_variance(noise[:3]) is None, "a singular covariance"
    assert math.isnan(velocity_irreducible_variance(noise * math.nan))


def test_dead_channels_do_not_lower_the_variance():
    torch.manual_seed(0)
    noise = torch.randn(200, 4, 3, 2, 2)
    expected = velocity_irreducible_variance(noise[:, [0, 2]])
    noise[:, 1] = 5.0
    noise[:, 3] = 5.0 + 1e-3 * torch.randn(200, 3, 2, 2)
    assert velocity_irreducible_variance(noise) == expected
    assert math.isnan(velocity_irreducible_variance(0 * noise))


def test_both_are_reported(model_folder, videos, monkeypatch):
    monkeypatch.setattr("telecine.evaluation.metrics.frechet.TransNetFeatures", MeanColours)
    settings = {"num_frames": 5, "height": 16, "width": 24, "device": "cpu"}
    config = LatentsConfig(data=str(videos), max_clips=14, features="transnetv2", **settings)
    report = measure_latent_spaces([model_folder], config)
    figures = report.models[0].table_values()
    assert 0 < figures["VIV"] < 2
    assert figures["Frechet distance, reconstructions"] >= 0
    assert figures["Frechet distance, interpolated latents"] >= 0
    assert report.protocol["features"] == "a test"
    few = LatentsConfig(data=str(videos), max_clips=3, features="transnetv2", **settings)
    message = "`features` must be left out here, but got transnetv2: needs at least 4 clips, not 3"
    with pytest.raises(ValueError, match=message):
        measure_latent_spaces([model_folder], few)
