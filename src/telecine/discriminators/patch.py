"""PatchGAN: discriminators of strided convolutions only, with one logit for each patch of a frame or a video.

The layout is that of the 70 x 70 discriminator of Isola et al. (arXiv:1611.07004, section 6.1.2) with two changes. The
layers without a stride have kernel 3, not 4, so that any size works, and group normalisation (Wu & He,
arXiv:1803.08494) replaces batch normalisation, so that samples are independent. In three dimensions each kernel also
spans 3 frames.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal, TypeAlias, get_args

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from telecine.base.checks import argument_error, check_choice, check_count, check_counts, describe
from telecine.base.precision import autocast_off
from telecine.discriminators.base import DiscriminatorOutput, GradientCheckpointing, Sees, check_batch
from telecine.discriminators.blocks import padded_conv3d

Norm: TypeAlias = Literal["group", "none", "spectral"]

# Normalising fewer channels per group, on a map of one position, leaves almost no gradient.
CHANNELS_PER_GROUP = 16


class _FullPrecisionWeightConv2d(nn.Conv2d):
    """Convolution whose weight, and its parametrization such as `spectral_norm`, is computed outside autocast.

    The spectral norm is estimated by matrix-vector products. In float16 the gradient of the estimate, a sum over the
    whole weight, would overflow under a loss scale.
    """

    def forward(self, x: Tensor) -> Tensor:
        with autocast_off(x.device):
            weight = self.weight
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class FullPrecisionWeightConv3d(nn.Conv3d):
    """As `_FullPrecisionWeightConv2d`, for videos."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, T, H, W)` as `nn.Conv3d` does."""
        with autocast_off(x.device):
            weight = self.weight
        return padded_conv3d(x, self, weight)


class _PatchNetwork(GradientCheckpointing):
    """`num_layers` strided layers and one without a stride, each with its activation, then the map of logits."""

    sees: ClassVar[Sees]

    def __init__(
        self, dim: int, channels: int, num_layers: int, max_dim: int, norm: Norm, *, num_temporal_layers: int
    ) -> None:
        super().__init__()
        check_counts(dim=dim, channels=channels, num_layers=num_layers, max_dim=max_dim)
        check_choice("norm", norm, get_args(Norm))
        self.channels, self.num_layers, self.norm = channels, num_layers, norm
        widths = [channels] + [min(dim * 2**level, max_dim) for level in range(num_layers + 1)]
        self.blocks = nn.Sequential()
        for level, (width_in, width_out) in enumerate(pairwise(widths)):
            space_stride = 2 if level < num_layers else 1
            time_stride = space_stride if level < num_temporal_layers else 1
            layer = nn.Sequential(self._conv(width_in, width_out, time_stride, space_stride))
            if norm == "group" and level > 0:
                layer.append(nn.GroupNorm(_num_groups(width_out), width_out))
            # In place: neither a convolution nor a group norm needs its output for its gradients.
            self.blocks.append(layer.append(nn.LeakyReLU(0.2, inplace=True)))
        self.to_logits = self._conv(widths[-1], 1, 1, 1)

    def _conv(self, width_in: int, width_out: int, time_stride: int, space_stride: int) -> nn.Module:
        kernel = 4 if space_stride == 2 else 3
        if self.sees == "frames":
            conv: nn.Module = _FullPrecisionWeightConv2d(width_in, width_out, kernel, space_stride, padding=1)
        else:
            strides = (time_stride, space_stride, space_stride)
            conv = FullPrecisionWeightConv3d(width_in, width_out, (3, kernel, kernel), strides, padding=1)
        return spectral_norm(conv) if self.norm == "spectral" else conv

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations inside each layer in the backward; raise a `ValueError` for `norm="spectral"`."""
        if self.norm == "spectral":  # the second forward would take another step of the power iteration
            remedy = 'Use "group" or "none".'
            raise argument_error("norm", "without a state that each forward changes", describe(self.norm), remedy)
        super().enable_gradient_checkpointing()

    def forward(self, x: Tensor) -> DiscriminatorOutput:
        """Map a batch in [-1, 1] to logits of patches and the output of each layer; larger means more real.

        Raises:
            ValueError: If the input has another number of axes or channels, or is smaller than `2**num_layers`.
        """
        check_batch(x, self.sees, self.channels)
        smallest = 2**self.num_layers
        if min(x.shape[-2:]) < smallest:
            contract = f"at least {smallest} pixels high and wide with `num_layers={self.num_layers}`"
            got, remedy = "{} x {}".format(*x.shape[-2:]), "Use fewer layers, or up-sample small images first."
            raise argument_error("x", contract, got, remedy)
        features = []
        for block in self.blocks:
            x = self.run_block(block, x)
            features.append(x)
        return DiscriminatorOutput(self.to_logits(x).squeeze(1), tuple(features))


def _num_groups(channels: int) -> int:
    """Return the largest number of equal groups with at least `CHANNELS_PER_GROUP` channels each, or 1."""
    return next(groups for groups in range(max(channels // CHANNELS_PER_GROUP, 1), 0, -1) if channels % groups == 0)


class PatchDiscriminator(_PatchNetwork):
    """Image discriminator with one logit per overlapping patch, of 54 x 54 pixels by default (arXiv:1611.07004).

    Any batch works, and any height and width of at least `2**num_layers`. Samples are independent, and the logits
    depend on every pixel. Logits are maps `(B, h, w)` with `h = H >> num_layers` and `w = W >> num_layers`.

    Args:
        dim: Channels of the first layer; they double at each further layer.
        channels: Channels of the images.
        num_layers: Number of strided layers, each of which halves height and width. One without a stride follows.
        max_dim: Maximum of channels of any layer.
        norm: "group" normalises groups of at least 16 channels over all positions of a sample, in every layer except
            the first; "spectral" normalises the weight of each convolution instead (Miyato et al., arXiv:1802.05957);
            "none" does neither. With "spectral" each forward in training mode takes a step of the power iteration.

    Raises:
        ValueError: If a count is not a positive int, or `norm` is unknown.
    """

    sees = "frames"

    def __init__(
        self, *, dim: int = 64, channels: int = 3, num_layers: int = 3, max_dim: int = 512, norm: Norm = "group"
    ) -> None:
        super().__init__(dim, channels, num_layers, max_dim, norm, num_temporal_layers=0)


class PatchDiscriminator3D(_PatchNetwork):
    """Video discriminator with one logit per overlapping patch of space and time; see `PatchDiscriminator`.

    Any number of frames works. Clips are independent, and the logits depend on every pixel of every frame. Logits are
    maps `(B, t, h, w)`: `h` and `w` as in two dimensions, `t = ceil(T / 2**min(num_temporal_layers, num_layers))`.

    Args:
        dim, channels, num_layers, max_dim: See `PatchDiscriminator`.
        num_temporal_layers: Number of strided layers, counted from the first, that also halve time.
        norm: As for `PatchDiscriminator`; groups are normalised over all positions of all frames of a clip.

    Raises:
        ValueError: If a count is not a positive int (`num_temporal_layers` may be 0), or `norm` is unknown.
    """

    sees = "video"

    def __init__(
        self,
        *,
        dim: int = 64,
        channels: int = 3,
        num_layers: int = 3,
        num_temporal_layers: int = 2,
        max_dim: int = 512,
        norm: Norm = "group",
    ) -> None:
        check_count("num_temporal_layers", num_temporal_layers, at_least=0)
        super().__init__(dim, channels, num_layers, max_dim, norm, num_temporal_layers=num_temporal_layers)
