"""Training on a map-style data set of the user's."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from telecine.data import DataError
from telecine.data.mapped import MappedClips, read_mapped, split_indices
from telecine.settings import ClipConfig
from telecine.training import train

from .helpers import LIGHT, last_checkpoint

CONFIG = ClipConfig(num_frames=5, height=32, width=32)


class Noise:
    """Ten clips, each a function of its index."""

    offset = 0

    def __len__(self):
        return 10

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index + self.offset)
        clip = torch.rand(3, 5, 32, 32, generator=generator) * 2 - 1
        return clip if index % 2 else {"video": clip, "fps": 12}


def weights(config):
    folder = last_checkpoint(config) / "model"
    return load_file(next(folder.glob("*.safetensors")))


def test_a_run_on_a_data_set_resumes_exactly(tiny, tmp_path):
    config = tiny(data=None, steps=4, save_every=2, **LIGHT)
    whole = replace(config, output_dir=str(tmp_path / "whole"))
    train(whole, dataset=Noise())
    train(replace(config, steps=2), dataset=Noise())
    train(config, dataset=Noise())
    expected = weights(whole)
    resumed = weights(config)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())
    other = Noise()
    other.offset = 100
    with pytest.raises(ValueError, match="but got other held-out clips"):
        train(replace(config, steps=5), dataset=other)
    with pytest.raises(ValueError, match=r"other held-out clips|`data` must be"):
        train(replace(config, steps=5))


class Bright(Noise):
    def __getitem__(self, index):
        return torch.rand(3, 5, 32, 32, generator=torch.Generator().manual_seed(index))


def test_clips_in_0_to_1_are_warned_of_once(tiny):
    config = tiny(data=None, steps=1, **LIGHT)
    with pytest.warns(UserWarning, match="no value below 0") as warned:
        train(config, dataset=Bright())
    (warning,) = [warning for warning in warned if "no value below 0" in str(warning.message)]
    assert str(warning.message).startswith("`dataset` has no value below 0 in its held-out clips.")


def test_settings_of_files_are_refused(tiny):
    with pytest.raises(ValueError, match="`data` must be left out with `dataset`"):
        train(tiny(**LIGHT), dataset=Noise())


def test_each_epoch_has_all_clips_in_an_order_of_its_own():
    indices, held_out = split_indices(10, 0.2)
    assert held_out == [2, 7]
    clips = MappedClips(Noise(), indices, CONFIG, seed=1)
    drawn = [clips[number]["source"] for number in range(24)]
    expected = {f"dataset[{index}]" for index in indices}
    epochs = [drawn[:8], drawn[8:16], drawn[16:]]
    assert [set(epoch) for epoch in epochs] == [expected] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert [clips.source_at(0, number) for number in (20, 3)] == [drawn[20], drawn[3]]
    assert {clips[number]["fps"] for number in range(8)} == {12, 25}
    repeated = MappedClips(Noise(), indices, replace(CONFIG, num_clips=3), seed=1)
    assert repeated.names_of([(0, 1), (0, 4)]) == [repeated.names_of([(0, 1)])[0]] * 2
    with pytest.raises(DataError, match="`dataset` must be two clips or more, but got 1"):
        split_indices(1, 0.1)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.zeros(3, 4, 32, 32), r"float32 of shape \(3, 5, 32, 32\)"),
        (torch.zeros(3, 5, 32, 32, dtype=torch.uint8), "float32 of shape"),
        ("a.mp4", "float32 of shape"),
        (torch.full((3, 5, 32, 32), 2.0), r"in \[-1, 1\], but got values from 2 to 2"),
        (torch.full((3, 5, 32, 32), torch.nan), r"in \[-1, 1\], but got values from nan"),
    ],
)
def test_each_clip_is_checked(clip, message):
    with pytest.raises(DataError, match=rf"`dataset\[0\]` must be .*{message}"):
        read_mapped([clip], 0, CONFIG)
