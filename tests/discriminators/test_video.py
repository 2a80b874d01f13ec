"""The video discriminators: number of video blocks, mean over time, names in checkpoints, and arguments."""

from typing import ClassVar

import jaxtyping
import pytest
import torch

from telecine.discriminators import (
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
)
from telecine.discriminators.blocks import (
    DiscriminatorBlock3D,
    DiscriminatorBlock3DWithfirstframe,
)

CLASSES = {
    Discriminator3D: DiscriminatorBlock3D,
    Discriminator3DWithfirstframe: DiscriminatorBlock3DWithfirstframe,
}
both = pytest.mark.parametrize("cls", CLASSES)


@both
@pytest.mark.parametrize(
    ("image_size", "frame_num", "num_video_blocks", "num_blocks"),
    [
        (16, 1, 0, 3),
        (16, 2, 1, 3),
        (16, 5, 2, 3),
        (32, 8, 3, 4),
        (32, 16, 3, 4),
        (64, 17, 4, 5),
        (64, 7, 2, 5),
    ],
)
def test_one_video_block_per_halving_of_time_and_at_least_one_image_block(
    cls, image_size, frame_num, num_video_blocks, num_blocks
):
    network = cls(dim=1, image_size=image_size, frame_num=frame_num)
    assert len(network.blocks) == num_blocks
    assert [isinstance(block, CLASSES[cls]) for block in network.blocks] == [
        level < num_video_blocks for level in range(num_blocks)
    ]


@both
def test_the_image_blocks_receive_the_mean_over_time(cls):
    torch.manual_seed(0)
    network = cls(dim=1, image_size=16, frame_num=2).double()
    x = torch.randn(2, 3, 7, 16, 16, dtype=torch.float64)
    features = network.blocks[0](x)
    assert features.shape[2] == 4
    features = sum(features[:, :, t] for t in range(4)) / 4
    expected = network.to_logits(network.blocks[2](network.blocks[1](features)))
    torch.testing.assert_close(network(x).logits, expected)


@both
def test_the_blur_is_part_of_the_state_dict(cls):
    network = cls(dim=1, image_size=16, frame_num=4, antialiased_downsample=True)
    names = {name for name in network.state_dict() if "blur" in name}
    assert names == {f"blocks.{name}maybe_blur.f" for name in ("0.", "1.", "2.0.")}


COUNTS = ["dim", "channels", "max_dim", "ff_mult", "linear_attn_dim_head", "linear_attn_heads"]


@pytest.mark.parametrize(
    ("cls", "config", "names"),
    [
        (Discriminator, {}, COUNTS),
        *((cls, {"frame_num": 4}, [*COUNTS, "frame_num"]) for cls in CLASSES),
    ],
)
def test_error_for_a_count(cls, config, names):
    for name in names:
        with pytest.raises(ValueError, match=f"`{name}` must be a positive int, but got 0"):
            cls(**{"dim": 1, "image_size": 16, **config, name: 0})


def frames_in_positions(num_frames, num_poolings):
    """Count the frames in each position: the first frame is never pooled, a pair has the frames of both."""
    counts = [1] * num_frames
    for _ in range(num_poolings):
        rest = counts[1:]
        counts = counts[:1] + [sum(rest[start : start + 2]) for start in range(0, len(rest), 2)]
    return counts


class TestTimeWeighting:
    CONFIG: ClassVar = {"dim": 1, "image_size": 32, "frame_num": 8}

    def build(self, **options):
        torch.manual_seed(0)
        return Discriminator3DWithfirstframe(**{**self.CONFIG, **options}).double()

    @pytest.mark.parametrize(
        "option",
        [
            {"time_weighting": "frames"},
            {"pad_mode": "constant"},
            {"time_weighting": "positions"},
            {},
        ],
    )
    def test_options_change_no_parameters_and_the_defaults_are_those_of_the_reference(self, option):
        default, other = self.build(), self.build(**option)
        other.load_state_dict(default.state_dict(), strict=True)
        x = torch.randn(2, 3, 9, 32, 32, dtype=torch.float64)
        is_default = option in ({}, {"time_weighting": "positions"})
        assert torch.equal(default(x).logits, other(x).logits) == is_default

    @pytest.mark.parametrize("time", [1, 9, 16, 17])
    def test_the_network(self, time):
        network = self.build(time_weighting="frames")
        assert network.temporal_num_layers == 3
        x = torch.randn(2, 3, time, 32, 32, dtype=torch.float64)
        logits, features = network(x)
        counts = frames_in_positions(time, 3)
        assert features[2].shape[2] == len(counts)
        mean = sum(
            count / time * features[2][:, :, position] for position, count in enumerate(counts)
        )
        torch.testing.assert_close(logits, network.to_logits(network.blocks[3](mean)))

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            (
                "time_weighting",
                "frame",
                r"one of 'positions', 'frames', but got 'frame'.*Did you mean `frames`\?",
            ),
            (
                "pad_mode",
                "zeros",
                "one of 'first', 'constant', but got 'zeros'.*Use one of: first, constant",
            ),
        ],
    )
    def test_unknown_options(self, option, value, message, monkeypatch):
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        with pytest.raises(ValueError, match=f"`{option}` must be {message}"):
            self.build(**{option: value})
