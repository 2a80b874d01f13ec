"""Weights are saved and restored, LoRA adapters in a separate file and on the same base model."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from telecine.models import CausalVAE, CustomAutoencoder
from telecine.models.latent import LatentStatistics
from telecine.models.lora import add_low_rank
from telecine.settings import CausalVAEConfig, TrainableConfig
from telecine.settings.autoencoder import FlowConfig
from telecine.training.tensor_files import HostCopy, save_shards, shard_file
from telecine.training.trainable import select_trainable
from telecine.training.weight_files import WeightFiles, architecture_of, check_same_architecture

from .helpers import assert_equal


class Normalised(nn.Module):
    """An autoencoder whose decoder has statistics without weights, and a layer with two names."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv3d(3, 4, 1)
        self.decoder = nn.Sequential(
            nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4, affine=False), nn.Conv3d(4, 3, 1)
        )
        self.last = self.decoder[2]

    def forward(self, video):
        return self.decoder(self.encoder(video))


def adapted(seed=0):
    torch.manual_seed(seed)
    model = CustomAutoencoder(Normalised())
    select_trainable(model, TrainableConfig(weights="lora", lora_rank=2))
    return model


def files_of(model, is_sharded=False):
    return WeightFiles(model, is_sharded=is_sharded)


def change_trained(model):
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.normal_()


def test_updates_and_statistics_are_restored(tmp_path):
    model = adapted()
    files = files_of(model)
    change_trained(model)
    model.train()(torch.rand(2, 3, 2, 4, 4))
    files.save(tmp_path, "model", None, model.state_dict())
    other = adapted()
    files_of(other).load(other, tmp_path, "model")
    assert_equal(other.state_dict(), model.state_dict())


def test_the_base_of_updates_is_that_of_the_frozen_weights_and_another_is_refused():
    model = adapted()
    base = files_of(model).base
    change_trained(model)
    assert files_of(model).base == base
    files_of(adapted()).check_base(base)
    assert files_of(CustomAutoencoder(Normalised())).base is None
    files_of(adapted(seed=1)).check_base(None)  # without LoRA
    with pytest.raises(
        ValueError,
        match=r"`model` must be the base model of the run's LoRA adapters.*other weights",
    ):
        files_of(adapted(seed=1)).check_base(base)


def test_a_custom_save_pretrained_gets_merged_updates(tmp_path):
    class Complete(Normalised):
        def save_pretrained(self, folder):
            folder.mkdir()
            (folder / "names").write_text(" ".join(sorted(self.state_dict())))

    model = Complete()
    add_low_rank(model, ["decoder.0"], rank=2, alpha=1.0)
    model = CustomAutoencoder(model)
    files_of(model).save(tmp_path, "model", None, model.state_dict())
    assert (tmp_path / "model" / "names").read_text().split() == sorted(Normalised().state_dict())


def test_weights_are_saved_from_copies(tmp_path):
    model = CustomAutoencoder(Normalised())
    files = files_of(model)
    copies = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    before = copy.deepcopy(model.state_dict())
    files.save(tmp_path, "model", None, copies)
    assert_equal(model.state_dict(), before)  # it trains on
    averaged = copies | {"module.encoder.bias": torch.full((4,), 5.0)}
    files.save(tmp_path, "ema", None, averaged)
    for name, expected in (("model", copies), ("ema", averaged)):
        files.load(model, tmp_path, name)
        assert_equal(dict(model.state_dict()), expected)


def write_shards(folder, groups):
    copies = {name: HostCopy(is_main=True) for name in groups}
    folder.mkdir(exist_ok=True)
    for name, tensors in groups.items():
        copies[name].update(tensors)
    save_shards(shard_file(folder, 0, 1), copies)


@pytest.mark.parametrize("weights", ["all", "lora"])
def test_the_folders_that_other_programs_load_are_made_from_shards(tmp_path, weights):
    model = CustomAutoencoder(Normalised())
    select_trainable(model, TrainableConfig(weights=weights))
    for weight in model.parameters():
        weight.data.normal_()
    files = files_of(model, is_sharded=True)
    average = {
        name: weight + 1 for name, weight in model.named_parameters() if weight.requires_grad
    }
    write_shards(tmp_path / "shards", {"model": model.state_dict(), "ema": average})
    statistics = LatentStatistics([1.0], [2.0])
    for name, tensors in (
        ("model", model.state_dict()),
        ("ema", {**model.state_dict(), **average}),
    ):
        files.save_from_shards(tmp_path / "shards", name, statistics)
        files_of(model).save(tmp_path, name, statistics, tensors)
        published = load_file(tmp_path / "shards" / name / "model.safetensors")
        assert published.keys() == Normalised().state_dict().keys()
        assert_equal(published, load_file(tmp_path / name / "model.safetensors"))
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [
        "ema",
        "model",
        "shards",
    ]
    resumed = copy.deepcopy(model)
    for name, expected in (("ema", average), ("model", model.state_dict())):
        files.load(resumed, tmp_path / "shards", name)
        assert_equal({key: resumed.state_dict()[key] for key in expected}, dict(expected))


def test_a_run_that_trains_sharded_resumes_from_whole_weights(tmp_path):
    model = CustomAutoencoder(Normalised())
    other = CustomAutoencoder(Normalised())
    files_of(model).save(tmp_path, "model", None, model.state_dict())
    files_of(other, is_sharded=True).load(other, tmp_path, "model")
    assert_equal(other.state_dict(), model.state_dict())


def test_shards_of_another_model_are_refused(tmp_path):
    model = CustomAutoencoder(Normalised())
    write_shards(tmp_path, {"model": {"module.encoder.bias": torch.zeros(3)}})
    with pytest.raises(
        ValueError,
        match=r"shards` must be the model's weights, but got no module.encoder.weight; .* and \d+ more",
    ):
        files_of(model, is_sharded=True).load(model, tmp_path, "model")


def test_a_module_that_cannot_be_copied_is_refused():
    model = CustomAutoencoder(Normalised())
    model.module.opened = (number for number in ())
    with pytest.raises(
        ValueError, match=r"`autoencoder` must be a module that `copy.deepcopy` copies.*generator"
    ):
        files_of(model)


def test_another_architecture_is_refused_by_its_setting(tmp_path):
    small = CausalVAEConfig(2, 4, 3, patch_size=2, base_channels=8, blocks_per_level=1)
    CausalVAE(small).save_pretrained(tmp_path)
    check_same_architecture(CausalVAE(small), tmp_path, "causal_vae")
    other = CausalVAE(replace(small, latent_channels=4))
    with pytest.raises(
        ValueError, match=r"`latent_channels of causal_vae` must be 3 as in .*, but got 4"
    ):
        check_same_architecture(other, tmp_path, "causal_vae")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["latent_channels"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_same_architecture(other, tmp_path, "causal_vae")
    check_same_architecture(CustomAutoencoder(Normalised()), tmp_path, "custom")


@pytest.mark.parametrize("noise_fraction", [0.0, 0.1])
def test_the_architecture_of_a_decoder_that_generates_is_its_own(tmp_path, noise_fraction):
    flow = FlowConfig(noise_fraction=noise_fraction)
    config = CausalVAEConfig(
        2, 4, 3, patch_size=2, base_channels=8, blocks_per_level=1, decoder="flow", flow=flow
    )
    CausalVAE(config).save_pretrained(tmp_path)
    check_same_architecture(CausalVAE(config), tmp_path, "causal_vae")
    other = CausalVAE(replace(config, flow=replace(flow, noise_fraction=0.2)))
    with pytest.raises(ValueError, match=r"`flow of causal_vae` must be .*, but got"):
        check_same_architecture(other, tmp_path, "causal_vae")


def test_the_version_of_diffusers_and_the_statistics_are_no_part_of_the_architecture():
    class Printable(nn.Module):
        def to_json_string(self):
            return json.dumps(
                {
                    "_class_name": "Printable",
                    "_diffusers_version": "0.36.0",
                    "dim": 3,
                    "latents_std": [2.0],
                }
            )

    assert architecture_of(Printable()) == {"_class_name": "Printable", "dim": 3}
