"""The video discriminators: number of video blocks, mean over time, names in checkpoints, and arguments."""

import inspect
from typing import ClassVar

import jaxtyping
import pytest
import torch

from telecine.discriminators import (
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
    build_discriminator,
)
from telecine.discriminators.blocks import (
    CausalConv3d,
    DiscriminatorBlock3D,
    DiscriminatorBlock3DWithfirstframe,
)
from telecine.discriminators.residual import _mean_over_frames

CLASSES = {Discriminator3D: DiscriminatorBlock3D, Discriminator3DWithfirstframe: DiscriminatorBlock3DWithfirstframe}
both = pytest.mark.parametrize("cls", CLASSES)


@both
@pytest.mark.parametrize(
    ("image_size", "frame_num", "num_video_blocks", "num_blocks"),
    [(16, 1, 0, 3), (16, 2, 1, 3), (16, 5, 2, 3), (32, 8, 3, 4), (32, 16, 3, 4), (64, 17, 4, 5), (64, 7, 2, 5)],
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
def test_sizes_may_be_lists(cls):
    torch.manual_seed(0)
    first = cls(dim=1, image_size=[32, 48], frame_num=4)
    second = cls(dim=1, image_size=(32, 48), frame_num=4)
    second.load_state_dict(first.state_dict(), strict=True)
    x = torch.randn(2, 3, 4, 32, 48)
    assert torch.equal(first(x).logits, second(x).logits)


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
@pytest.mark.parametrize("antialiased", [False, True])
def test_names_saving_and_loading(cls, antialiased):
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
    assert torch.equal(network(x).logits, other(x).logits)


@both
@pytest.mark.parametrize(("image_size", "linear"), [((60, 90), 7 * 11), ((240, 360), 7 * 11), ((36, 45), 4 * 5)])
def test_size_of_the_linear_layer_of_published_checkpoints(cls, image_size, linear):
    network = cls(dim=1, image_size=image_size, frame_num=4, max_dim=4)
    assert network.to_logits[3].weight.shape == (1, 4 * linear)


@both
def test_blur_over_time_is_an_option(cls):
    torch.manual_seed(0)
    config = {"dim": 1, "image_size": 16, "frame_num": 4, "antialiased_downsample": True}
    space, time = cls(**config), cls(**config, antialiased_time=True)
    time.load_state_dict(space.state_dict(), strict=True)
    x = torch.randn(1, 3, 4, 16, 16)
    assert not torch.allclose(space(x).logits, time(x).logits)
    with pytest.raises(ValueError, match="`antialiased_time` must be False without `antialiased_downsample`"):
        cls(dim=1, image_size=16, frame_num=4, antialiased_time=True)


@both
@pytest.mark.parametrize(
    "name", ["dim", "frame_num", "max_dim", "ff_mult", "linear_attn_dim_head", "linear_attn_heads"]
)
def test_error_for_a_count(cls, name):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive int, but got 0"):
        cls(**{"dim": 1, "image_size": 16, "frame_num": 4, name: 0})


@both
@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 1, 4, 16, 16), (3, 4, 16, 16)])
def test_error_for_the_shape(cls, shape):
    with pytest.raises(ValueError, match=r"`x` must be of shape \(B, C, T, H, W\) with C = 3, but got"):
        cls(dim=1, image_size=16, frame_num=4)(torch.zeros(shape))


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

    @pytest.mark.parametrize("num_poolings", range(5))
    def test_weights(self, num_poolings):
        for time in (*range(1, 20), 33, 49):
            self.check_weights(time, num_poolings)

    @staticmethod
    def check_weights(time, num_poolings):
        counts = torch.tensor(frames_in_positions(time, num_poolings), dtype=torch.float64)
        assert counts.sum() == time
        x = torch.randn(2, 3, len(counts), 2, 3, dtype=torch.float64)
        expected = (x * counts.view(-1, 1, 1)).sum(2) / time
        torch.testing.assert_close(_mean_over_frames(x, time, num_poolings), expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_dtype_and_constants(self, dtype):
        mean = _mean_over_frames(torch.full((1, 2, 3, 4, 4), 0.5, dtype=dtype), 17, 3)
        assert mean.dtype == dtype
        torch.testing.assert_close(mean, torch.full((1, 2, 4, 4), 0.5, dtype=dtype))

    def test_gradcheck_and_gradgradcheck(self):
        x = torch.randn(1, 1, 3, 2, 1, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: _mean_over_frames(x, 6, 2), (x,))
        assert torch.autograd.gradgradcheck(lambda x: _mean_over_frames(x, 6, 2) ** 2, (x,))

    @pytest.mark.parametrize("time", [1, 9, 16, 17])
    def test_the_network(self, time):
        network = self.build(time_weighting="frames")
        assert network.temporal_num_layers == 3
        x = torch.randn(2, 3, time, 32, 32, dtype=torch.float64)
        logits, features = network(x)
        counts = frames_in_positions(time, 3)
        assert features[2].shape[2] == len(counts)
        mean = sum(count / time * features[2][:, :, position] for position, count in enumerate(counts))
        torch.testing.assert_close(logits, network.to_logits(network.blocks[3](mean)))

    def test_positions_are_the_default_and_checkpoints_load_into_both(self):
        networks = [self.build(), self.build(time_weighting="positions"), self.build(time_weighting="frames")]
        x = torch.randn(2, 3, 9, 32, 32, dtype=torch.float64)
        for network in networks[1:]:
            network.load_state_dict(networks[0].state_dict(), strict=True)
        default, positions, frames = (network(x).logits for network in networks)
        assert torch.equal(default, positions)
        assert not torch.allclose(default, frames)

    def test_both_are_equal_without_pooling(self):
        x = torch.randn(2, 3, 5, 32, 32, dtype=torch.float64)
        positions, frames = (self.build(frame_num=1, time_weighting=kind) for kind in ("positions", "frames"))
        torch.testing.assert_close(positions(x).logits, frames(x).logits)

    def test_padding(self):
        first, constant = self.build(), self.build(pad_mode="constant")
        assert {m.pad_mode for m in first.modules() if isinstance(m, CausalConv3d)} == {"first"}
        assert {m.pad_mode for m in constant.modules() if isinstance(m, CausalConv3d)} == {"constant"}
        constant.load_state_dict(first.state_dict(), strict=True)
        x = torch.randn(2, 3, 9, 32, 32, dtype=torch.float64)
        assert not torch.allclose(first(x).logits, constant(x).logits)

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("time_weighting", "frame", r"one of 'positions', 'frames', but got 'frame'.*Did you mean `frames`\?"),
            ("pad_mode", "zeros", "one of 'first', 'constant', but got 'zeros'.*Use one of: first, constant"),
        ],
    )
    def test_unknown_options(self, option, value, message, monkeypatch):
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        with pytest.raises(ValueError, match=f"`{option}` must be {message}"):
            self.build(**{option: value})

    @pytest.mark.parametrize("option", ["time_weighting", "pad_mode"])
    def test_the_plain_network_does_not_have_these_options(self, option):
        with pytest.raises(ValueError, match=f"arguments of Discriminator3D, but got '{option}'"):
            build_discriminator({**self.CONFIG, option: "frames"}, default=Discriminator3D, name="discr_3d_kwargs")


def test_the_constructors_repeat_the_arguments_of_all_residual_networks():
    classes = (Discriminator3D, Discriminator, Discriminator3DWithfirstframe)
    shared, of_frames, causal = (inspect.signature(cls).parameters for cls in classes)
    assert {*shared} - {*of_frames} == {"frame_num", "antialiased_time"}
    assert {*of_frames} - {*shared} == {"attn_heads", "attn_dim_head"}
    assert {*causal} - {*shared} == {"time_weighting", "pad_mode"}
    assert not {*shared} - {*causal}
    assert all(
        each[name].default == shared[name].default for each in (of_frames, causal) for name in {*each} & {*shared}
    )
