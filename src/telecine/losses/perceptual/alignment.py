"""Alignment of the latent with the features of a frozen network."""

from collections.abc import Callable, Sequence
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
from telecine.losses.perceptual.backbones import BACKBONES
from telecine.losses.perceptual.feature_maps import PROBED_SIZE, FeatureMaps, build_maps
from telecine.losses.perceptual.frames import as_rgb, pick_frames
from telecine.losses.perceptual.weights import load_state
from telecine.losses.reconstruction import weighted_mean
from telecine.ops.unit_vectors import inverse_norms

_EPSILON = 1e-6


class Alignment(nn.Module):
    """How far a linear map of the latent is from the features of a frozen network, as VA-VAE has it.

    The two losses of VA-VAE (Yao et al., arXiv:2501.01423), added up: `relu(1 - cos_margin - cos(Wz, f))` of each
    position, and `relu(|cos(Wz_i, Wz_j) - cos(f_i, f_j)| - distance_margin)` of each pair of positions of a frame. The
    margins are the paper's m1 and m2; its adaptive weight is left out. W is trained with the autoencoder and saved with
    the objective; the network is neither. A call compares one random latent frame of each clip with the video frame at
    its place between first and last, which is the last that it was encoded from if the first frame is encoded alone. It
    costs a pass of the network over that frame, without a backward.

    With `time_stride`, the network sees whole clips. Its features are resized to the latent in time and space
    (trilinear), every latent frame is compared, and the pairs are those of the random frame with the whole clip: the
    relations over time of VideoREPA (Zhang et al., arXiv:2505.23656; a `distance_margin` of 0.1 there).

    Args:
        latent_channels: Channels of the latent.
        net: The network: "alex" or "vgg", with the weights of LPIPS; a function or module of frames `(N, 3, H, W)` in
            [-1, 1], as `FeatureMaps` needs it, whose last map is compared; or the dotted path of a module, or of a
            class or function that builds one without arguments. With `time_stride` one of clips `(B, 3, T, H, W)`.
        weights: The path of a state dict for `net`, `.safetensors` or `.pt`; for "alex" and "vgg" as `LPIPS` has it.
        size: Height and width to which frames are resized for the network, e.g. 224. Default: those of the video.
        time_stride: The network gets every n-th frame of a clip, from the first on. Default: it gets single frames.
        num_features: Features of the network, needed with `time_stride`. Default: those of a pass over one frame.
        token_grid: `(t, h, w)` of the tokens of a clip, if the network returns tokens, see `FeatureMaps`.

    Raises:
        ValueError: An argument is invalid, or `net` does not return features.
    """

    needs_rgb = True

    def __init__(
        self,
        latent_channels: int,
        net: str | Callable[[Frames], Tensor] = "alex",
        weights: str | None = None,
        size: int | None = None,
        cos_margin: float = 0.5,
        distance_margin: float = 0.25,
        time_stride: int | None = None,
        num_features: int | None = None,
        token_grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_count("latent_channels", latent_channels)
        self.cos_margin = check_fraction(
            "cos_margin", cos_margin, remedy="Use 0.5, as the paper does."
        )
        self.distance_margin = check_fraction(
            "distance_margin", distance_margin, remedy="Use 0.25, as the paper does."
        )
        if time_stride is not None:
            check_count("time_stride", time_stride)
        self.time_stride = time_stride
        if time_stride is None and token_grid is not None:
            raise argument_error(
                "token_grid", "left out for single frames", token_grid, "Set `time_stride`, too."
            )
        if time_stride is not None and isinstance(net, str) and net in BACKBONES:
            raise argument_error(
                "net",
                "a network of clips with `time_stride`",
                repr(net),
                "Leave `time_stride` out.",
            )
        self.network = FeatureMaps(_build_network(net, weights), size, token_grid)
        if time_stride is None and num_features is None:
            with torch.no_grad():
                num_features = self.network(torch.zeros(1, 3, PROBED_SIZE, PROBED_SIZE))[-1].shape[
                    1
                ]
        remedy = "With `time_stride`, set it to the number of features of `net`."
        check_count("num_features", num_features, remedy=remedy)
        self.projection = nn.Conv2d(latent_channels, num_features, 1)  # type: ignore[arg-type]

    def forward(
        self,
        *,
        latent: Tensor,
        target: Video,
        sample_weight: Tensor | None = None,
        generator: Generators = None,
    ) -> Scalar:
        """Return the sum of both losses, 0-d, at least float32; smaller is better. The graph reaches latent and W.

        Args:
            latent: `(B, latent_channels, t, h, w)`.
            target: The encoded video `(B, C, T, H, W)` in [-1, 1].
            sample_weight: Non-negative weights of the clips `(B,)`.
            generator: Draws the compared frames.

        Raises:
            ValueError: The latent has other channels.
        """
        check_video("latent", latent)
        if latent.shape[1] != self.projection.in_channels:
            contract = f"of {self.projection.in_channels} channels, as `latent_channels` says"
            raise argument_error(
                "latent", contract, latent, f"Set `latent_channels` to {latent.shape[1]}."
            )
        num_clips = len(latent)
        num_latent = latent.shape[2]
        draw = rand((num_clips, 1), generator=generator, device=latent.device)
        index = (num_latent * draw).long().clamp(max=num_latent - 1)
        if self.time_stride is None:
            # Causal models encode the first frame alone, and 1 + k latent frames end with the frames 0, n, ..., k n.
            frames_per_latent = (target.shape[2] - 1) / max(num_latent - 1, 1)
            last = (index * frames_per_latent).round().long()
            compared = index
            frames = pick_frames(target, last)
        else:
            compared = torch.arange(num_latent, device=latent.device).expand(num_clips, -1)
            frames = target[:, :, :: self.time_stride]
        with autocast_off(latent.device):
            latent_frames = at_least_float32(pick_frames(latent, compared)).to(
                self.projection.weight.dtype
            )
            z = self.projection(latent_frames)
            z = z.unflatten(0, (num_clips, -1)).transpose(1, 2)
            features = self._features_like(z, as_rgb(frames))
            return weighted_mean(self._distance(z, features, index), sample_weight)

    @torch.no_grad()
    def _features_like(self, z: Video, frames: Frames | Video) -> Tensor:
        """Return the features of frames or clips, `(B, F, h, w)` or `(B, F, t, h, w)`, in the size of `z`."""
        features = self.network(frames)[-1].to(z.dtype)
        if features.shape[1] != z.shape[1]:
            got = f"{z.shape[1]} for {features.shape[1]}"
            raise argument_error(
                "num_features", "the number of features of `net`", got, "Correct it."
            )
        if frames.ndim == 4:
            return F.interpolate(features, size=z.shape[3:], mode="bilinear")
        return F.interpolate(features, size=z.shape[2:], mode="trilinear")

    def _distance(self, z: Video, f: Tensor, index: Tensor) -> Tensor:
        """Return the sum of both losses of each clip, `(B,)`; of several frames, `index` `(B, 1)` is in every pair."""
        size = z.shape[2:]
        z = z.flatten(2)
        f = f.flatten(2)
        z = z * inverse_norms(z, _EPSILON)
        f = f * inverse_norms(f, _EPSILON)
        point = torch.relu(1 - self.cos_margin - (z * f).sum(1)).mean(1)
        z_drawn = z
        f_drawn = f
        if self.time_stride is not None:
            z_drawn = pick_frames(z.unflatten(2, size), index).flatten(2)
            f_drawn = pick_frames(f.unflatten(2, size), index).flatten(2)
        distance = (z_drawn.transpose(1, 2) @ z - f_drawn.transpose(1, 2) @ f).abs()
        return point + torch.relu(distance - self.distance_margin).mean((1, 2))


def _build_network(
    net: str | Callable[[Frames], Tensor], weights: str | None
) -> Callable[[Frames], Tensor]:
    if isinstance(net, str) and net in BACKBONES:
        return build_maps(net, weights)
    network: Any = choose("net", net, BACKBONES)
    if isinstance(net, str) and not isinstance(network, nn.Module):
        network = network()
        if not isinstance(network, nn.Module):
            contract = "the path of a module, or of a function that builds one"
            got = f"{net!r}, {describe(network)}"
            raise argument_error("net", contract, got, "Return a `torch.nn.Module` from it.")
    if weights is None:
        return network
    if not isinstance(network, nn.Module):
        raise argument_error(
            "weights", "left out for a function", repr(weights), "Load them in the function."
        )
    load_state(network, Path(weights))
    return network
