"""Diffusers models are loaded whole, in training mode, and errors name what is missing."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from telecine.autoencoders.diffusers import DiffusersAutoencoder

from .tiny_models import adapter, tiny_clip, tiny_model


def test_from_pretrained_returns_training_mode_in_the_given_dtype(tmp_path):
    tiny_model("cogvideox").to(torch.bfloat16).save_pretrained(tmp_path)
    assert not diffusers.AutoModel.from_pretrained(str(tmp_path)).training
    model = DiffusersAutoencoder.from_pretrained(tmp_path)
    assert all(module.training for module in model.modules())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    half = DiffusersAutoencoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    video = tiny_clip("cogvideox")
    assert half(video).video.dtype == torch.bfloat16
    assert half(video).aux["kl_loss"].dtype == torch.float32


def test_from_config_accepts_a_file_a_folder_or_values(tmp_path):
    values = {"_class_name": "AutoencoderKLWan", "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    for config in (values, tmp_path, tmp_path / "config.json", str(tmp_path)):
        model = DiffusersAutoencoder.from_config(config)
        assert isinstance(model.module, diffusers.AutoencoderKLWan)
        assert model.module.config.base_dim == 4
        assert model.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bse_dim": 4}, "`bse_dim` must be one of .*Did you mean `base_dim`"),
        ({"_class_name": "AutoencoderKLWn"}, "Did you mean `AutoencoderKLWan`"),
        ({"_class_name": "zzz"}, "update diffusers"),
        ({"_class_name": "DiffusionPipeline"}, "a model class of diffusers, but got 'DiffusionPipeline'"),
        ({"_class_name": "utils"}, "a model class of diffusers, but got 'utils'"),
        ({"_class_name": None}, "a configuration with `_class_name`"),
    ],
)
def test_an_invalid_config_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DiffusersAutoencoder.from_config({"_class_name": "AutoencoderKLWan", "base_dim": 4, **changes})


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        DiffusersAutoencoder.from_config(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (LocalEntryNotFoundError("no"), ConnectionError, "which is not in the cache, and the Hub cannot be reached"),
        (
            RepositoryNotFoundError.__new__(RepositoryNotFoundError),
            ValueError,
            "which the Hub does not have or does not",
        ),
        (EntryNotFoundError("no"), ValueError, "Set `subfolder` if the model is in another subfolder"),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_named(monkeypatch, raised, error, message):
    def download(*_, **__):
        raise raised

    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", download)
    with pytest.raises(error, match=f"'owner/name'.*{message}"):
        DiffusersAutoencoder.from_pretrained("owner/name")


def test_load_weights_copies_in_place(tmp_path):
    source, target = DiffusersAutoencoder(tiny_model("wan", 1)), adapter("wan")
    source.save_pretrained(tmp_path)
    weight = target.last_layer
    target.load_weights(tmp_path)
    assert target.last_layer is weight
    video = tiny_clip("wan")
    assert torch.equal(target(video, False).video, source(video, False).video)


def test_load_weights_of_another_configuration_lists_differences(tmp_path):
    adapter("qwen_image").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the model's weights, but got .* and \d+ more"):
        adapter("cogvideox").load_weights(tmp_path)


def test_missing_weights_are_not_initialised_at_random(tmp_path):
    adapter("wan").save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["decoder.conv_out.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights missing, e.g. decoder\.conv_out\.weight"):
        DiffusersAutoencoder.from_pretrained(tmp_path)
