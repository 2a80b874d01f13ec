"""What normalises the latent of each diffusers class is declared, and replaced in the class's own form."""

import inspect

import diffusers
import pytest
import torch
from diffusers import AutoModel
from packaging.version import Version

from telecine.models.diffusers import DiffusersAutoencoder
from telecine.models.diffusers.families import FAMILIES, family_of
from telecine.models.diffusers.normalisation import Normalised, read_normalisation
from telecine.models.latent import LatentStatistics

from .tiny_models import KL_IMAGE, tiny_model

STATISTICS = LatentStatistics(mean=[0.5, -1.0, 0.0, 2.0], std=[1.0, 2.0, 0.5, 0.25])


def test_every_class_is_declared_as_its_constructor_and_buffers_say():
    missing = {name for name in FAMILIES if not hasattr(diffusers, name)}
    assert len(missing) <= (0 if Version(diffusers.__version__) >= Version("0.42") else 8)
    for name in FAMILIES.keys() - missing:
        kind = FAMILIES[name].normalised
        parameters = set(inspect.signature(getattr(diffusers, name).__init__).parameters)
        by_kind = {
            "CHANNELS": {"latents_mean", "latents_std"} <= parameters,
            "FACTOR": "scaling_factor" in parameters,
            "BUFFERS": "latents_mean" not in parameters,
            "BATCH_NORM": "batch_norm_eps" in parameters,
            "INSIDE": {"latents_mean", "latents_std", "scaling_factor"} <= parameters,
            "NONE": not {"latents_mean", "scaling_factor"} & parameters,
        }
        assert by_kind[kind.name], name
    assert len(FAMILIES) == 27


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wan", {"latents_mean": STATISTICS.mean, "latents_std": STATISTICS.std}),
        ("cogvideox", {"scaling_factor": 1 / STATISTICS.overall_std, "shift_factor": None}),
        pytest.param(
            "ltx_video",
            {"latents_mean": 2 * STATISTICS.mean, "latents_std": 2 * STATISTICS.std},
            marks=pytest.mark.slow,
        ),
        pytest.param("vidtok", {}, marks=pytest.mark.slow),
        (
            "kl_image",
            {"scaling_factor": 1 / STATISTICS.overall_std, "shift_factor": STATISTICS.overall_mean},
        ),
        (
            "tiny_image",
            {"scaling_factor": 1 / STATISTICS.overall_std, "shift_factor": STATISTICS.overall_mean},
        ),
        ("vq_image", {"scaling_factor": 1 / STATISTICS.overall_std, "shift_factor": None}),
    ],
)
def test_the_statistics_are_saved_in_the_form_of_the_class(name, expected, tmp_path):
    model = DiffusersAutoencoder(tiny_model(name))
    statistics = STATISTICS
    if name == "ltx_video":  # has 8 channels
        statistics = LatentStatistics(2 * STATISTICS.mean, 2 * STATISTICS.std)
    model.set_latent_statistics(statistics)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(str(tmp_path))
    kind = model.family.normalised
    assert read_normalisation(loaded, kind) == model.latent_normalisation() == expected


def test_flux_2_keeps_the_statistics_in_a_batch_norm_of_patches(tmp_path):
    model = DiffusersAutoencoder(tiny_model("flux2"))
    assert model.latent_normalisation()["latents_mean"] == [0.0] * 16
    model.set_latent_statistics(STATISTICS)
    model.save_pretrained(tmp_path)
    norm = AutoModel.from_pretrained(str(tmp_path)).bn.eval()
    # What the pipeline of Flux 2 does: 2 x 2 positions of a channel follow each other.
    mean, std = (
        torch.tensor(values).view(1, 4, 1, 1, 1, 1) for values in (STATISTICS.mean, STATISTICS.std)
    )
    latent = torch.randn(2, 4, 6, 2, 8, 2) * std + mean
    patches = latent.permute(0, 1, 3, 5, 2, 4).reshape(2, 16, 6, 8)
    expected = ((latent - mean) / std).permute(0, 1, 3, 5, 2, 4).reshape(2, 16, 6, 8)
    torch.testing.assert_close(norm(patches), expected, rtol=1e-4, atol=1e-4)
    normalisation = model.latent_normalisation()
    assert normalisation["latents_mean"] == [value for value in STATISTICS.mean for _ in range(4)]
    assert normalisation["latents_std"] == pytest.approx(
        [value for value in STATISTICS.std for _ in range(4)]
    )


def test_pipelines_of_sdxl_use_the_numbers_of_each_channel_if_they_are_set(tmp_path):
    own = {
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
        "scaling_factor": 0.5,
        "shift_factor": 0.1,
    }
    model = DiffusersAutoencoder(diffusers.AutoencoderKL(**KL_IMAGE, **own))
    assert model.latent_normalisation() == own
    model.set_latent_statistics(STATISTICS)
    model.save_pretrained(tmp_path)
    config = AutoModel.from_pretrained(str(tmp_path)).config
    assert (config["latents_mean"], config["latents_std"]) == (STATISTICS.mean, STATISTICS.std)
    assert (config["scaling_factor"], config["shift_factor"]) == (0.5, 0.1)


def test_a_subclass_has_the_facts_of_its_class_and_others_are_not_normalised():
    mine = type("Mine", (diffusers.AutoencoderKLWan,), {})
    assert family_of(mine.__new__(mine)) is FAMILIES["AutoencoderKLWan"]
    methods = dict.fromkeys(("encode", "decode"), torch.nn.Module.forward)
    other = type("Other", (torch.nn.Module,), methods)
    assert family_of(other()).normalised == Normalised.NONE
