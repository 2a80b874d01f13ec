"""The attention of the residual discriminators: linear in the positions, with a norm and a feed-forward layer.

It replaces `exp(s)` by its second-order Taylor expansion `1 + s + s^2 / 2`, which is always positive and equals an
inner product of features of the query and of the key, so its cost can grow linearly with the number of positions
(Taylor-expanded softmax attention: Keles et al., arXiv:2209.04881; Arora et al., arXiv:2402.18668).
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.precision import at_least_float32, autocast_off
from telecine.ops.unit_vectors import inverse_norms

# Of the norm of a position's channels, which may all be zero.
_EPSILON = 1e-6


class RMSNorm(nn.Module):
    """Scale each position's channels to a root mean square of 1, times a learned `gamma` (arXiv:1910.07467).

    It is made of PyTorch's operators, because a penalty differentiates it twice; `ops/scaled_normalize.py` is
    faster, once.

    Args:
        dim: Number of channels.
        channel_first: The channels are axis 1, as in `(B, C, H, W)`; otherwise the last axis.
    """

    def __init__(self, dim: int, channel_first: bool = False) -> None:
        super().__init__()
        self.axis = 1 if channel_first else -1
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1) if channel_first else torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape and dtype of `x`, computed in at least float32."""
        wide = at_least_float32(x)
        inverse = inverse_norms(wide, _EPSILON, dim=self.axis)
        return (wide * inverse * (self.scale * self.gamma)).to(x.dtype)


class _Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


class TaylorAttention(nn.Module):
    """Multi-head attention with the kernel `1 + s + s^2 / 2` on the scaled scores `s = q k / sqrt(dim_head)`.

    Args:
        dim: Channels of the tokens.
        dim_head: Channels of each head.
        heads: Number of heads.
    """

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        inner = dim_head * heads
        self.heads = heads
        self.scale = dim_head**-0.5
        # `Sequential`s of one layer give the parameters the names of published checkpoints.
        self.to_q = nn.Sequential(nn.Linear(dim, inner, bias=False))
        self.to_kv = nn.Sequential(nn.Linear(dim, 2 * inner, bias=False))
        self.to_out = nn.Sequential(nn.Linear(inner, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, N, dim)` to the same shape."""
        q = rearrange(self.to_q(x) * self.scale, "b n (h d) -> (b h) n d", h=self.heads)
        k, v = rearrange(self.to_kv(x), "b n (kv h d) -> kv (b h) n d", kv=2, h=self.heads)
        num_tokens, dim_head = q.shape[1:]
        num_features = 1 + dim_head + dim_head**2
        attend = quadratic_attention if num_tokens <= num_features else linear_attention
        # Not under autocast: the kernel grows with the square of the scores and exceeds float16's range.
        with autocast_off(x.device):
            out = attend(at_least_float32(q), at_least_float32(k), at_least_float32(v))
        return self.to_out(rearrange(out.to(v.dtype), "(b h) n d -> b n (h d)", h=self.heads))


def quadratic_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention by the explicit N x N kernel, which is cheaper for fewer tokens than features.

    Args:
        q: Scaled queries `(B, N, D)`.
        k: Keys `(B, N, D)`.
        v: Values `(B, N, E)`.
    """
    scores = q @ k.transpose(1, 2)
    kernel = 1 + scores + scores.square() / 2
    return (kernel @ v) / kernel.sum(-1, keepdim=True)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention by the features of the expansion, with matrix products whose cost is linear in the tokens.

    Args:
        q: Scaled queries `(B, N, D)`.
        k: Keys `(B, N, D)`.
        v: Values `(B, N, E)`.
    """
    q = _taylor_features(q)
    k = _taylor_features(k)
    return (q @ (k.transpose(1, 2) @ v)) / (q @ k.sum(1).unsqueeze(-1))


def _taylor_features(x: Tensor) -> Tensor:
    """Map `(B, N, D)` to features `(B, N, 1 + D + D^2)` whose inner products are `1 + s + s^2 / 2`."""
    pairs = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) * 0.5**0.5
    return torch.cat([torch.ones_like(x[..., :1]), x, pairs], dim=-1)


class LinearSpaceAttention(nn.Module):
    """Attention over the positions of each image (or frame), after an RMS norm over the channels."""

    def __init__(self, *, dim: int, dim_head: int = 8, heads: int = 8) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.attn = TaylorAttention(dim, dim_head, heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` or `(B, C, T, H, W)` to the same shape; frames are independent."""
        is_video = x.ndim == 5
        frames = rearrange(x, "b c t h w -> (b t) c h w") if is_video else x
        tokens = self.attn(self.norm(rearrange(frames, "b c h w -> b (h w) c")))
        maps = rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[-2])
        if is_video:
            maps = rearrange(maps, "(b t) c h w -> b c t h w", b=x.shape[0])
        # Contiguous: the rearranged maps are channels-last, and so would be the following convolutions, whose double
        # backward then corrupts the heap on the CPU (PyTorch 2.13 with oneDNN, several threads, odd batches).
        return maps.contiguous()


class _GEGLU(nn.Module):
    """Multiply the first half of the channels by the GELU of the second (Shazeer, arXiv:2002.05202)."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=1)
        return F.gelu(gate) * value


class FeedForward(nn.Module):
    """RMS norm, 1x1 convolution, GEGLU, 1x1 convolution; `dim` channels, inside `int(dim * mult * 2 / 3)`."""

    def __init__(self, dim: int, *, mult: int = 4) -> None:
        super().__init__()
        inner = int(dim * mult * 2 / 3)
        self.norm = RMSNorm(dim, channel_first=True)
        self.net = nn.Sequential(nn.Conv2d(dim, 2 * inner, 1), _GEGLU(), nn.Conv2d(inner, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to the same shape."""
        return self.net(self.norm(x))


def with_attention(
    block: nn.Module, dim: int, dim_head: int, heads: int, ff_mult: int
) -> nn.Sequential:
    """Append attention and a feed-forward layer, both residual, to a 2D block.

    Args:
        block: The block.
        dim: Channels of the block's output.
        dim_head: Channels of each head of the attention.
        heads: Number of heads.
        ff_mult: Width of the feed-forward layer, see `FeedForward`.
    """
    attention = _Residual(LinearSpaceAttention(dim=dim, dim_head=dim_head, heads=heads))
    return nn.Sequential(block, nn.Sequential(attention, _Residual(FeedForward(dim, mult=ff_mult))))
