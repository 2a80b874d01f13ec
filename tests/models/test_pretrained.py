"""Saved models are loaded bit for bit, and errors say what is wrong with a folder."""

import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from telecine.models import CausalVAE, pretrained
from telecine.settings import CausalVAEConfig

SMALL = CausalVAEConfig(2, 4, 3, patch_size=2, base_channels=8, blocks_per_level=1)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return CausalVAE(SMALL)


@pytest.fixture
def folder(vae, tmp_path):
    vae.save_pretrained(tmp_path / "runs" / "model")
    return tmp_path / "runs" / "model"


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_loaded_models_are_equal_bit_for_bit(vae, folder):
    video = torch.rand(1, 3, 5, 8, 8)
    loaded = CausalVAE.from_pretrained(folder)
    expected = vae(video, sample_posterior=False).video
    torch.testing.assert_close(loaded(video, sample_posterior=False).video, expected, rtol=0, atol=0)
    assert loaded.config == SMALL


def test_the_folder_contains_two_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "CausalVAE"


def test_loading_weights_keeps_the_parameters(vae, folder):
    other = CausalVAE(SMALL)
    weight = other.last_layer
    other.load_weights(folder)
    assert other.last_layer is weight
    assert torch.equal(weight, vae.last_layer)


def test_saving_again_replaces(vae, folder):
    with torch.no_grad():
        vae.last_layer.fill_(2)
    vae.save_pretrained(folder)
    assert (CausalVAE.from_pretrained(str(folder)).last_layer == 2).all()


def test_a_full_disk_is_an_oserror(vae, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(pretrained, "save_file", full)
    with pytest.raises(OSError, match=r"cannot write weights to .*: No space left"):
        vae.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_error_for_an_unknown_key_contains_the_nearest(folder):
    edit_config(folder, latent_chanels=4)
    with pytest.raises(ValueError, match=r"`latent_chanels` must be one of .*Did you mean `latent_channels`\?"):
        CausalVAE.from_pretrained(folder)


def test_a_key_similar_to_no_other_is_refused(folder):
    edit_config(folder, zzz=4)
    with pytest.raises(ValueError, match=r"`zzz` must be one of .*Remove it"):
        CausalVAE.from_pretrained(folder)


def test_an_invalid_value_is_refused(folder):
    edit_config(folder, latent_channels="many")
    with pytest.raises(ValueError, match="`latent_channels` must be a whole number, but got"):
        CausalVAE.from_pretrained(folder)


def test_another_class_is_refused(folder):
    edit_config(folder, _class_name="AutoencoderKLWan")
    with pytest.raises(ValueError, match="a CausalVAE's, but got one whose `_class_name` is 'AutoencoderKLWan'"):
        CausalVAE.from_pretrained(folder)


def test_a_model_of_the_first_version_is_refused(folder, vae):
    config = json.loads((folder / "config.json").read_text())
    del config["_architecture"]
    (folder / "config.json").write_text(json.dumps(config))
    message = "a CausalVAE with `_architecture` 2, but got 1, of an older version. Its layers differ: train it again"
    for load in (CausalVAE.from_pretrained, vae.load_weights):
        with pytest.raises(ValueError, match=message):
            load(folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_config_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="JSON"):
        CausalVAE.from_pretrained(folder)


def test_the_error_for_other_weights_lists_the_first_few(folder):
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("encoder", "coder"): tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"no encoder\.linear\.first\.weight; no .*; no .* and \d+ more") as caught:
        CausalVAE.from_pretrained(folder)
    assert len(str(caught.value)) < 600


def test_the_error_for_another_shape_contains_both(folder):
    edit_config(folder, latent_channels=4)
    with pytest.raises(ValueError, match=r"encoder\.linear\.first\.weight of shape \(3, 48\) instead of \(4, 48\)"):
        CausalVAE.from_pretrained(folder)


def test_damaged_weights_are_refused(folder):
    (folder / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="damaged"):
        CausalVAE.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_the_error_for_a_missing_file_contains_its_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"without {name}"):
        CausalVAE.from_pretrained(folder)
