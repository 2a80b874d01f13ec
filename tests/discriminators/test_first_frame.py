"""Causal convolution, pooling that keeps the first frame separate, and the block of both."""

import jaxtyping
import pytest
import torch
from torch.nn import functional as F

from telecine.discriminators.blocks import (
    Blur,
    CausalConv3d,
    DiscriminatorBlock3DWithfirstframe,
    DownSample3D,
)


def naive_pool(x):
    """Return the first frame, then the mean of each following pair; a last frame without a partner is kept."""
    frames = list(x.unbind(2))
    rest = frames[1:]
    pairs = [rest[start : start + 2] for start in range(0, len(rest), 2)]
    return torch.stack([frames[0], *(sum(pair) / len(pair) for pair in pairs)], dim=2)


class TestCausalConv3d:
    @pytest.mark.parametrize("mode", ["first", "constant"])
    @pytest.mark.parametrize(
        ("kernel", "time"), [(3, 1), (3, 5), ((2, 3, 3), 2), ((4, 1, 5), 2), ((1, 1, 1), 2)]
    )
    def test_equals_a_loop_over_frames(self, mode, kernel, time):
        torch.manual_seed(0)
        layer = CausalConv3d(2, 3, kernel, mode).double()
        depth, height, width = layer.conv.kernel_size
        x = torch.randn(2, 2, time, 5, 4, dtype=torch.float64)
        out = layer(x)
        assert out.shape == (2, 3, time, 5, 4)
        for t in range(time):
            expected = layer.conv.bias.view(1, 3, 1, 1).expand(2, 3, 5, 4)
            for tap in range(depth):
                seen = t - (depth - 1) + tap
                if seen < 0 and mode == "constant":
                    continue
                frame = x[:, :, max(seen, 0)]
                expected = expected + F.conv2d(
                    frame, layer.conv.weight[:, :, tap], padding=(height // 2, width // 2)
                )
            torch.testing.assert_close(out[:, :, t], expected)

    @pytest.mark.parametrize("kernel", [2, (3, 2, 3), (3, 3, 4)])
    def test_even_kernels(self, kernel):
        with pytest.raises(
            ValueError, match="`kernel_size` must be odd in height and width, but got"
        ):
            CausalConv3d(1, 1, kernel)

    def test_unknown_mode(self, monkeypatch):
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        with pytest.raises(
            ValueError, match=r"`pad_mode` must be one of 'first', 'constant', but got 'last'"
        ):
            CausalConv3d(1, 1, 3, "last")


class TestDownSample3D:
    @pytest.mark.parametrize("time", [1, 2, 3, 16, 17])
    def test_time(self, time):
        x = torch.randn(2, 3, time, 4, 6, dtype=torch.float64)
        out = DownSample3D(3, with_conv=False, compress_time=True)(x)
        assert out.shape == (2, 3, 1 + time // 2, 2, 3)
        torch.testing.assert_close(out, F.avg_pool3d(naive_pool(x), (1, 2, 2)))

    @pytest.mark.parametrize("size", [(4, 6), (5, 7), (3, 2), (1, 4), (1, 1)])
    def test_the_convolution_of_each_frame(self, size):
        torch.manual_seed(0)
        layer = DownSample3D(2, with_conv=True, out_channels=3).double()
        x = torch.randn(2, 2, 3, *size, dtype=torch.float64)
        out = layer(x)
        assert out.shape == (2, 3, 3, *(max(n // 2, 1) for n in size))
        for t in range(3):
            pad = (0, 1 + (size[1] == 1), 0, 1 + (size[0] == 1))
            torch.testing.assert_close(out[:, :, t], layer.conv(F.pad(x[:, :, t], pad)))

    @pytest.mark.parametrize(
        ("time", "with_conv"), [(1, True), (2, False), (2, True), (3, False), (3, True)]
    )
    def test_gradcheck_and_gradgradcheck(self, time, with_conv):
        torch.manual_seed(0)
        layer = DownSample3D(1, with_conv, compress_time=True).double()
        x = torch.randn(1, 1, time, 2, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(layer, (x,))
        assert torch.autograd.gradgradcheck(lambda x: layer(x) ** 2, (x,))


class TestBlock:
    @pytest.mark.parametrize("blurred", [False, True])
    @pytest.mark.parametrize("time", [1, 4, 5])
    def test_equals_the_formula(self, blurred, time):
        torch.manual_seed(0)
        block = DiscriminatorBlock3DWithfirstframe(2, 3, blurred).double()
        x = torch.randn(2, 2, time, 6, 5, dtype=torch.float64)
        y = F.leaky_relu(block.net[2](F.leaky_relu(block.net[0](x), 0.1)), 0.1)
        y = Blur().double()(y, space_only=True) if blurred else y

        def halve(x, conv):
            pooled = naive_pool(x)
            return torch.stack(
                [conv(F.pad(frame, (0, 1, 0, 1))) for frame in pooled.unbind(2)], dim=2
            )

        expected = (halve(y, block.downsample.conv) + halve(x, block.downsample_res.conv)) / 2**0.5
        torch.testing.assert_close(block(x), expected)
