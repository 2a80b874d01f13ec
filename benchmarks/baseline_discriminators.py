"""Plain discriminators that `VideoAutoencoderLoss`'s are measured against, written as in the published reference.

Each has the parameters of telecine's class under the same names, so one state dict fits both. A copy moves space into
channels and a 1x1 convolution mixes them, activations keep their inputs, and attention always uses the linear form.

They support what the comparison needs: heights and widths that every halving divides, and any dtype without autocast.
On the CPU in float32, the double backward of this attention has corrupted the heap at batch sizes of 3, 5 and 7
(PyTorch 2.13 with oneDNN). The benchmarks avoid these.
"""

from __future__ import annotations

from itertools import pairwise
from math import log2

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, einsum, nn
from torch.nn import functional as F


class Blur(nn.Module):
    """Blur height and width with [1, 2, 1] / 4 in one depthwise convolution; edges are replicated."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("f", torch.tensor([1.0, 2.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        """Map images or videos to the same shape."""
        kernel = self.f[:, None] * self.f[None, :]
        kernel = (
            (kernel / kernel.sum()).to(x.dtype).expand(x.shape[1], 1, *[1] * (x.ndim - 4), 3, 3)
        )
        padded = F.pad(x, (1, 1, 1, 1) if x.ndim == 4 else (1, 1, 1, 1, 0, 0), mode="replicate")
        convolve = F.conv2d if x.ndim == 4 else F.conv3d
        return convolve(padded, kernel, groups=x.shape[1])


class RMSNorm(nn.Module):
    """Divide the channels of each position by their root mean square, and scale them."""

    def __init__(self, dim: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1) if axis == 1 else torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        return F.normalize(x, dim=self.axis) * self.scale * self.gamma


class Residual(nn.Module):
    """Add a layer's input to its output."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Return `fn(x) + x`."""
        return self.fn(x) + x


class LinearAttention(nn.Module):
    """Attention with the kernel `1 + s + s^2 / 2`, always computed from features of queries and keys."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.scale = dim_head**-0.5
        inner = dim_head * heads
        self.to_q = nn.Sequential(
            nn.Linear(dim, inner, bias=False), Rearrange("b n (h d) -> b h n d", h=heads)
        )
        self.to_kv = nn.Sequential(
            nn.Linear(dim, 2 * inner, bias=False),
            Rearrange("b n (kv h d) -> kv b h n d", kv=2, h=heads),
        )
        self.to_out = nn.Sequential(nn.Linear(inner, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, N, C)` to the same shape."""
        q = kernel_features(self.to_q(x) * self.scale)
        k, v = self.to_kv(x)
        k = kernel_features(k)
        numerator = einsum(
            "b h n f, b h f e -> b h n e", q, einsum("b h n f, b h n e -> b h f e", k, v)
        )
        denominator = einsum("b h n f, b h f -> b h n", q, k.sum(dim=2))
        return self.to_out(rearrange(numerator / denominator[..., None], "b h n d -> b n (h d)"))


def kernel_features(x: Tensor) -> Tensor:
    """Map `(..., D)` to features `(..., 1 + D + D^2)` with the inner products `1 + s + s^2 / 2`."""
    squares = einsum("... i, ... j -> ... i j", x, x) * 0.5**0.5
    return torch.cat(
        [torch.ones_like(x[..., :1]), x, rearrange(squares, "... i j -> ... (i j)")], dim=-1
    )


class SpaceAttention(nn.Module):
    """Norm, and attention between the positions of each image."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, axis=-1)
        self.attn = LinearAttention(dim, dim_head, heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to the same shape."""
        tokens = self.attn(self.norm(rearrange(x, "b c h w -> b (h w) c")))
        return rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])


class GEGLU(nn.Module):
    """Multiply the first half of the channels by the GELU of the second."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, 2 C, H, W)` to `(B, C, H, W)`."""
        value, gate = x.chunk(2, dim=1)
        return F.gelu(gate) * value


class FeedForward(nn.Module):
    """Norm, 1x1 convolution, GEGLU, 1x1 convolution."""

    def __init__(self, dim: int, mult: int) -> None:
        super().__init__()
        inner = int(dim * mult * 2 / 3)
        self.norm = RMSNorm(dim, axis=1)
        self.net = nn.Sequential(nn.Conv2d(dim, 2 * inner, 1), GEGLU(), nn.Conv2d(inner, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to the same shape."""
        return self.net(self.norm(x))


class ImageBlock(nn.Module):
    """Two 3x3 convolutions beside a strided 1x1 one."""

    def __init__(self, chan_in: int, chan_out: int, halve: bool, blur: bool) -> None:
        super().__init__()
        self.conv_res = nn.Conv2d(chan_in, chan_out, 1, stride=2 if halve else 1)
        self.net = nn.Sequential(
            nn.Conv2d(chan_in, chan_out, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(chan_out, chan_out, 3, padding=1),
            nn.LeakyReLU(0.1),
        )
        self.maybe_blur = Blur() if blur else None
        self.downsample = (
            nn.Sequential(
                Rearrange("b c (h p) (w q) -> b (c p q) h w", p=2, q=2),
                nn.Conv2d(4 * chan_out, chan_out, 1),
            )
            if halve
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, chan_out, H / 2, W / 2)`, or `(B, chan_out, H, W)`."""
        skip = self.conv_res(x)
        x = self.net(x)
        if self.downsample is not None:
            x = x if self.maybe_blur is None else self.maybe_blur(x)
            x = self.downsample(x)
        return (x + skip) * 2**-0.5


class VideoBlock(nn.Module):
    """Two 3x3x3 convolutions beside a strided 1x1x1 one."""

    def __init__(self, chan_in: int, chan_out: int, blur: bool) -> None:
        super().__init__()
        self.conv_res = nn.Conv3d(chan_in, chan_out, 1, stride=2)
        self.net = nn.Sequential(
            nn.Conv3d(chan_in, chan_out, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv3d(chan_out, chan_out, 3, padding=1),
            nn.LeakyReLU(0.1),
        )
        self.maybe_blur = Blur() if blur else None
        self.downsample = nn.Sequential(
            Rearrange("b c (t o) (h p) (w q) -> b (c o p q) t h w", o=2, p=2, q=2),
            nn.Conv3d(8 * chan_out, chan_out, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, T, H, W)` to `(B, chan_out, T / 2, H / 2, W / 2)`."""
        skip = self.conv_res(x)
        x = self.net(x)
        x = x if self.maybe_blur is None else self.maybe_blur(x)
        return (self.downsample(x) + skip) * 2**-0.5


class CausalConv(nn.Module):
    """3x3x3 convolution of a video padded with two copies of its first frame."""

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(chan_in, chan_out, 3, padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, chan_in, T, H, W)` to `(B, chan_out, T, H, W)`."""
        return self.conv(torch.cat([x[:, :, :1], x[:, :, :1], x], dim=2))


class DownSample(nn.Module):
    """Average pairs of frames after the first, then halve height and width with a strided convolution."""

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(chan_in, chan_out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, T, H, W)` to `(B, chan_out, 1 + ceil((T - 1) / 2), H / 2, W / 2)`."""
        batch, _, _, height, width = x.shape
        pixels = rearrange(x, "b c t h w -> (b h w) c t")
        first, rest = pixels[..., :1], pixels[..., 1:]
        rest = torch.cat([rest, rest[..., -1:]], dim=-1) if rest.shape[-1] % 2 else rest
        pixels = torch.cat([first, F.avg_pool1d(rest, 2)], dim=-1)
        frames = rearrange(pixels, "(b h w) c t -> (b t) c h w", b=batch, h=height, w=width)
        return rearrange(
            self.conv(F.pad(frames, (0, 1, 0, 1))), "(b t) c h w -> b c t h w", b=batch
        )


class FirstFrameBlock(nn.Module):
    """Two causal convolutions beside a skip connection. Both are halved in time, height and width."""

    def __init__(self, chan_in: int, chan_out: int, blur: bool) -> None:
        super().__init__()
        self.downsample_res = DownSample(chan_in, chan_out)
        self.net = nn.Sequential(
            CausalConv(chan_in, chan_out),
            nn.LeakyReLU(0.1),
            CausalConv(chan_out, chan_out),
            nn.LeakyReLU(0.1),
        )
        self.maybe_blur = Blur() if blur else None
        self.downsample = DownSample(chan_out, chan_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, T, H, W)` to `(B, chan_out, 1 + ceil((T - 1) / 2), H / 2, W / 2)`."""
        skip = self.downsample_res(x)
        x = self.net(x)
        x = x if self.maybe_blur is None else self.maybe_blur(x)
        return (self.downsample(x) + skip) * 2**-0.5


class BaselineDiscriminator(nn.Module):
    """Baseline of `telecine.Discriminator`: blocks of images with attention, and one logit per sample.

    A subclass has blocks of videos before these; their output is averaged over time.
    """

    video_block: type[VideoBlock] | type[FirstFrameBlock] | None = None

    def __init__(
        self,
        *,
        dim: int,
        image_size: int | list[int],
        frame_num: int = 1,
        channels: int = 3,
        max_dim: int = 512,
        linear_attn_dim_head: int = 8,
        linear_attn_heads: int = 16,
        ff_mult: int = 4,
        antialiased_downsample: bool = False,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        halvings = int(log2(min(height, width))) - 2
        widths = [channels] + [min(4 * dim * 2**level, max_dim) for level in range(halvings + 1)]
        self.num_video_blocks = min(int(log2(frame_num)), halvings)
        blocks: list[nn.Module] = []
        for level, (chan_in, chan_out) in enumerate(pairwise(widths)):
            if level < self.num_video_blocks:
                assert self.video_block is not None
                blocks.append(self.video_block(chan_in, chan_out, antialiased_downsample))
            else:
                attention = Residual(
                    SpaceAttention(chan_out, linear_attn_dim_head, linear_attn_heads)
                )
                block = ImageBlock(chan_in, chan_out, level < halvings, antialiased_downsample)
                blocks.append(
                    nn.Sequential(
                        block, nn.Sequential(attention, Residual(FeedForward(chan_out, ff_mult)))
                    )
                )
        self.blocks = nn.ModuleList(blocks)
        last = widths[-1]
        self.to_logits = nn.Sequential(
            nn.Conv2d(last, last, 3, padding=1),
            nn.LeakyReLU(0.1),
            Rearrange("b c h w -> b (c h w)"),
            nn.Linear(last * (height // 2**halvings) * (width // 2**halvings), 1),
            Rearrange("b 1 -> b"),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images or videos to logits `(B,)`."""
        for level, block in enumerate(self.blocks):
            x = x.mean(dim=2) if level == self.num_video_blocks and x.ndim == 5 else x
            x = block(x)
        return self.to_logits(x)


class BaselineDiscriminator3D(BaselineDiscriminator):
    """Baseline of `telecine.Discriminator3D`."""

    video_block = VideoBlock


class BaselineDiscriminator3DWithfirstframe(BaselineDiscriminator):
    """Baseline of `telecine.Discriminator3DWithfirstframe`."""

    video_block = FirstFrameBlock


BASELINE_DISCRIMINATORS: dict[str, type[BaselineDiscriminator]] = {
    "Discriminator": BaselineDiscriminator,
    "Discriminator3D": BaselineDiscriminator3D,
    "Discriminator3DWithfirstframe": BaselineDiscriminator3DWithfirstframe,
}
