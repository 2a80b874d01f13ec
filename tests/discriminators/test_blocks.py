"""The 2D and 3D blocks against the published formula, the head, and the checks of sizes."""

import pytest
import torch
from einops import rearrange
from torch.nn import functional as F

from telecine.discriminators.base import check_batch
from telecine.discriminators.blocks import DiscriminatorBlock, DiscriminatorBlock3D, Head
from telecine.discriminators.residual import Discriminator, _as_image_size

CELLS_2D = "b c (h p1) (w p2) -> b (c p1 p2) h w"
CELLS_3D = "b c (t p1) (h p2) (w p3) -> b (c p1 p2 p3) t h w"


def space_to_depth(x, conv):
    """Rearrange, then mix, as the published code does."""
    names = ("p1", "p2") if x.ndim == 4 else ("p1", "p2", "p3")
    return conv(rearrange(x, CELLS_2D if x.ndim == 4 else CELLS_3D, **dict.fromkeys(names, 2)))


class TestBlock:
    @pytest.mark.parametrize("blurred", [False, True])
    @pytest.mark.parametrize("downsample", [False, True])
    def test_equals_the_formula(self, blurred, downsample):
        torch.manual_seed(0)
        block = DiscriminatorBlock(3, 4, downsample, blurred).double()
        x = torch.randn(2, 3, 6, 4, dtype=torch.float64)
        first, second = block.net[0], block.net[2]
        y = F.leaky_relu(second(F.leaky_relu(first(x), 0.1)), 0.1)
        if downsample:
            y = space_to_depth(block.maybe_blur(y) if blurred else y, block.downsample[1])
        stride = 2 if downsample else 1
        skip = (
            block.conv_res(x) if not downsample else F.conv2d(x[:, :, ::stride, ::stride], *block.conv_res.parameters())
        )
        torch.testing.assert_close(block(x), (y + skip) / 2**0.5)

    @pytest.mark.parametrize("blurred", [False, True])
    def test_3d_equals_the_formula_and_blurs_only_space(self, blurred):
        torch.manual_seed(0)
        block = DiscriminatorBlock3D(3, 2, blurred).double()
        x = torch.randn(2, 3, 4, 2, 6, dtype=torch.float64)
        y = F.leaky_relu(block.net[2](F.leaky_relu(block.net[0](x), 0.1)), 0.1)
        y = block.maybe_blur(y, space_only=True) if blurred else y
        y = space_to_depth(y, block.downsample[1])
        skip = F.conv3d(x[:, :, ::2, ::2, ::2], *block.conv_res.parameters())
        torch.testing.assert_close(block(x), (y + skip) / 2**0.5)

    def test_time_is_blurred_on_request(self):
        torch.manual_seed(0)
        block = DiscriminatorBlock3D(1, 2, True, antialiased_time=True)
        x = torch.randn(1, 1, 4, 4, 4)
        y = space_to_depth(block.maybe_blur(block.net(x)), block.downsample[1])
        torch.testing.assert_close(block(x), (y + block.conv_res(x)) / 2**0.5)

    @pytest.mark.parametrize("blurred", [False, True])
    def test_gradcheck_and_gradgradcheck(self, blurred):
        torch.manual_seed(0)
        for block, shape in (
            (DiscriminatorBlock(1, 1, True, blurred), (1, 1, 3, 2)),
            (DiscriminatorBlock3D(1, 1, blurred), (1, 1, 3, 2, 1)),
        ):
            x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
            block.double()
            assert torch.autograd.gradcheck(block, (x,))
            assert torch.autograd.gradgradcheck(lambda x, block=block: block(x) ** 2, (x,))

    def test_the_input_is_not_changed(self):
        for block, shape in ((DiscriminatorBlock(2, 3), (1, 2, 4, 4)), (DiscriminatorBlock3D(2, 3), (1, 2, 2, 4, 4))):
            x = torch.randn(shape)
            before, version = x.clone(), x._version
            block(x)
            assert torch.equal(x, before)
            assert x._version == version


class TestHead:
    @pytest.mark.parametrize("size", [(4, 6), (3, 5), (2, 2), (1, 1), (9, 13)])
    def test_any_map_gives_one_logit_per_sample(self, size):
        torch.manual_seed(0)
        head = Head(3, (4, 6)).double()
        x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
        logits = head(x)
        assert logits.shape == (2,)
        (gradient,) = torch.autograd.grad(logits.sum(), x)
        assert (gradient != 0).all()
        features = F.adaptive_avg_pool2d(F.leaky_relu(head[0](x), 0.1), (4, 6))
        torch.testing.assert_close(logits, (features.flatten(1) @ head[3].weight.T + head[3].bias)[:, 0])

    def test_nothing_is_averaged_at_the_size_it_is_built_for(self):
        head = Head(1, (2, 3))
        x = torch.randn(1, 1, 2, 3)
        assert torch.equal(head[2](x), x.flatten(1))


class TestSizes:
    @pytest.mark.parametrize("size", [32, (32, 48), [32, 48], torch.Size([32, 48]), (size for size in (32, 48))])
    def test_ints_and_pairs(self, size):
        assert _as_image_size(size) in ((32, 32), (32, 48))

    @pytest.mark.parametrize("size", [None, "64", 64.0, (64,), (64, 64, 64), (64.5, 64), {}])
    def test_error_for_anything_else(self, size):
        with pytest.raises(
            ValueError, match=r"`image_size` must be an int or a pair .*but got .*size of the training crops"
        ):
            _as_image_size(size)

    @pytest.mark.parametrize("size", [3, -64, (16, 3), [2, 64]])
    def test_too_small(self, size):
        with pytest.raises(ValueError, match=r"`image_size` must be at least 4, but got .*up-sample"):
            _as_image_size(size)

    @pytest.mark.parametrize(
        ("shape", "remedy"), [((3, 8, 8), "Images have 4"), ((1, 4, 8, 8), "Build"), ((1, 3, 2, 8, 8), "Images have 4")]
    )
    def test_input(self, shape, remedy):
        with pytest.raises(ValueError, match=rf"`x` must be of shape \(B, C, H, W\) with C = 3, but got .*{remedy}"):
            check_batch(torch.zeros(shape), "frames", channels=3)


def test_videos_with_time_before_channels_are_recognised():
    with pytest.raises(ValueError, match=r"\(B, C, T, H, W\) with C = 3.* looks like \(B, T, C, H, W\): use `.transp"):
        check_batch(torch.zeros(1, 5, 3, 8, 8), "video", channels=3)
    with pytest.raises(ValueError, match="Build the discriminator"):
        check_batch(torch.zeros(1, 4, 2, 8, 8), "video", channels=3)

    @pytest.mark.parametrize(
        ("size", "max_dim", "widths"),
        [
            ((16, 16), 512, [(3, 8), (8, 16), (16, 32)]),
            ((31, 99), 512, [(3, 8), (8, 16), (16, 32)]),
            ((64, 32), 512, [(3, 8), (8, 16), (16, 32), (32, 64)]),
            ((256, 256), 20, [(3, 8), (8, 16), (16, 20), (20, 20), (20, 20), (20, 20), (20, 20)]),
        ],
    )
    def test_widths(self, size, max_dim, widths):
        network = Discriminator(dim=2, image_size=size, max_dim=max_dim)
        convolutions = [block[0].conv_res for block in network.blocks]
        assert [(conv.in_channels, conv.out_channels) for conv in convolutions] == widths

    @pytest.mark.parametrize(
        ("size", "expected"), [((16, 16), (4, 4)), ((60, 90), (7, 11)), ((240, 360), (7, 11)), ((31, 99), (7, 24))]
    )
    def test_the_head_has_the_size_of_published_checkpoints(self, size, expected):
        assert Discriminator(dim=1, image_size=size).to_logits[2].size == expected
