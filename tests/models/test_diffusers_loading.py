"""Diffusers models are loaded whole, in training mode, and errors name what is missing."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from telecine.models import load_autoencoder, pretrained
from telecine.models.diffusers import DiffusersAutoencoder, loading

from .tiny_models import adapter, newer, tiny_clip, tiny_model


def test_from_pretrained_returns_training_mode_in_float32(tmp_path):
    tiny_model("cogvideox").to(torch.bfloat16).save_pretrained(tmp_path)
    assert not diffusers.AutoModel.from_pretrained(str(tmp_path)).training
    model = DiffusersAutoencoder.from_pretrained(tmp_path)
    assert all(module.training for module in model.modules())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    half = model.bfloat16()
    video = tiny_clip("cogvideox")
    assert half(video).video.dtype == torch.bfloat16
    assert half(video).aux["kl_loss"].mean.dtype == torch.float32


def test_from_config_accepts_a_file_a_folder_or_values(tmp_path):
    values = {"_class_name": "AutoencoderKLWan", "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    for config in (values, tmp_path, tmp_path / "config.json", str(tmp_path)):
        model = DiffusersAutoencoder.from_config(config)
        assert isinstance(model.module, diffusers.AutoencoderKLWan)
        assert model.module.config.base_dim == 4
        assert model.training


@pytest.mark.parametrize("name", ["asymmetric", "tiny_image"])
def test_what_a_class_adds_to_its_configuration_is_known(name, tmp_path, caplog):
    tiny_model(name).save_pretrained(tmp_path)
    assert "block_out_channels" in json.loads((tmp_path / "config.json").read_text())
    for model in (DiffusersAutoencoder.from_config(tmp_path), DiffusersAutoencoder.from_pretrained(tmp_path)):
        assert type(model.module) is type(tiny_model(name))
    assert caplog.messages == []


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


@pytest.mark.parametrize(
    ("changes", "message", "has_weights"),
    [
        ({"base_dim": 65536}, "that its weights belong to", True),
        ({"base_dim": 65536}, r"weights fit into the .* GiB of this machine, but got one with \d{11,}", False),
        ({"num_res_blocks": 60000}, "raises ValueError: more than 1000 tensors", False),
        ({"dim_mult": [1.5, 2]}, "its class builds, but got one for which it raises TypeError: ", True),
        ({"base_dim": "\x1b[31m"}, "its class builds, but got one for which it raises ", False),
        ({"base_dim": -1}, "its class builds, but got one for which it raises ", False),
        ({"_class_name": "AutoencoderVidTok", "codebook_size": 8**9, "z_channels": 9}, "at most 262144", True),
    ],
)
def test_a_configuration_is_checked_before_a_model_is_built(tmp_path, monkeypatch, changes, message, has_weights):
    """Weights of any size are counted on the meta device."""
    if has_weights:
        adapter("wan").save_pretrained(tmp_path)
    values = {"_class_name": "AutoencoderKLWan", "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], **changes}
    (tmp_path / "config.json").write_text(json.dumps(values))
    largest = 0
    empty = torch.empty

    def counted(*size, **options):
        nonlocal largest
        made = empty(*size, **options)
        largest = max(largest, 0 if made.is_meta else made.numel())
        return made

    monkeypatch.setattr(torch, "empty", counted)
    monkeypatch.setattr(pretrained, "_MAX_TENSORS", 1000)
    with pytest.raises(ValueError, match=message):
        load_autoencoder(tmp_path if has_weights else tmp_path / "config.json")
    assert largest < 2**20


def test_a_configuration_without_its_weights_is_compared_with_the_size_of_the_file(tmp_path):
    adapter("wan").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "base_dim": 128}))
    with pytest.raises(ValueError, match=r"weights belong to, but got one of \d{7,} weights, with files of \d+ bytes"):
        load_autoencoder(tmp_path)


def test_counting_weights_draws_nothing(tmp_path):
    values = {"_class_name": "AutoencoderKLWan", "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1]}
    torch.manual_seed(0)
    expected = diffusers.AutoencoderKLWan.from_config(values).state_dict()
    torch.manual_seed(0)
    found = DiffusersAutoencoder.from_config(values).module.state_dict()
    assert len(found) > 50
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_diffusers_prints_nothing_of_a_file(tmp_path, capfd):
    """Its log does not escape what would change the terminal."""
    adapter("wan").save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["decoder.conv_out.weight"]
    save_file({**weights, "\x1b[31mkey": torch.zeros(1)}, path, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "\x1b[31mred": 1}))
    with pytest.raises(ValueError, match="1 weights missing"):
        DiffusersAutoencoder.from_pretrained(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_what_a_model_does_not_use_is_logged(tmp_path, caplog):
    adapter("wan").save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "more": torch.zeros(1)}, path, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "newer": 1}))
    DiffusersAutoencoder.from_pretrained(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"AutoencoderKLWan does not use some of {tmp_path}: newer, more"
    ]


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
        (EntryNotFoundError("no"), ValueError, "Name the folder of the model itself"),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_named(monkeypatch, raised, error, message):
    def download(*_, **__):
        raise raised

    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", download)
    with pytest.raises(error, match=f"'owner/name'.*{message}"):
        DiffusersAutoencoder.from_pretrained("owner/name")


def test_transformers_is_asked_for_by_the_model_that_needs_it(monkeypatch):
    newer("AutoencoderRAE")
    monkeypatch.setattr(loading, "is_transformers_available", lambda: False)
    with pytest.raises(ImportError, match="`pip install transformers`"):
        DiffusersAutoencoder.from_config({"_class_name": "AutoencoderRAE"})


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


def test_a_folder_with_weights_of_half_precision_alone(tmp_path):
    tiny_model("kl_image").save_pretrained(tmp_path, variant="fp16")
    loaded = DiffusersAutoencoder.from_pretrained(tmp_path)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="must be a model with all its weights, but got one without a file"):
        DiffusersAutoencoder.from_pretrained(tmp_path)


def test_weights_of_other_shapes_than_the_configuration(tmp_path):
    tiny_model("kl_image").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "block_out_channels": [8, 4]}))
    with pytest.raises(
        ValueError, match=r"all its weights, but got `.*` of \(.*\), not \(.*\)\. Download or copy it again\.$"
    ):
        DiffusersAutoencoder.from_pretrained(tmp_path)
