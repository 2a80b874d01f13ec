"""A plain twin of the objective, to measure ours against: the same equations, written as the published reference is.

Every discriminator has the parameters of ours by the same names, so that one state dict fits both. Space is moved into
channels by a copy and mixed by a 1x1 convolution, activations keep their inputs, attention always takes the linear
form, and the graph is autograd's own: one more backward through each loss for the adaptive weight, gradients of the
discriminators' weights in the autoencoder's step, a second forward of the reconstruction in the discriminators' step.

Only what the comparison needs is here: the default terms, heights and widths that every halving divides, and any dtype
but no autocast. On the CPU in float32, the double backward of attention in this form has corrupted the heap at batches
of 3, 5 and 7 (PyTorch 2.13 with oneDNN), so the benchmarks stay away from these.
"""

from __future__ import annotations

from itertools import pairwise
from math import log2

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, einsum, nn
from torch.nn import functional as F

from telecine.perceptual import LPIPS

MIN_NORM = 1e-3
MAX_WEIGHT = 1e3


class Blur(nn.Module):
    """Smooth height and width by [1, 2, 1] / 4 each, edges replicated: one depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("f", torch.tensor([1.0, 2.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        """Map images or videos to the same shape."""
        kernel = self.f[:, None] * self.f[None, :]
        kernel = (kernel / kernel.sum()).to(x.dtype).expand(x.shape[1], 1, *[1] * (x.ndim - 4), 3, 3)
        padded = F.pad(x, (1, 1, 1, 1) if x.ndim == 4 else (1, 1, 1, 1, 0, 0), mode="replicate")
        convolve = F.conv2d if x.ndim == 4 else F.conv3d
        return convolve(padded, kernel, groups=x.shape[1])


class RMSNorm(nn.Module):
    """Divide the channels of each position by their norm and scale them."""

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
    """Attention through the features of `1 + s + s^2 / 2`, as contractions over the heads, however few the tokens."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.scale = dim_head**-0.5
        inner = dim_head * heads
        self.to_q = nn.Sequential(nn.Linear(dim, inner, bias=False), Rearrange("b n (h d) -> b h n d", h=heads))
        self.to_kv = nn.Sequential(
            nn.Linear(dim, 2 * inner, bias=False), Rearrange("b n (kv h d) -> kv b h n d", kv=2, h=heads)
        )
        self.to_out = nn.Sequential(nn.Linear(inner, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, N, C)` to the same shape."""
        q = expanded(self.to_q(x) * self.scale)
        k, v = self.to_kv(x)
        k = expanded(k)
        numerator = einsum("b h n f, b h f e -> b h n e", q, einsum("b h n f, b h n e -> b h f e", k, v))
        denominator = einsum("b h n f, b h f -> b h n", q, k.sum(dim=2))
        return self.to_out(rearrange(numerator / denominator[..., None], "b h n d -> b n (h d)"))


def expanded(x: Tensor) -> Tensor:
    """Map `(..., D)` to the features `(..., 1 + D + D^2)` whose inner products are `1 + s + s^2 / 2`."""
    squares = einsum("... i, ... j -> ... i j", x, x) * 0.5**0.5
    return torch.cat([torch.ones_like(x[..., :1]), x, rearrange(squares, "... i j -> ... (i j)")], dim=-1)


class SpaceAttention(nn.Module):
    """Norm and attention among the positions of each image."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, axis=-1)
        self.attn = LinearAttention(dim, dim_head, heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to the same shape."""
        tokens = self.attn(self.norm(rearrange(x, "b c h w -> b (h w) c")))
        return rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])


class GEGLU(nn.Module):
    """Gate one half of the channels with the GELU of the other."""

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
            nn.Sequential(Rearrange("b c (h p) (w q) -> b (c p q) h w", p=2, q=2), nn.Conv2d(4 * chan_out, chan_out, 1))
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
    """3x3x3 convolution of a video that begins with its first frame twice more."""

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(chan_in, chan_out, 3, padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, chan_in, T, H, W)` to `(B, chan_out, T, H, W)`."""
        return self.conv(torch.cat([x[:, :, :1], x[:, :, :1], x], dim=2))


class DownSample(nn.Module):
    """Pool pairs of frames after the first, then halve each frame by a strided convolution."""

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
        return rearrange(self.conv(F.pad(frames, (0, 1, 0, 1))), "(b t) c h w -> b c t h w", b=batch)


class FirstFrameBlock(nn.Module):
    """Two causal convolutions beside a skip, both halved."""

    def __init__(self, chan_in: int, chan_out: int, blur: bool) -> None:
        super().__init__()
        self.downsample_res = DownSample(chan_in, chan_out)
        self.net = nn.Sequential(
            CausalConv(chan_in, chan_out), nn.LeakyReLU(0.1), CausalConv(chan_out, chan_out), nn.LeakyReLU(0.1)
        )
        self.maybe_blur = Blur() if blur else None
        self.downsample = DownSample(chan_out, chan_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, T, H, W)` to `(B, chan_out, 1 + ceil((T - 1) / 2), H / 2, W / 2)`."""
        skip = self.downsample_res(x)
        x = self.net(x)
        x = x if self.maybe_blur is None else self.maybe_blur(x)
        return (self.downsample(x) + skip) * 2**-0.5


class _Judge(nn.Module):
    """Blocks of video while time lasts, then blocks of images with attention, and one logit a sample."""

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
                attention = Residual(SpaceAttention(chan_out, linear_attn_dim_head, linear_attn_heads))
                block = ImageBlock(chan_in, chan_out, level < halvings, antialiased_downsample)
                blocks.append(nn.Sequential(block, nn.Sequential(attention, Residual(FeedForward(chan_out, ff_mult)))))
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


class TwinDiscriminator(_Judge):
    """Twin of `telecine.Discriminator`."""


class TwinDiscriminator3D(_Judge):
    """Twin of `telecine.Discriminator3D`."""

    video_block = VideoBlock


class TwinDiscriminator3DWithfirstframe(_Judge):
    """Twin of `telecine.Discriminator3DWithfirstframe`."""

    video_block = FirstFrameBlock


TWINS: dict[str, type[_Judge]] = {
    "Discriminator": TwinDiscriminator,
    "Discriminator3D": TwinDiscriminator3D,
    "Discriminator3DWithfirstframe": TwinDiscriminator3DWithfirstframe,
}


class TwinLoss(nn.Module):
    """Twin of `VideoAutoencoderLoss`: mean squared error, LPIPS, hinge losses with adaptive weight, gradient penalty.

    Random frames are drawn in the order of ours from PyTorch's default generator.

    Args:
        discr: The discriminator of single frames, or None.
        discr_3d: The discriminator of whole videos, or None.
        perceptual_weight: Weight of LPIPS; at 0 it is not built.
        perceptual_frames: How many random frames of each clip LPIPS looks at.
        adversarial_loss_weight: Weight of the adversarial terms.
        grad_penalty_loss_weight: Weight of the gradient penalty.
    """

    def __init__(
        self,
        *,
        discr: nn.Module | None = None,
        discr_3d: nn.Module | None = None,
        perceptual_weight: float = 1.0,
        perceptual_frames: int = 1,
        adversarial_loss_weight: float = 0.5,
        grad_penalty_loss_weight: float = 10.0,
    ) -> None:
        super().__init__()
        self.discr = discr
        self.discr_3d = discr_3d
        self.perceptual_weight = perceptual_weight
        self.perceptual_frames = perceptual_frames
        self.adversarial_loss_weight = adversarial_loss_weight
        self.grad_penalty_loss_weight = grad_penalty_loss_weight
        self.lpips = LPIPS("vgg") if perceptual_weight > 0 else None

    def autoencoder_step(
        self, real: Tensor, fake: Tensor, last_layer: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return the total, the terms and the adaptive weights by discriminator; without LPIPS these are 1."""
        terms = {"recon_loss": F.mse_loss(fake, real)}
        total = terms["recon_loss"]
        if self.lpips is not None:
            index = random_frames(real, self.perceptual_frames)
            perceptual = self.lpips(reconstruction=frames_of(fake, index), target=frames_of(real, index)).mean()
            terms["perceptual_loss"] = perceptual
            total = total + self.perceptual_weight * perceptual
        weights = {}
        for name, (judge, view) in self._views(fake).items():
            g = -judge(view).mean()
            weights[name] = torch.ones_like(g)
            if self.lpips is not None:
                weights[name] = adaptive_weight(terms["perceptual_loss"], g, last_layer)
            terms[f"gen_loss_{name}"] = g
            total = total + self.adversarial_loss_weight * weights[name] * g
        return total, terms, weights

    def discriminator_step(self, real: Tensor, fake: Tensor, *, penalty: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and the terms; `penalty` says whether the gradient penalty is one of them."""
        fake = fake.detach()
        terms, total = {}, torch.zeros((), device=real.device, dtype=real.dtype)
        for name, (judge, of_real, of_fake) in self._pairs(real, fake).items():
            of_real = of_real.detach().clone().requires_grad_(penalty)
            d_real, d_fake = judge(of_real), judge(of_fake)
            terms[f"discr_loss_{name}"] = F.relu(1 + d_fake).mean() + F.relu(1 - d_real).mean()
            total = total + terms[f"discr_loss_{name}"]
            if penalty:
                terms[f"grad_penalty_loss_{name}"] = gradient_penalty(of_real, d_real)
                total = total + self.grad_penalty_loss_weight * terms[f"grad_penalty_loss_{name}"]
        return total, terms

    def _views(self, video: Tensor) -> dict[str, tuple[nn.Module, Tensor]]:
        """Return each discriminator and what it sees of a video; a frame is drawn where one is needed."""
        views: dict[str, tuple[nn.Module, Tensor]] = {}
        if self.discr is not None:
            views["discr"] = self.discr, frames_of(video, random_frames(video, 1))
        if self.discr_3d is not None:
            views["discr_3d"] = self.discr_3d, video
        return views

    def _pairs(self, real: Tensor, fake: Tensor) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
        """Return each discriminator and what it sees of both videos: the same frames."""
        pairs: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
        if self.discr is not None:
            index = random_frames(real, 1)
            pairs["discr"] = self.discr, frames_of(real, index), frames_of(fake, index)
        if self.discr_3d is not None:
            pairs["discr_3d"] = self.discr_3d, real, fake
        return pairs


def random_frames(video: Tensor, num_frames: int) -> Tensor:
    """Draw the indices `(B, k)` of frames of each clip; all of them, undrawn, where there are no more."""
    batch, _, time = video.shape[:3]
    if num_frames >= time:
        return torch.arange(time, device=video.device).expand(batch, time)
    return torch.rand(batch, time, device=video.device).topk(num_frames, dim=1).indices


def frames_of(video: Tensor, index: Tensor) -> Tensor:
    """Return the frames `index` of each clip as one batch `(B * k, C, H, W)`."""
    frames = rearrange(video, "b c t h w -> b t c h w")
    clip = torch.arange(len(video), device=video.device)[:, None]
    return rearrange(frames[clip, index], "b k c h w -> (b k) c h w")


def adaptive_weight(perceptual: Tensor, g: Tensor, last_layer: Tensor) -> Tensor:
    """Return how much stronger the perceptual loss pulls at the last layer: one backward through each of both."""
    norms = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (perceptual, g)]
    return (norms[0] / norms[1].clamp(min=MIN_NORM)).clamp(max=MAX_WEIGHT).detach()


def gradient_penalty(real: Tensor, logits: Tensor) -> Tensor:
    """Return the mean squared distance from 1 of the norms of the logits' gradients."""
    ones = torch.ones_like(logits)
    (gradient,) = torch.autograd.grad(logits, real, grad_outputs=ones, create_graph=True, retain_graph=True)
    return (rearrange(gradient, "b ... -> b (...)").norm(dim=1) - 1).square().mean()
