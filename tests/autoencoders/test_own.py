"""A module of one's own is saved under its own names, and comes back."""

import pytest
import torch
from diffusers import ModelMixin
from safetensors.torch import load_file
from torch import nn

from telecine.autoencoders.diffusers import DiffusersAutoencoder
from telecine.autoencoders.own import OwnAutoencoder, own_autoencoder
from telecine.training.trainable import TrainableConfig, select_trainable

from .tiny_models import tiny_clip, tiny_model


class Compressor(nn.Module):
    """The smallest autoencoder whose layers can have low-rank updates."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv3d(3, 4, 1)
        self.decoder = nn.Sequential(nn.Conv3d(4, 4, 1), nn.Conv3d(4, 3, 1))

    def forward(self, video):
        return self.decoder(self.encoder(video))


class SavesItself(Compressor):
    """One that has a format of its own."""

    def save_pretrained(self, folder):
        folder.mkdir()
        torch.save(self.state_dict(), folder / "mine.pt")


def clip():
    return torch.rand(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("cls", "load"), [(Compressor, load_file), (SavesItself, torch.load)])
def test_low_rank_updates_are_merged_where_they_are_saved(cls, load, tmp_path):
    model = OwnAutoencoder(cls())
    select_trainable(model, TrainableConfig(weights="lora", lora_rank=2))
    with torch.no_grad():
        model.module.decoder[0].parametrizations.weight[0].up.normal_()
    model.save_pretrained(tmp_path / "model")
    (file,) = {path for path in (tmp_path / "model").iterdir() if path.suffix != ".json"}
    alone = cls()
    alone.load_state_dict(load(file))
    torch.testing.assert_close(alone(clip()), model(clip()).video)


class Tied(Compressor):
    """One whose last layer goes by two names, and two of whose layers share a weight."""

    def __init__(self):
        super().__init__()
        self.last = self.decoder[1]
        self.twin = nn.Conv3d(3, 4, 1, bias=False)
        self.twin.weight = self.encoder.weight


def test_weights_of_two_names_are_saved_and_stay_tied(tmp_path):
    model = OwnAutoencoder(Tied())
    model.save_pretrained(tmp_path)
    other = OwnAutoencoder(Tied())
    other.load_weights(tmp_path)
    expected = model.module.state_dict()
    assert set(load_file(tmp_path / "model.safetensors")) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.module.state_dict().items())
    assert other.module.last is other.module.decoder[1]
    assert other.module.twin.weight is other.module.encoder.weight


class ReturnsTheWrongThing(Compressor):
    def __init__(self):
        super().__init__()
        self.num_calls = 0

    def forward(self, video):
        self.num_calls += 1
        return {"sample": super().forward(video)}


def test_an_output_that_is_no_video_is_named_at_the_first_try():
    module = ReturnsTheWrongThing()
    with pytest.raises(TypeError, match=r"`the module's output` must be a video, .*but got .*Return the"):
        OwnAutoencoder(module).check_clip(2, 32, 32)
    assert module.num_calls == 1


def test_a_model_of_diffusers_is_taken_as_one():
    model = own_autoencoder(tiny_model("wan"))
    assert isinstance(model, DiffusersAutoencoder)
    assert model(tiny_clip("wan")).video.shape == tiny_clip("wan").shape


def test_a_class_of_ones_own_above_diffusers_is_called_by_its_forward():
    class Mine(ModelMixin, Compressor):
        pass

    assert isinstance(own_autoencoder(Mine()), OwnAutoencoder)
