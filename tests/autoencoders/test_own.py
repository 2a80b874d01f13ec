"""A module of one's own is saved under its own names, and comes back."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from telecine.autoencoders.own import OwnAutoencoder
from telecine.training.trainable import TrainableConfig, select_trainable


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
