"""PatchGAN: discriminators of strided convolutions only, with one logit for each patch of a frame or a video.

The layout is that of the 70 x 70 discriminator of Isola et al. (arXiv:1611.07004, section 6.1.2) with two changes. The
layers without a stride have kernel 3, not 4, so that any size works, and group normalisation (Wu & He,
arXiv:1803.08494) replaces batch normalisation, so that samples are independent. In three dimensions each kernel also
spans 3 frames.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from telecine.base.checks import argument_error, check_choice, check_count
from telecine.base.precision import autocast_dtype, autocast_off, cast_together
from telecine.discriminators.blocks import padded_conv3d
from telecine.discriminators.gradient_checkpointing import GradientCheckpointing
from telecine.discriminators.output import DiscriminatorOutput, Sees, check_batch
from telecine.discriminators.spectral_norm import normalised_weights

Norm: TypeAlias = Literal["group", "none", "spectral"]

# Normalising fewer channels per group, on a map of one position, leaves almost no gradient.
_CHANNELS_PER_GROUP = 16

ConvParameters: TypeAlias = tuple[Tensor, Tensor | None]
"""Weight and bias."""


def conv_parameters(
    network: nn.Module, convs: Sequence[Any], x: Tensor
) -> dict[nn.Module, ConvParameters]:
    """Return weight and bias of each convolution in the dtype that autocast uses for `x`, computed all at once.

    The network calls `convolved` with them, and none of the convolutions themselves. In compiled code each convolution
    computes its own, with a step of the power iteration in each pass.

    Args:
        network: The network, whose passes share spectral norms inside `shared_spectral_norms`.
        convs: All its convolutions. Either all or none have spectral normalisation.
        x: A tensor on the network's device.
    """
    is_compiled = torch.compiler.is_dynamo_compiling()
    dtype = autocast_dtype(x.device)
    # The gradient of a spectral norm sums over the whole weight: it would overflow in float16.
    with autocast_off(x.device):
        if is_parametrized(convs[0], "weight") and not is_compiled:
            weights = list(normalised_weights(network, convs))
        else:
            weights = [conv.weight for conv in convs]
        biases = [conv.bias for conv in convs]
        if dtype is not None and weights[0].dtype == torch.float32 and not is_compiled:
            cast = list(cast_together(weights + biases, dtype))
            weights = cast[: len(convs)]
            biases = cast[len(convs) :]
    return dict(zip(convs, zip(weights, biases, strict=True), strict=True))


class _PatchNetwork(GradientCheckpointing):
    """`num_layers` strided layers and one without a stride, each with its activation, then the map of logits."""

    sees: ClassVar[Sees]

    def __init__(
        self,
        *,
        base_channels: int = 64,
        channels: int = 3,
        num_layers: int = 3,
        num_temporal_layers: int = 2,
        max_dim: int = 512,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        check_count("base_channels", base_channels)
        check_count("channels", channels)
        check_count("num_layers", num_layers)
        check_count("max_dim", max_dim)
        check_count("num_temporal_layers", num_temporal_layers, at_least=0)
        check_choice("norm", norm, get_args(Norm))
        self.channels = channels
        self.num_layers = num_layers
        self.norm = norm
        self.blocks = nn.Sequential()
        width_in = channels
        for index in range(num_layers + 1):
            width_out = min(base_channels * 2**index, max_dim)
            space_stride = 2 if index < num_layers else 1
            time_stride = space_stride if index < num_temporal_layers else 1
            layer = _Layer(self._conv(width_in, width_out, time_stride, space_stride))
            if norm == "group" and index > 0:
                layer.append(nn.GroupNorm(_num_groups(width_out), width_out))
            # In place: neither a convolution nor a group norm needs its output for its gradients.
            layer.append(nn.LeakyReLU(0.2, inplace=True))
            self.blocks.append(layer)
            width_in = width_out
        self.to_logits = self._conv(width_in, 1, time_stride=1, space_stride=1)

    def _conv(
        self, width_in: int, width_out: int, time_stride: int, space_stride: int
    ) -> nn.Module:
        kernel = 4 if space_stride == 2 else 3
        if self.sees == "frames":
            conv: nn.Module = nn.Conv2d(width_in, width_out, kernel, space_stride, padding=1)
        else:
            strides = (time_stride, space_stride, space_stride)
            conv = nn.Conv3d(width_in, width_out, (3, kernel, kernel), strides, padding=1)
        return spectral_norm(conv) if self.norm == "spectral" else conv

    def forward(self, x: Tensor) -> DiscriminatorOutput:
        """Map a batch in [-1, 1] to logits of patches and the output of each layer; larger means more real.

        Raises:
            ValueError: If the input has another number of axes or channels, or is smaller than `2**num_layers`.
        """
        check_batch(x, self.sees, self.channels)
        smallest = 2**self.num_layers
        if min(x.shape[-2:]) < smallest:
            contract = (
                f"at least {smallest} pixels high and wide with `num_layers={self.num_layers}`"
            )
            height, width = x.shape[-2:]
            remedy = "Use fewer layers, or up-sample small images first."
            raise argument_error("x", contract, f"{height} x {width}", remedy)
        blocks = cast(Sequence[_Layer], self.blocks)
        convs = [block.conv for block in blocks]
        parameters = conv_parameters(self, [*convs, self.to_logits], x)
        features = []
        for block in blocks:
            x = self.run_block(block, x, parameters[block.conv])
            features.append(x)
        logits = convolved(x, self.to_logits, parameters[self.to_logits])
        return DiscriminatorOutput(logits.squeeze(1), tuple(features))


class _Layer(nn.Sequential):
    """A convolution, which is not called itself since its parameters are arguments, and the layers that follow it."""

    @property
    def conv(self) -> nn.Module:
        """The convolution."""
        return self[0]

    def forward(self, x: Tensor, parameters: ConvParameters) -> Tensor:  # type: ignore[override]
        conv, *others = self
        x = convolved(x, conv, parameters)
        for layer in others:
            x = layer(x)
        return x


def convolved(x: Tensor, conv: Any, parameters: ConvParameters) -> Tensor:
    """Return `conv(x)` with other parameters.

    Args:
        x: Images `(B, C, H, W)` or videos `(B, C, T, H, W)`.
        conv: The `nn.Conv2d` or `nn.Conv3d`, with zero padding.
        parameters: Weight and bias, from `conv_parameters`.
    """
    weight, bias = parameters
    if x.ndim == 5:
        return padded_conv3d(x, conv, weight, bias)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding)


def _num_groups(channels: int) -> int:
    """Return the largest number of equal groups with at least `_CHANNELS_PER_GROUP` channels each, or 1."""
    groups = max(channels // _CHANNELS_PER_GROUP, 1)
    while channels % groups != 0:
        groups -= 1
    return groups


class PatchDiscriminator(_PatchNetwork):
    """Image discriminator with one logit per overlapping patch, of 54 x 54 pixels by default (arXiv:1611.07004).

    Any batch works, and any height and width of at least `2**num_layers`. Samples are independent, and the logits
    depend on every pixel. Logits are maps `(B, h, w)` with `h = H >> num_layers` and `w = W >> num_layers`.

    Args:
        base_channels: Channels of the first layer; they double at each further layer.
        channels: Channels of the images.
        num_layers: Number of strided layers, each of which halves height and width. One without a stride follows.
        max_dim: Maximum of channels of any layer.
        norm: "group" normalises groups of at least 16 channels over all positions of a sample, in every layer except
            the first; "spectral" normalises the weight of each convolution instead (Miyato et al., arXiv:1802.05957);
            "none" does neither. With "spectral" each forward in training mode takes a step of the power iteration,
            but only the first inside `shared_spectral_norms`, as in the objective.

    Raises:
        ValueError: If a count is not a positive int, or `norm` is unknown.
    """

    sees = "frames"

    def __init__(
        self,
        *,
        base_channels: int = 64,
        channels: int = 3,
        num_layers: int = 3,
        max_dim: int = 512,
        norm: Norm = "group",
    ) -> None:
        super().__init__(
            base_channels=base_channels,
            channels=channels,
            num_layers=num_layers,
            num_temporal_layers=0,
            max_dim=max_dim,
            norm=norm,
        )


class PatchDiscriminator3D(_PatchNetwork):
    """Video discriminator with one logit per overlapping patch of space and time; see `PatchDiscriminator`.

    Any number of frames works. Clips are independent, and the logits depend on every pixel of every frame. Logits are
    maps `(B, t, h, w)`: `h` and `w` as in two dimensions, `t = ceil(T / 2**min(num_temporal_layers, num_layers))`.

    Args:
        base_channels, channels, num_layers, max_dim: See `PatchDiscriminator`.
        num_temporal_layers: Number of strided layers, counted from the first, that also halve time.
        norm: As for `PatchDiscriminator`; groups are normalised over all positions of all frames of a clip.

    Raises:
        ValueError: If a count is not a positive int (`num_temporal_layers` may be 0), or `norm` is unknown.
    """

    sees = "video"
