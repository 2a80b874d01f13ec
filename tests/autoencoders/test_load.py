"""A folder says itself which autoencoder lies in it."""

import json
import subprocess
import sys

import pytest
import torch

from telecine.autoencoders import CausalVAE, CausalVAEConfig, load_autoencoder

from .tiny_models import tiny_clip, tiny_model

SMALL = CausalVAEConfig(2, 4, latent_channels=3, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1)


def test_our_own(tmp_path):
    CausalVAE(SMALL).save_pretrained(tmp_path)
    model = load_autoencoder(tmp_path)
    assert isinstance(model, CausalVAE)
    assert model.config == SMALL


@pytest.mark.parametrize("subfolder", [None, "vae", "another"])
def test_one_of_diffusers(tmp_path, subfolder):
    from telecine.autoencoders.diffusers import DiffusersAutoencoder

    raw, video = tiny_model("wan"), tiny_clip("wan")
    raw.save_pretrained(tmp_path / (subfolder or ""))
    if subfolder:
        (tmp_path / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderKLWan"]}))
    # A pipeline's "vae" is found; another folder has to be named.
    model = load_autoencoder(str(tmp_path), subfolder="another" if subfolder == "another" else None)
    assert isinstance(model, DiffusersAutoencoder)
    expected = DiffusersAutoencoder(raw)(video, sample_posterior=False).video
    assert torch.equal(model(video, sample_posterior=False).video, expected)


def test_a_folder_that_is_not_there(tmp_path):
    for name in (tmp_path / "none", "./none", "none"):
        with pytest.raises(FileNotFoundError, match="which does not exist"):
            load_autoencoder(name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"a folder with config\.json, a pipeline with vae/config\.json"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [({"base_dim": 4}, "a configuration with `_class_name`"), ({"_class_name": "Other"}, "a model class of diffusers")],
)
def test_a_config_without_a_known_class(tmp_path, config, says):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=says):
        load_autoencoder(tmp_path)


def test_without_diffusers_our_own_loads_and_the_others_say_what_to_install(tmp_path):
    CausalVAE(SMALL).save_pretrained(tmp_path / "own")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    code = f"""
import sys
sys.modules["diffusers"] = None
from telecine.autoencoders import load_autoencoder
load_autoencoder({str(tmp_path / "own")!r})
try:
    load_autoencoder({str(tmp_path / "other")!r})
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "telecine[diffusers]"' in done.stdout


def test_importing_autoencoders_does_not_import_diffusers():
    code = "import sys, telecine.autoencoders; print('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
