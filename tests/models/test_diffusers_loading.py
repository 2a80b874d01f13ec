"""Diffusers models are loaded whole, in training mode, and errors name what is missing."""

import json

import diffusers
import pytest
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from telecine.models import load_autoencoder, pretrained
from telecine.models.diffusers import DiffusersAutoencoder, loading

from .helpers import edit_config
from .tiny_models import adapter, tiny_clip, tiny_model


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


WAN_CONFIG = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 1, 1, 1],
}


def change_weights(folder, *removed, **added):
    """Remove and add weights in a folder."""
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = {**load_file(path), **added}
    for name in removed:
        del weights[name]
    save_file(weights, path, metadata={"format": "pt"})


def test_from_config_accepts_a_file_a_folder_or_values(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(WAN_CONFIG))
    for config in (WAN_CONFIG, tmp_path, tmp_path / "config.json", str(tmp_path)):
        model = DiffusersAutoencoder.from_config(config)
        assert isinstance(model.module, diffusers.AutoencoderKLWan)
        assert model.module.config.base_dim == 4
        assert model.training


@pytest.mark.parametrize("name", ["asymmetric", "tiny_image"])
def test_what_a_class_adds_to_its_configuration_is_known(name, tmp_path, caplog):
    tiny_model(name).save_pretrained(tmp_path)
    assert "block_out_channels" in json.loads((tmp_path / "config.json").read_text())
    for model in (
        DiffusersAutoencoder.from_config(tmp_path),
        DiffusersAutoencoder.from_pretrained(tmp_path),
    ):
        assert type(model.module) is type(tiny_model(name))
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bse_dim": 4}, "`bse_dim` must be one of .*Did you mean `base_dim`"),
        ({"_class_name": "AutoencoderKLWn"}, "Did you mean `AutoencoderKLWan`"),
        ({"_class_name": "zzz"}, "update diffusers"),
        (
            {"_class_name": "DiffusionPipeline"},
            "a model class of diffusers, but got 'DiffusionPipeline'",
        ),
        ({"_class_name": "utils"}, "a model class of diffusers, but got 'utils'"),
        ({"_class_name": None}, "a configuration with `_class_name`"),
    ],
)
def test_an_invalid_config_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DiffusersAutoencoder.from_config({**WAN_CONFIG, **changes})


@pytest.mark.parametrize(
    ("changes", "message", "has_weights"),
    [
        ({"base_dim": 65536}, "that its weights belong to", True),
        (
            {"base_dim": 65536},
            r"weights fit into the .* GiB of this machine, but got one with \d{11,}",
            False,
        ),
        ({"num_res_blocks": 60000}, "raises ValueError: more than 1000 tensors", False),
        (
            {"dim_mult": [1.5, 2]},
            "its class builds, but got one for which it raises TypeError: ",
            True,
        ),
        ({"base_dim": "\x1b[31m"}, "its class builds, but got one for which it raises ", False),
        ({"base_dim": -1}, "its class builds, but got one for which it raises ", False),
        (
            {"_class_name": "AutoencoderVidTok", "codebook_size": 8**9, "z_channels": 9},
            "at most 262144",
            True,
        ),
    ],
)
def test_a_configuration_is_checked_before_a_model_is_built(
    tmp_path, monkeypatch, changes, message, has_weights
):
    """Weights of any size are counted on the meta device."""
    if has_weights:
        adapter("wan").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**WAN_CONFIG, **changes}))
    sizes = [0]
    empty = torch.empty

    def counted(*size, **options):
        made = empty(*size, **options)
        if not made.is_meta:
            sizes.append(made.numel())
        return made

    monkeypatch.setattr(torch, "empty", counted)
    monkeypatch.setattr(pretrained, "MAX_TENSORS", 1000)
    with pytest.raises(ValueError, match=message):
        load_autoencoder(tmp_path if has_weights else tmp_path / "config.json")
    assert max(sizes) < 2**20


def test_a_configuration_without_its_weights_is_compared_with_the_size_of_the_file(tmp_path):
    adapter("wan").save_pretrained(tmp_path)
    edit_config(tmp_path, base_dim=128)
    with pytest.raises(
        ValueError,
        match=r"weights belong to, but got one of \d{7,} weights, with files of \d+ bytes",
    ):
        load_autoencoder(tmp_path)


def test_counting_weights_draws_nothing():
    torch.manual_seed(0)
    expected = diffusers.AutoencoderKLWan.from_config(WAN_CONFIG).state_dict()
    torch.manual_seed(0)
    actual = DiffusersAutoencoder.from_config(WAN_CONFIG).module.state_dict()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_quantizer_that_computes_its_size_is_built_for_a_plan():
    config = json.loads(tiny_model("vidtok_fsq").to_json_string())
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = DiffusersAutoencoder.from_config(config)
        video = model.decode(torch.zeros(1, 4, 2, 2, 2))
    assert video.shape == (1, 3, 5, 16, 16)
    assert {type(weight) for weight in model.parameters()} == {FakeTensor}


def test_missing_weights_are_an_error_and_diffusers_prints_nothing_of_a_file(tmp_path, capfd):
    """Its log does not escape what would change the terminal."""
    adapter("wan").save_pretrained(tmp_path)
    change_weights(tmp_path, "decoder.conv_out.weight", **{"\x1b[31mkey": torch.zeros(1)})
    edit_config(tmp_path, **{"\x1b[31mred": 1})
    with pytest.raises(ValueError, match=r"1 weights missing, e.g. decoder\.conv_out\.weight"):
        DiffusersAutoencoder.from_pretrained(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_what_a_model_does_not_use_is_logged(tmp_path, caplog):
    adapter("wan").save_pretrained(tmp_path)
    change_weights(tmp_path, more=torch.zeros(1))
    edit_config(tmp_path, newer=1)
    DiffusersAutoencoder.from_pretrained(tmp_path)
    assert caplog.messages == [f"AutoencoderKLWan does not use some of {tmp_path}: newer, more"]


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        DiffusersAutoencoder.from_config(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (
            LocalEntryNotFoundError("no"),
            ConnectionError,
            "which is not in the cache, and the Hub cannot be reached",
        ),
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
    tiny_model("rae")
    monkeypatch.setattr(loading, "is_transformers_available", lambda: False)
    with pytest.raises(ImportError, match="`pip install transformers`"):
        DiffusersAutoencoder.from_config({"_class_name": "AutoencoderRAE"})


def test_load_weights_copies_in_place(tmp_path):
    source = DiffusersAutoencoder(tiny_model("wan", 1))
    source.save_pretrained(tmp_path)
    target = adapter("wan")
    weight = target.last_layer
    target.load_weights(tmp_path)
    assert target.last_layer is weight
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_load_weights_of_another_configuration_lists_differences(tmp_path):
    adapter("qwen_image").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the model's weights, but got .* and \d+ more"):
        adapter("cogvideox").load_weights(tmp_path)


def test_a_folder_with_weights_of_a_variant_alone(tmp_path):
    model = tiny_model("kl_image").bfloat16()
    model.save_pretrained(tmp_path, variant="bf16", max_shard_size="10KB")
    loaded = DiffusersAutoencoder.from_pretrained(tmp_path)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(ValueError, match=r"one variant of the weights, but got bf16, fp16\. Move"):
        DiffusersAutoencoder.from_pretrained(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(
        FileNotFoundError, match="must be a model with all its weights, but got one without a file"
    ):
        DiffusersAutoencoder.from_pretrained(tmp_path)


def test_weights_of_other_shapes_than_the_configuration(tmp_path):
    tiny_model("kl_image").save_pretrained(tmp_path)
    edit_config(tmp_path, block_out_channels=[8, 4])
    message = r"all its weights, but got `.*` of \(.*\), not \(.*\)\. Download or copy it again\.$"
    with pytest.raises(ValueError, match=message):
        DiffusersAutoencoder.from_pretrained(tmp_path)
