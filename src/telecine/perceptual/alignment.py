"""Alignment of the latent with the features of a frozen network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error, check_count, check_fraction, describe
from telecine.base.imports import choose
from telecine.base.precision import at_least_float32, autocast_off
from telecine.base.randomness import Generators, rand
from telecine.base.shapes import Frames, Scalar, Video, check_video
from telecine.perceptual.backbones import BACKBONES
from telecine.perceptual.feature_maps import PROBED_SIZE, BackboneMaps, FeatureMaps
from telecine.perceptual.frames import as_rgb, pick_frames
from telecine.perceptual.lpips import LPIPS
from telecine.perceptual.weights import load_state

EPSILON = 1e-6


class Alignment(nn.Module):
    """How far a linear map of the latent is from the features of a frozen network, as VA-VAE has it.

    The two losses of VA-VAE (Yao et al., arXiv:2501.01423), added up: `relu(1 - cos_margin - cos(Wz, f))` of each
    position, and `relu(|cos(Wz_i, Wz_j) - cos(f_i, f_j)| - distance_margin)` of each pair of positions of a frame. The
    margins are the paper's m1 and m2; its adaptive weight is left out. W is trained with the autoencoder and saved with
    the objective; the network is neither. A call compares one random latent frame of each clip with the last video
    frame that it was encoded from, and costs a pass of the network over that frame, without a backward.

    Args:
        latent_channels: Channels of the latent.
        net: The network: "alex" or "vgg", with the weights of LPIPS; a function or module of frames `(N, 3, H, W)` in
            [-1, 1], as `FeatureMaps` needs it, whose last map is compared; or the dotted path of a module, or of a
            class or function that builds one without arguments.
        weights: The path of a state dict for `net`, `.safetensors` or `.pt`; for "alex" and "vgg" as `LPIPS` has it.
        size: Height and width to which frames are resized for the network, e.g. 224. Default: those of the video.

    Raises:
        ValueError: An argument is invalid, or `net` does not return features.
    """

    def __init__(
        self,
        latent_channels: int,
        net: str | Callable[[Frames], Tensor] = "alex",
        weights: str | None = None,
        size: int | None = None,
        cos_margin: float = 0.5,
        distance_margin: float = 0.25,
    ) -> None:
        super().__init__()
        check_count("latent_channels", latent_channels)
        self.cos_margin = check_fraction("cos_margin", cos_margin, remedy="Use 0.5, as the paper does.")
        self.distance_margin = check_fraction("distance_margin", distance_margin, remedy="Use 0.25, as the paper does.")
        self.network = FeatureMaps(_build_network(net, weights), size)
        num_features = self._features(torch.zeros(1, 3, PROBED_SIZE, PROBED_SIZE)).shape[1]
        self.projection = nn.Conv2d(latent_channels, num_features, 1)

    def forward(
        self, *, latent: Tensor, target: Video, weight: Tensor | None = None, generator: Generators = None
    ) -> Scalar:
        """Return the sum of both losses, 0-d, at least float32; smaller is better. The graph reaches latent and W.

        `latent` is `(B, latent_channels, t, h, w)`, and `target` the encoded video `(B, C, T, H, W)` in [-1, 1].
        `weight` contains non-negative sample weights `(B,)`. `generator` draws the compared frames.

        Raises:
            ValueError: The latent has other channels.
        """
        check_video("latent", latent)
        if latent.shape[1] != self.projection.in_channels:
            contract = f"of {self.projection.in_channels} channels, as `latent_channels` says"
            raise argument_error("latent", contract, latent, f"Set `latent_channels` to {latent.shape[1]}.")
        num_latent, num_frames = latent.shape[2], target.shape[2]
        draw = rand((len(latent), 1), generator=generator, device=latent.device)
        index = (num_latent * draw).long().clamp(max=num_latent - 1)
        # Causal models encode the first frame alone, and 1 + k latent frames end with the frames 0, n, ..., k n.
        last = (index * ((num_frames - 1) / max(num_latent - 1, 1))).round().long()
        frames = as_rgb(pick_frames(target, last))
        with autocast_off(latent.device):
            z = self.projection(at_least_float32(pick_frames(latent, index)).to(self.projection.weight.dtype))
            features = F.interpolate(self._features(frames).to(z.dtype), size=z.shape[-2:], mode="bilinear")
            z, f = z.flatten(2), features.flatten(2)
            z, f = (x * (x.square().sum(1, keepdim=True) + EPSILON**2).rsqrt() for x in (z, f))  # finite gradient at 0
            point = torch.relu(1 - self.cos_margin - (z * f).sum(1)).mean(1)
            distance = (z.transpose(1, 2) @ z - f.transpose(1, 2) @ f).abs()
            total = point + torch.relu(distance - self.distance_margin).mean((1, 2))
            return (total if weight is None else weight.to(total.dtype) * total).mean()

    @torch.no_grad()
    def _features(self, frames: Frames) -> Tensor:
        return self.network(frames)[-1]


def _build_network(net: str | Callable[[Frames], Tensor], weights: str | None) -> Callable[[Frames], Tensor]:
    if isinstance(net, str) and net in BACKBONES:
        return BackboneMaps(LPIPS(net, weights=weights))
    found: Any = choose("net", net, BACKBONES)
    if isinstance(net, str) and not isinstance(found, nn.Module):
        found = found()
        if not isinstance(found, nn.Module):
            contract, got = "the path of a module, or of what builds one", f"{net!r}, {describe(found)}"
            raise argument_error("net", contract, got, "Return a `torch.nn.Module` from it.")
    if weights is None:
        return found
    if not isinstance(found, nn.Module):
        raise argument_error("weights", "left out for a function", repr(weights), "Load them in the function.")
    load_state(found, Path(weights))
    return found
