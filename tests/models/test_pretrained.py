"""Saved models are loaded bit for bit, and errors say what is wrong with a folder."""

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from telecine.models import CausalVAE, pretrained
from telecine.settings import CausalVAEConfig

from .helpers import edit_config

SMALL = CausalVAEConfig(2, 4, 3, patch_size=2, base_channels=8, blocks_per_level=1)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return CausalVAE(SMALL)


@pytest.fixture
def folder(vae, tmp_path):
    vae.save_pretrained(tmp_path / "runs" / "model")
    return tmp_path / "runs" / "model"


def test_loaded_models_are_equal_bit_for_bit(vae, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded = CausalVAE.from_pretrained(folder)
    torch.testing.assert_close(loaded.state_dict(), vae.state_dict(), rtol=0, atol=0)
    assert loaded.config == SMALL


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


@pytest.mark.parametrize(
    ("removed", "changes", "message"),
    [
        (
            [],
            {"_class_name": "AutoencoderKLWan"},
            "a CausalVAE's, but got one whose `_class_name` is 'AutoencoderKLW",
        ),
        (
            [],
            {"latent_chanels": 4},
            r"`latent_chanels` must be one of .*Did you mean `latent_channels`\?",
        ),
        ([], {"zzz": 4}, r"`zzz` must be one of .*Remove it"),
        ([], {"latent_channels": "many"}, "`latent_channels` must be a whole number, but got"),
        (
            [],
            {"latent_channels": 4},
            r"encoder\.linear\.first\.weight of shape \(3, 48\) instead of \(4, 48\)",
        ),
        (
            ["_architecture"],
            {},
            r"`_architecture` 2, but got 1, of an older version. .* train it again",
        ),
    ],
)
def test_another_configuration_is_refused(folder, removed, changes, message):
    edit_config(folder, *removed, **changes)
    with pytest.raises(ValueError, match=message):
        CausalVAE.from_pretrained(folder)


def test_weights_of_the_first_version_are_refused(folder, vae):
    edit_config(folder, "_architecture")
    with pytest.raises(ValueError, match=r"a CausalVAE with `_architecture` 2, but got 1"):
        vae.load_weights(folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_config_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="JSON"):
        CausalVAE.from_pretrained(folder)


def test_the_error_for_other_weights_lists_the_first_few(folder):
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("encoder", "coder"): tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"no encoder\.linear\.first\.weight; no .*; no .* and \d+ more"
    ) as caught:
        CausalVAE.from_pretrained(folder)
    assert len(str(caught.value)) < 600


def test_damaged_weights_are_refused(folder):
    (folder / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="damaged"):
        CausalVAE.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_the_error_for_a_missing_file_contains_its_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"without {name}"):
        CausalVAE.from_pretrained(folder)
