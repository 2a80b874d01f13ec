"""A video discriminator that sees a video through a frozen network of images, and has a head for each of its layers."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from telecine.base.checks import check_count
from telecine.base.shapes import Video
from telecine.discriminators.gradient_checkpointing import GradientCheckpointing
from telecine.discriminators.output import DiscriminatorOutput, Sees, check_batch
from telecine.discriminators.patch import ConvParameters, conv_parameters, convolved
from telecine.losses.perceptual import as_rgb
from telecine.losses.perceptual.feature_maps import PROBED_SIZE, FeatureMaps, build_maps
from telecine.losses.perceptual.weights import WeightsSource


class FeatureDiscriminator(GradientCheckpointing):
    """Discriminator of the features of a frozen network, with several heads: a projected GAN for videos.

    Projected GANs (Sauer et al., arXiv:2111.01007) train heads on the layers of a frozen network; with DINO they are
    the discriminators of StyleGAN-T (arXiv:2301.09515) and ADD (arXiv:2311.17042). Here the network sees each frame by
    itself, and two convolutions over 3 frames in each head see flicker. The features of a layer are normalised by their
    mean and variance over a clip. The heads have spectral normalisation (arXiv:1802.05957), which bounds their slope
    without a penalty; the slope of the frozen network is not bounded.

    Any batch and number of frames work, and any height and width that the network accepts, 16 and more for "vgg".
    Clips are independent, and the logits depend on every pixel. Logits are `(B, heads, T, h, w)` with the height and
    width of the smallest map, to which those of larger maps are averaged: each head has the same weight. Only the heads
    are parameters and in the state dict. Gradient checkpointing recomputes the frozen network only.

    Args:
        base_channels: Channels inside a head.
        net: "vgg" or "alex" (the weights of LPIPS); "torchvision/NAME" or "timm/NAME", which need `weights` and
            `layers`; or a module as `FeatureMaps` needs it.
        weights: The path of a state dict of `net`; "vgg" and "alex" have their own.
        layers: The layers of `net` that have a head, e.g. `("layer1", "layer2")`; four stages of "vgg", all of "alex".
        size: Height and width to which frames are resized for the network, e.g. 224 for a transformer.

    Raises:
        ValueError: An argument is invalid, or the weights do not fit.
        FileNotFoundError: There are no such weights.
    """

    sees: ClassVar[Sees] = "video"

    def __init__(
        self,
        *,
        base_channels: int = 64,
        net: str | nn.Module = "vgg",
        weights: WeightsSource = None,
        layers: Sequence[str] = (),
        size: int | None = None,
    ) -> None:
        super().__init__()
        check_count("base_channels", base_channels)
        if isinstance(net, str):
            net = build_maps(net, weights, layers)
        self.backbone = FeatureMaps(net, size)
        side = size or PROBED_SIZE
        with torch.no_grad():
            maps = self.backbone(torch.zeros(1, 3, side, side))
        self.heads = nn.ModuleList(
            _Head(feature_map.shape[1], base_channels) for feature_map in maps
        )

    def forward(self, x: Video) -> DiscriminatorOutput:
        """Map videos `(B, C, T, H, W)` in [-1, 1], seen as RGB, to logits of patches and the activations of the heads.

        Larger logits mean more real.

        Raises:
            ValueError: If the input is not such a video, or too small.
        """
        x = as_rgb(x)
        check_batch(x, self.sees, channels=3)
        maps = self._normalised_maps(x)
        heads = cast(Sequence[_Head], self.heads)
        convs = [conv for head in heads for conv in head.convs()]
        parameters = conv_parameters(self, convs, x)
        all_logits = []
        features: list[Tensor] = []
        for head, feature_map in zip(heads, maps, strict=True):
            logits, activations = head(feature_map, parameters)
            all_logits.append(logits)
            features.extend(activations)
        smallest_height = min(logits.shape[-2] for logits in all_logits)
        smallest_width = min(logits.shape[-1] for logits in all_logits)
        size = (x.shape[2], smallest_height, smallest_width)
        pooled = []
        for logits in all_logits:
            if logits.shape[2:] != size:
                logits = F.adaptive_avg_pool3d(logits, size)
            pooled.append(logits)
        return DiscriminatorOutput(torch.cat(pooled, 1), tuple(features))

    def _normalised_maps(self, video: Video) -> list[Tensor]:
        """Return `(B, F, T, h, w)` for each layer.

        With a penalty, PyTorch's own operators differentiate the frozen network twice; the heads have `convolve`.
        """
        frames = video.transpose(1, 2).flatten(0, 1)
        # With gradient checkpointing, the activations of `len(video)` frames are in memory.
        chunk_size = len(video) if self.gradient_checkpointing else len(frames)
        chunks = [self.run_block(self.backbone, chunk) for chunk in frames.split(chunk_size)]
        maps = chunks[0]
        if len(chunks) > 1:
            maps = [torch.cat(layer_maps) for layer_maps in zip(*chunks, strict=True)]
        normalised = []
        for feature_map in maps:
            clips = feature_map.to(video.dtype).unflatten(0, (len(video), -1)).transpose(1, 2)
            normalised.append(F.group_norm(clips, 1))
        return normalised


class _Head(nn.Module):
    """Three convolutions of a feature map to logits, each with spectral normalisation; the last two over 3 frames."""

    def __init__(self, channels: int, base_channels: int) -> None:
        super().__init__()
        self.conv_in = spectral_norm(nn.Conv3d(channels, base_channels, 1))
        self.conv = spectral_norm(nn.Conv3d(base_channels, base_channels, 3, padding=1))
        self.to_logits = spectral_norm(nn.Conv3d(base_channels, 1, 3, padding=1))

    def convs(self) -> list[nn.Module]:
        """Return the convolutions, which are not called themselves."""
        return [self.conv_in, self.conv, self.to_logits]

    def forward(
        self, x: Tensor, parameters: Mapping[nn.Module, ConvParameters]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits `(B, 1, T, h, w)` and two activations.

        Args:
            x: A feature map `(B, F, T, h, w)`.
            parameters: Weight and bias of each convolution, from `conv_parameters`.
        """
        x1 = F.leaky_relu(convolved(x, self.conv_in, parameters[self.conv_in]), 0.2)
        x2 = F.leaky_relu(convolved(x1, self.conv, parameters[self.conv]), 0.2)
        return convolved(x2, self.to_logits, parameters[self.to_logits]), (x1, x2)
