"""Weights are saved and restored, LoRA updates in a separate file and on the same base model."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from telecine.base.frozen import Frozen
from telecine.models import CausalVAE, CustomAutoencoder
from telecine.models.latent import LatentStatistics
from telecine.models.lora import add_low_rank
from telecine.settings import CausalVAEConfig, TrainableConfig
from telecine.training.tensor_files import HostCopy, save_shards, shard_file
from telecine.training.trainable import select_trainable
from telecine.training.weight_files import WeightFiles, architecture_of, check_same_architecture


class Normalised(nn.Module):
    """An autoencoder whose decoder has statistics without weights, and a layer with two names."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv3d(3, 4, 1)
        self.decoder = nn.Sequential(nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4, affine=False), nn.Conv3d(4, 3, 1))
        self.last = self.decoder[2]

    def forward(self, video):
        return self.decoder(self.encoder(video))


def adapted(seed):
    torch.manual_seed(seed)
    model = CustomAutoencoder(Normalised())
    select_trainable(model, TrainableConfig(weights="lora", lora_rank=2))
    return model, WeightFiles(model, is_sharded=False)


def test_updates_and_statistics_are_restored(tmp_path):
    model, files = adapted(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_()
    model.train()(torch.rand(2, 3, 2, 4, 4))
    files.save(tmp_path, "model", None, model.state_dict())
    other, others = adapted(0)
    others.load(other, tmp_path, "model")
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


def test_another_base_model_is_refused():
    _, files = adapted(0)
    adapted(0)[1].check_base(files.base)
    adapted(1)[1].check_base(None)  # without LoRA
    with pytest.raises(ValueError, match=r"`model` must be the base model of the run's LoRA updates.*other weights"):
        adapted(1)[1].check_base(files.base)


def test_without_lora_there_is_no_base():
    assert WeightFiles(CustomAutoencoder(Normalised()), is_sharded=False).base is None


def test_a_custom_save_pretrained_gets_merged_updates(tmp_path):
    class Complete(Normalised):
        def save_pretrained(self, folder):
            folder.mkdir()
            (folder / "names").write_text(" ".join(sorted(self.state_dict())))

    model = Complete()
    add_low_rank(model, ["decoder.0"], rank=2, alpha=1.0)
    files = WeightFiles(CustomAutoencoder(model), is_sharded=False)
    files.save(tmp_path, "model", None, CustomAutoencoder(model).state_dict())
    assert (tmp_path / "model" / "names").read_text().split() == sorted(Normalised().state_dict())


def test_the_base_is_that_of_the_frozen_weights():
    model, files = adapted(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_()
    assert WeightFiles(model, is_sharded=False).base == files.base
    with torch.no_grad():
        next(weight for weight in model.parameters() if not weight.requires_grad).add_(1)
    assert WeightFiles(model, is_sharded=False).base != files.base


def changed(model, value):
    with torch.no_grad():
        model.module.last.bias.fill_(value)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_equal(model, expected):
    return all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_weights_are_saved_from_copies(tmp_path):
    model, other = CustomAutoencoder(Normalised()), CustomAutoencoder(Normalised())
    files = WeightFiles(model, is_sharded=False)
    expected = changed(model, 3.0)
    changed(model, 4.0)
    files.save(tmp_path, "model", None, expected)
    files.load(other, tmp_path, "model")
    assert is_equal(other, expected)
    assert model.module.last.bias.tolist() == [4, 4, 4], "the model trains on"
    files.save(tmp_path, "ema", None, {**expected, "module.encoder.bias": torch.full((4,), 5.0)})
    files.load(other, tmp_path, "ema")
    different = {name for name, tensor in other.state_dict().items() if not torch.equal(tensor, expected[name])}
    assert different == {"module.encoder.bias"}


def test_frozen_networks_are_not_copied():
    class Uncopied(nn.Linear):
        def __deepcopy__(self, memo):
            raise AssertionError

    model = CustomAutoencoder(Normalised())
    model.module.teacher = Frozen(Uncopied(2, 2))
    WeightFiles(model, is_sharded=False)


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
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    files = WeightFiles(model, is_sharded=True)
    whole = WeightFiles(model, is_sharded=False)
    average = {name: weight + 1 for name, weight in model.named_parameters() if weight.requires_grad}
    write_shards(tmp_path / "shards", {"model": model.state_dict(), "ema": average})
    statistics = LatentStatistics([1.0], [2.0])
    for name in ("model", "ema"):
        files.save_from_shards(tmp_path / "shards", name, statistics)
        whole.save(tmp_path, name, statistics, model.state_dict() | (average if name == "ema" else {}))
        ours, theirs = (load_file(folder / name / "model.safetensors") for folder in (tmp_path, tmp_path / "shards"))
        assert ours.keys() == theirs.keys() == CustomAutoencoder(Normalised()).module.state_dict().keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["ema", "model", "shards"]
    resumed = copy.deepcopy(model)
    for name, expected in (("ema", average), ("model", model.state_dict())):
        files.load(resumed, tmp_path / "shards", name)
        tensors = resumed.state_dict()
        assert all(torch.equal(tensors[key], tensor) for key, tensor in expected.items())


def test_a_run_that_trains_sharded_resumes_from_whole_weights(tmp_path):
    model, other = CustomAutoencoder(Normalised()), CustomAutoencoder(Normalised())
    WeightFiles(model, is_sharded=False).save(tmp_path, "model", None, model.state_dict())
    WeightFiles(other, is_sharded=True).load(other, tmp_path, "model")
    assert is_equal(other, model.state_dict())


def test_shards_of_another_model_are_refused(tmp_path):
    model = CustomAutoencoder(Normalised())
    write_shards(tmp_path, {"model": {"module.encoder.bias": torch.zeros(3)}})
    with pytest.raises(
        ValueError, match=r"shards` must be the model's weights, but got no module.encoder.weight; .* and \d+ more"
    ):
        WeightFiles(model, is_sharded=True).load(model, tmp_path, "model")


def test_a_module_that_cannot_be_copied_is_refused():
    model = CustomAutoencoder(Normalised())
    model.module.opened = (each for each in ())
    with pytest.raises(ValueError, match=r"`autoencoder` must be a module that `copy.deepcopy` copies.*generator"):
        WeightFiles(model, is_sharded=False)


def test_another_architecture_is_refused_by_its_setting(tmp_path):
    small = CausalVAEConfig(2, 4, 3, patch_size=2, base_channels=8, blocks_per_level=1)
    CausalVAE(small).save_pretrained(tmp_path)
    check_same_architecture(CausalVAE(small), tmp_path, "causal_vae")
    other = CausalVAE(replace(small, latent_channels=4))
    with pytest.raises(ValueError, match=r"`latent_channels of causal_vae` must be 3 as in .*, but got 4"):
        check_same_architecture(other, tmp_path, "causal_vae")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["latent_channels"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_same_architecture(other, tmp_path, "causal_vae")
    check_same_architecture(CustomAutoencoder(Normalised()), tmp_path, "custom")


def test_the_version_of_diffusers_and_the_statistics_are_no_part_of_the_architecture():
    class Printable(nn.Module):
        def to_json_string(self):
            return json.dumps(
                {"_class_name": "Printable", "_diffusers_version": "0.36.0", "dim": 3, "latents_std": [2.0]}
            )

    assert architecture_of(Printable()) == {"_class_name": "Printable", "dim": 3}
