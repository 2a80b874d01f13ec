"""The video discriminators: where time ends, their names in checkpoints, and their arguments."""

import pytest
import torch

from telecine.discriminators import (
    Discriminator3D,
    Discriminator3DWithfirstframe,
    DiscriminatorBlock3D,
    DiscriminatorBlock3DWithfirstframe,
)

CLASSES = {Discriminator3D: DiscriminatorBlock3D, Discriminator3DWithfirstframe: DiscriminatorBlock3DWithfirstframe}
both = pytest.mark.parametrize("cls", CLASSES)


@both
@pytest.mark.parametrize(
    ("image_size", "frame_num", "num_video_blocks", "num_blocks"),
    [(16, 1, 0, 3), (16, 2, 1, 3), (16, 5, 2, 3), (32, 8, 3, 4), (32, 16, 3, 4), (64, 17, 4, 5), (64, 7, 2, 5)],
)
def test_video_blocks_while_time_lasts_and_one_image_block_at_least(
    cls, image_size, frame_num, num_video_blocks, num_blocks
):
    network = cls(dim=1, image_size=image_size, frame_num=frame_num)
    assert len(network.blocks) == num_blocks
    assert [isinstance(block, CLASSES[cls]) for block in network.blocks] == [
        level < num_video_blocks for level in range(num_blocks)
    ]


@both
def test_sizes_may_be_lists(cls):
    torch.manual_seed(0)
    first = cls(dim=1, image_size=[32, 48], frame_num=4)
    second = cls(dim=1, image_size=(32, 48), frame_num=4)
    second.load_state_dict(first.state_dict(), strict=True)
    x = torch.randn(2, 3, 4, 32, 48)
    assert torch.equal(first(x), second(x))


@both
def test_the_mean_over_time_is_what_the_image_blocks_see(cls):
    torch.manual_seed(0)
    network = cls(dim=1, image_size=16, frame_num=2).double()
    x = torch.randn(2, 3, 7, 16, 16, dtype=torch.float64)
    features = network.blocks[0](x)
    assert features.shape[2] == 4
    features = sum(features[:, :, t] for t in range(4)) / 4
    expected = network.to_logits(network.blocks[2](network.blocks[1](features)))
    torch.testing.assert_close(network(x), expected)


@both
@pytest.mark.parametrize("antialiased", [False, True])
def test_names_and_round_trip(cls, antialiased):
    config = {"dim": 1, "image_size": 32, "frame_num": 4, "antialiased_downsample": antialiased}
    network = cls(**config)
    names = set(network.state_dict())
    blurs = {f"blocks.{level}.maybe_blur.f" for level in (0, 1)} | {
        f"blocks.{level}.0.maybe_blur.f" for level in (2, 3)
    }
    assert {name for name in names if "blur" in name} == (blurs if antialiased else set())
    assert {"blocks.0.conv_res.weight" if cls is Discriminator3D else "blocks.0.downsample_res.conv.weight"} <= names
    assert {"blocks.2.1.0.fn.attn.to_q.0.weight", "blocks.3.1.1.fn.net.2.bias", "to_logits.3.weight"} <= names
    other = cls(**config)
    other.load_state_dict(network.state_dict(), strict=True)
    x = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(network(x), other(x))


@both
@pytest.mark.parametrize(("image_size", "linear"), [((60, 90), 7 * 11), ((240, 360), 7 * 11), ((36, 45), 4 * 5)])
def test_the_linear_layer_fits_published_checkpoints_of_any_size(cls, image_size, linear):
    network = cls(dim=1, image_size=image_size, frame_num=4, max_dim=4)
    assert network.to_logits[3].weight.shape == (1, 4 * linear)


@both
def test_blur_over_time_is_an_option(cls):
    torch.manual_seed(0)
    config = {"dim": 1, "image_size": 16, "frame_num": 4, "antialiased_downsample": True}
    space, time = cls(**config), cls(**config, antialiased_time=True)
    time.load_state_dict(space.state_dict(), strict=True)
    x = torch.randn(1, 3, 4, 16, 16)
    assert not torch.allclose(space(x), time(x))
    with pytest.raises(ValueError, match="`antialiased_time` must come with `antialiased_downsample=True`"):
        cls(dim=1, image_size=16, frame_num=4, antialiased_time=True)


@both
@pytest.mark.parametrize("name", ["dim", "frame_num", "channels", "max_dim"])
def test_bad_counts(cls, name):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive int, but got 0"):
        cls(**{"dim": 1, "image_size": 16, "frame_num": 4, name: 0})


@both
@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 1, 4, 16, 16), (3, 4, 16, 16)])
def test_bad_input(cls, shape):
    with pytest.raises(ValueError, match=r"input must be \(B, C, T, H, W\) with C = 3, but got"):
        cls(dim=1, image_size=16, frame_num=4)(torch.zeros(shape))
