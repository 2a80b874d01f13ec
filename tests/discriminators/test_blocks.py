"""The 2D and 3D blocks against the published formula, the head, and the checks of sizes."""

import jaxtyping
import pytest
import torch
from einops import rearrange
from torch.nn import functional as F

from telecine.discriminators.blocks import DiscriminatorBlock, DiscriminatorBlock3D, Head
from telecine.discriminators.residual import Discriminator


def space_to_depth(x, conv):
    """Rearrange, then mix, as the published code does."""
    if x.ndim == 4:
        return conv(rearrange(x, "b c (h p1) (w p2) -> b (c p1 p2) h w", p1=2, p2=2))
    return conv(rearrange(x, "b c (t p1) (h p2) (w p3) -> b (c p1 p2 p3) t h w", p1=2, p2=2, p3=2))


class TestBlock:
    @pytest.mark.parametrize("blurred", [False, True])
    @pytest.mark.parametrize("downsample", [False, True])
    def test_equals_the_formula(self, blurred, downsample):
        torch.manual_seed(0)
        block = DiscriminatorBlock(3, 4, downsample, blurred).double()
        x = torch.randn(2, 3, 6, 4, dtype=torch.float64)
        y = F.leaky_relu(block.net[2](F.leaky_relu(block.net[0](x), 0.1)), 0.1)
        skip = F.conv2d(x, *block.conv_res.parameters())
        if downsample:
            y = space_to_depth(block.maybe_blur(y) if blurred else y, block.downsample[1])
            skip = skip[:, :, ::2, ::2]
        torch.testing.assert_close(block(x), (y + skip) / 2**0.5)

    @pytest.mark.parametrize("blurred", [False, True])
    def test_3d_equals_the_formula(self, blurred):
        torch.manual_seed(0)
        block = DiscriminatorBlock3D(3, 2, blurred).double()
        x = torch.randn(2, 3, 4, 2, 6, dtype=torch.float64)
        y = F.leaky_relu(block.net[2](F.leaky_relu(block.net[0](x), 0.1)), 0.1)
        if blurred:
            y = block.maybe_blur(y, space_only=True)
        y = space_to_depth(y, block.downsample[1])
        skip = F.conv3d(x, *block.conv_res.parameters())[:, :, ::2, ::2, ::2]
        torch.testing.assert_close(block(x), (y + skip) / 2**0.5)

    @pytest.mark.parametrize("blurred", [False, True])
    @pytest.mark.parametrize(
        ("make", "shape"),
        [
            (lambda blurred: DiscriminatorBlock(1, 1, True, blurred), (1, 1, 3, 2)),
            (lambda blurred: DiscriminatorBlock3D(1, 1, blurred), (1, 1, 3, 2, 1)),
        ],
    )
    def test_gradcheck_and_gradgradcheck(self, make, shape, blurred):
        torch.manual_seed(0)
        block = make(blurred).double()
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(block, (x,))
        assert torch.autograd.gradgradcheck(lambda x: block(x) ** 2, (x,))


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
        torch.testing.assert_close(
            logits, (features.flatten(1) @ head[3].weight.T + head[3].bias)[:, 0]
        )


class TestSizes:
    @pytest.mark.parametrize("size", [16, (16, 16), [16, 16], torch.Size([16, 16])])
    def test_ints_and_pairs(self, size):
        assert Discriminator(dim=1, image_size=size).to_logits[2].size == (4, 4)

    @pytest.mark.parametrize("size", [None, "64", 64.0, (64,), (64, 64, 64), (64.5, 64), {}])
    def test_error_for_anything_else(self, size, monkeypatch):
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        message = r"`image_size` must be an int or a pair .*but got .*size of the training crops"
        with pytest.raises(ValueError, match=message):
            Discriminator(dim=1, image_size=size)

    @pytest.mark.parametrize("size", [3, -64, (16, 3), [2, 64]])
    def test_too_small(self, size):
        with pytest.raises(
            ValueError, match=r"`image_size` must be at least 4, but got .*up-sample"
        ):
            Discriminator(dim=1, image_size=size)

    @pytest.mark.parametrize(
        ("size", "max_dim", "widths"),
        [
            ((16, 16), 512, [8, 16, 32]),
            ((31, 99), 512, [8, 16, 32]),
            ((64, 32), 512, [8, 16, 32, 64]),
            ((256, 256), 20, [8, 16, 20, 20, 20, 20, 20]),
        ],
    )
    def test_widths(self, size, max_dim, widths):
        network = Discriminator(dim=2, image_size=size, max_dim=max_dim)
        convolutions = [block[0].conv_res for block in network.blocks]
        assert [conv.in_channels for conv in convolutions] == [3, *widths[:-1]]
        assert [conv.out_channels for conv in convolutions] == widths

    @pytest.mark.parametrize(
        ("size", "expected"),
        [((60, 90), (7, 11)), ((240, 360), (7, 11)), ((31, 99), (7, 24)), ((36, 45), (4, 5))],
    )
    def test_the_head_has_the_size_of_published_checkpoints(self, size, expected):
        assert Discriminator(dim=1, image_size=size).to_logits[2].size == expected
