"""A video discriminator that sees a video through a frozen network of images, and has a head for each of its layers."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from telecine.base.checks import check_count
from telecine.base.shapes import Video
from telecine.discriminators.base import DiscriminatorOutput, GradientCheckpointing, Sees, check_batch
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
    without a penalty; that of the frozen network is not bounded.

    Any batch and number of frames work, and any height and width that the network accepts, 16 and more for "vgg".
    Clips are independent, and the logits depend on every pixel. Logits are `(B, heads, T, h, w)` with the height and
    width of the smallest map, to which those of larger maps are averaged: each head has the same weight. Only the heads
    are parameters and in the state dict. Gradient checkpointing recomputes the frozen network only.

    Args:
        dim: Channels inside a head.
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
        dim: int = 64,
        net: str | nn.Module = "vgg",
        weights: WeightsSource = None,
        layers: Sequence[str] = (),
        size: int | None = None,
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        self.backbone = FeatureMaps(build_maps(net, weights, layers) if isinstance(net, str) else net, size)
        with torch.no_grad():
            maps = self.backbone(torch.zeros(1, 3, *[size or PROBED_SIZE] * 2))
        self.heads = nn.ModuleList(_Head(each.shape[1], dim) for each in maps)

    def forward(self, x: Video) -> DiscriminatorOutput:
        """Map videos `(B, C, T, H, W)` in [-1, 1], seen as RGB, to logits of patches and the activations of the heads.

        Larger logits mean more real.

        Raises:
            ValueError: If the input is not such a video, or too small.
        """
        x = as_rgb(x)
        check_batch(x, self.sees, channels=3)
        maps = self._normalised_maps(x)
        convs = [conv for head in self.heads for conv in head.children()]
        of_heads = zip(*[iter(conv_parameters(convs, x))] * 3, strict=True)
        outputs = [head(each, *known) for head, each, known in zip(self.heads, maps, of_heads, strict=True)]
        height, width = (min(logits.shape[dim] for logits, _ in outputs) for dim in (-2, -1))
        size = (x.shape[2], height, width)
        logits = [y if y.shape[2:] == size else F.adaptive_avg_pool3d(y, size) for y, _ in outputs]
        return DiscriminatorOutput(torch.cat(logits, 1), tuple(each for _, features in outputs for each in features))

    def _normalised_maps(self, video: Video) -> list[Tensor]:
        """Return `(B, F, T, h, w)` for each layer."""
        frames = video.transpose(1, 2).flatten(0, 1)
        # With gradient checkpointing, the activations of `len(video)` frames are in memory.
        chunk_size = len(video) if self.gradient_checkpointing else len(frames)
        chunks = [self.run_block(self.backbone, chunk) for chunk in frames.split(chunk_size)]
        maps = [torch.cat(chunk) for chunk in zip(*chunks, strict=True)] if len(chunks) > 1 else chunks[0]
        clips = (each.to(video.dtype).unflatten(0, (len(video), -1)).transpose(1, 2) for each in maps)
        return [F.group_norm(clip, 1) for clip in clips]


class _Head(nn.Module):
    """Three convolutions of a feature map to logits, each with spectral normalisation; the last two over 3 frames."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.conv_in = spectral_norm(nn.Conv3d(channels, dim, 1))
        self.conv = spectral_norm(nn.Conv3d(dim, dim, 3, padding=1))
        self.to_logits = spectral_norm(nn.Conv3d(dim, 1, 3, padding=1))

    def forward(self, x: Tensor, *parameters: ConvParameters) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits `(B, 1, T, h, w)` and two activations."""
        of_input, of_hidden, of_logits = parameters
        first = F.leaky_relu(convolved(x, self.conv_in, of_input), 0.2)
        second = F.leaky_relu(convolved(first, self.conv, of_hidden), 0.2)
        return convolved(second, self.to_logits, of_logits), (first, second)
