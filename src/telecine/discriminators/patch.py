"""PatchGAN: discriminators of strided convolutions alone, with one logit for each patch of a frame or a video.

The layout is that of the 70 x 70 discriminator of Isola et al. (arXiv:1611.07004, section 6.1.2), with two changes that
let any size work: the layers without a stride have kernel 3, not 4, so that no map shrinks to nothing, and the
normalisation is of groups (Wu & He, arXiv:1803.08494), not of batches, so that samples do not see each other. In three
dimensions each kernel spans 3 frames as well.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal, TypeAlias, get_args

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from telecine.discriminators.blocks import check_choice, check_input, check_positive
from telecine.discriminators.convolution import padded_conv3d
from telecine.discriminators.output import DiscriminatorOutput, Sees
from telecine.discriminators.recompute import Recomputing
from telecine.precision import autocast_off
from telecine.shapes import argument_error, describe

Norm: TypeAlias = Literal["group", "none", "spectral"]
NORMS: tuple[Norm, ...] = get_args(Norm)

# Fewer in a group, on a map of one position, and normalising them would leave hardly any gradient.
CHANNELS_PER_GROUP = 16


class _Conv2d(nn.Conv2d):
    """Convolution whose weight is taken outside autocast.

    A spectral norm is estimated by matrix-vector products whenever the weight is read; in float16 the gradient of the
    estimate, a sum over the whole weight, would overflow under a loss scale.
    """

    def forward(self, x: Tensor) -> Tensor:
        with autocast_off(x.device):
            weight = self.weight
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class _Conv3d(nn.Conv3d):
    """Convolution whose weight is taken outside autocast, as that of `_Conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        with autocast_off(x.device):
            weight = self.weight
        return padded_conv3d(x, self, weight)


class _PatchNetwork(Recomputing):
    """`num_layers` strided layers and one without a stride, each with its activation, then the map of logits."""

    sees: ClassVar[Sees]

    def __init__(
        self, *, dim: int, channels: int, num_layers: int, max_dim: int, norm: Norm, num_temporal_layers: int
    ) -> None:
        super().__init__()
        check_positive(dim=dim, channels=channels, num_layers=num_layers, max_dim=max_dim)
        check_choice(NORMS, norm=norm)
        self.channels = channels
        self.num_layers = num_layers
        self.norm = norm
        widths = [channels] + [min(dim * 2**level, max_dim) for level in range(num_layers + 1)]
        self.blocks = nn.Sequential()
        for level, (width_in, width_out) in enumerate(pairwise(widths)):
            space_stride = 2 if level < num_layers else 1
            time_stride = space_stride if level < num_temporal_layers else 1
            conv = self._conv(width_in, width_out, time_stride, space_stride)
            self.blocks.append(_layer(conv, norm, normalised=level > 0))
        self.to_logits = _bounded(self._conv(widths[-1], 1, 1, 1), norm)

    def _conv(self, width_in: int, width_out: int, time_stride: int, space_stride: int) -> nn.Conv2d | nn.Conv3d:
        kernel = 4 if space_stride == 2 else 3
        if self.sees == "frames":
            return _Conv2d(width_in, width_out, kernel, space_stride, padding=1)
        strides = (time_stride, space_stride, space_stride)
        return _Conv3d(width_in, width_out, (3, kernel, kernel), strides, padding=1)

    def enable_gradient_checkpointing(self) -> None:
        """Compute the inside of each layer again in the backward.

        Raises:
            ValueError: With `norm="spectral"`, whose power iteration would move on in the second forward.
        """
        if self.norm == "spectral":
            remedy = 'Take "group" or "none".'
            raise argument_error("norm", "one that a second forward leaves as it is", describe(self.norm), remedy)
        super().enable_gradient_checkpointing()

    def forward(self, x: Tensor) -> DiscriminatorOutput:
        """Map a batch in [-1, 1] to logits of patches and the output of each layer; larger means more real.

        Raises:
            ValueError: If the input is not a batch of what it was built for, or is smaller than `2**num_layers`.
        """
        check_input(x, ndim=4 if self.sees == "frames" else 5, channels=self.channels)
        _check_size(x, self.num_layers)
        features = []
        for block in self.blocks:
            x = self.run_block(block, x)
            features.append(x)
        return DiscriminatorOutput(self.to_logits(x).squeeze(1), tuple(features))


def _layer(conv: nn.Conv2d | nn.Conv3d, norm: Norm, normalised: bool) -> nn.Sequential:
    layer = nn.Sequential(_bounded(conv, norm))
    if norm == "group" and normalised:
        layer.append(nn.GroupNorm(_num_groups(conv.out_channels), conv.out_channels))
    # In place, as neither a convolution nor a group norm needs its own output for its gradients. What is handed out
    # is the activation's output, which the convolution behind it leaves as it is.
    return layer.append(nn.LeakyReLU(0.2, inplace=True))


def _bounded(conv: nn.Conv2d | nn.Conv3d, norm: Norm) -> nn.Module:
    return spectral_norm(conv) if norm == "spectral" else conv


def _num_groups(channels: int) -> int:
    """Return the most groups of equal size that have at least `CHANNELS_PER_GROUP` channels each, or one group."""
    most = max(channels // CHANNELS_PER_GROUP, 1)
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def _check_size(x: Tensor, num_layers: int) -> None:
    height, width = x.shape[-2:]
    smallest = 2**num_layers
    if min(height, width) < smallest:
        contract = f"at least {smallest} pixels high and wide with `num_layers={num_layers}`"
        remedy = "Take fewer layers, or up-sample small pictures first."
        raise argument_error("x", contract, f"{height} x {width}", remedy)


class PatchDiscriminator(_PatchNetwork):
    """Image discriminator that judges overlapping patches, of 54 x 54 pixels by default (arXiv:1611.07004).

    Any batch works, and any height and width of at least `2**num_layers`; every pixel counts and samples do not see
    each other. Logits are maps `(B, h, w)` with `h = H >> num_layers` and `w = W >> num_layers`.

    Args:
        dim: Channels of the first layer; they double at each further one.
        channels: Channels of the images.
        num_layers: Number of strided layers, each of which halves height and width. One without a stride follows.
        max_dim: Most channels of any layer.
        norm: "group" normalises groups of at least 16 channels over all positions of a sample, in every layer but the
            first; "spectral" bounds each convolution instead (Miyato et al., arXiv:1802.05957); "none" does neither.
            With "spectral" each forward pass in training mode, whoever runs it, takes one step of the power
            iteration, so that a second pass differs a little from the first; in evaluation mode nothing moves.

    Raises:
        ValueError: If a count is not a positive int, or `norm` is unknown.
    """

    sees = "frames"

    def __init__(
        self, *, dim: int = 64, channels: int = 3, num_layers: int = 3, max_dim: int = 512, norm: Norm = "group"
    ) -> None:
        super().__init__(
            dim=dim, channels=channels, num_layers=num_layers, max_dim=max_dim, norm=norm, num_temporal_layers=0
        )


class PatchDiscriminator3D(_PatchNetwork):
    """Video discriminator that judges overlapping patches of space and time; see `PatchDiscriminator`.

    Any batch and number of frames work, and any height and width of at least `2**num_layers`; every pixel and frame
    counts and clips do not see each other. Logits are maps `(B, t, h, w)`: `h` and `w` as in two dimensions,
    `t = ceil(T / 2**min(num_temporal_layers, num_layers))`.

    Args:
        dim: Channels of the first layer; they double at each further one.
        channels: Channels of the video.
        num_layers: Number of strided layers, each of which halves height and width. One without a stride follows.
        num_temporal_layers: How many of them, from the first on, halve time as well: all where there are no more, none
            if it is 0.
        max_dim: Most channels of any layer.
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
        if num_temporal_layers != 0:
            check_positive(num_temporal_layers=num_temporal_layers)
        super().__init__(
            dim=dim,
            channels=channels,
            num_layers=num_layers,
            max_dim=max_dim,
            norm=norm,
            num_temporal_layers=num_temporal_layers,
        )
