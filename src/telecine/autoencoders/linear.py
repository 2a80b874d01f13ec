"""The best linear autoencoder of a latent size: a principal component analysis of patches, to compare others with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from telecine.checks import argument_error, check_count
from telecine.shapes import Video

# The largest patch whose covariance matrix is computed. At 4096 values it takes 134 MB in float64.
MAX_DIM = 4096

Patches = Float[Tensor, "batch frame row column value"]


class PatchPCA(nn.Module):
    """A principal component analysis of patches of one size.

    Args:
        dim: Number of values of a patch.
        num_components: Number of values that remain of a patch, at most `dim`.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, dim: int, num_components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("components", torch.zeros(num_components, dim))
        self.count = 0
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._products = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, patches: Patches) -> None:
        """Add patches to the statistics."""
        rows = patches.flatten(0, -2).double().cpu()
        self.count += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows

    def fit(self) -> None:
        """Set the mean and the components of all patches that were added."""
        mean = self._sum / self.count
        covariance = self._products / self.count - mean.outer(mean)
        _, vectors = torch.linalg.eigh(covariance)  # ascending eigenvalues
        self.mean.copy_(mean)
        self.components.copy_(vectors.flip(1)[:, : len(self.components)].T)

    def encode(self, patches: Patches) -> Patches:
        """Return the components of each patch."""
        return (patches - self.mean) @ self.components.T

    def decode(self, latent: Patches) -> Patches:
        """Return the patches with these components."""
        return latent @ self.components + self.mean


class LinearAutoencoder(nn.Module):
    """A linear autoencoder with the latent of a causal video autoencoder, fitted in closed form.

    The first frame is coded alone, then every `time_compression` frames together, each patch of `spatial_compression`
    pixels squared by its first `latent_channels` principal components. Among linear maps of these patches it has the
    smallest mean squared error on the clips that it is fitted to (Pearson, 1901). An autoencoder that is worse has not
    learned what a matrix knows.

    Args:
        time_compression: Frames per latent frame.
        spatial_compression: Pixels per latent position along height and along width.
        latent_channels: Channels of the latent.

    Raises:
        ValueError: If an argument is not a positive int, a patch is too large, or it has fewer values than the latent.
    """

    def __init__(self, time_compression: int, spatial_compression: int, latent_channels: int) -> None:
        super().__init__()
        self.time = check_count("time_compression", time_compression)
        self.space = check_count("spatial_compression", spatial_compression)
        channels = check_count("latent_channels", latent_channels)
        frame_dim = 3 * self.space**2
        if channels > frame_dim:
            contract = f"at most {frame_dim}, the values of a patch of the first frame"
            raise argument_error("latent_channels", contract, channels, "Use fewer channels or larger patches.")
        if self.time * frame_dim > MAX_DIM:
            got = f"{self.time} x {self.space} x {self.space} pixels, {self.time * frame_dim} values"
            raise argument_error("the patch", f"of at most {MAX_DIM} values", got, "Use a smaller compression.")
        self.first = PatchPCA(frame_dim, channels)
        self.rest = PatchPCA(self.time * frame_dim, channels)

    def fit(self, clips: Iterable[Video]) -> LinearAutoencoder:
        """Fit to clips `(B, 3, T, H, W)`, each of 1 + k * `time_compression` frames, and return `self`. Streaming.

        Raises:
            ValueError: If there is no clip of more than one frame.
        """
        for clip in clips:
            first, rest = self._patches(clip)
            self.first.add(first)
            self.rest.add(rest)
        if self.rest.count == 0:
            raise argument_error("clips", "at least one clip of several frames", "none", "Pass training clips.")
        self.first.fit()
        self.rest.fit()
        return self

    def encode(self, video: Video) -> Float[Tensor, "batch channel time height width"]:
        """Return the latent `(B, C, 1 + (T - 1) / time, H / space, W / space)`."""
        first, rest = self._patches(video)
        latent = torch.cat([self.first.encode(first), self.rest.encode(rest)], dim=1)
        return rearrange(latent, "b t h w c -> b c t h w")

    def decode(self, latent: Float[Tensor, "batch channel time height width"]) -> Video:
        """Return the video of a latent."""
        first, rest = rearrange(latent, "b c t h w -> b t h w c").split([1, latent.shape[2] - 1], dim=1)
        pattern = "b t h w (c p q r) -> b c (t p) (h q) (w r)"
        sizes = {"q": self.space, "r": self.space}
        frame = rearrange(self.first.decode(first), pattern, p=1, **sizes)
        return torch.cat([frame, rearrange(self.rest.decode(rest), pattern, p=self.time, **sizes)], dim=2)

    def forward(self, video: Video) -> Video:
        """Return the reconstruction, which is not clamped."""
        return self.decode(self.encode(video))

    def _patches(self, video: Video) -> tuple[Patches, Patches]:
        """Return the patches of the first frame and those of the others."""
        _, _, frames, height, width = video.shape
        if (frames - 1) % self.time or height % self.space or width % self.space:
            contract = f"of 1 + {self.time} k frames, and of multiples of {self.space} pixels"
            raise argument_error("video", contract, video, "Crop it.")
        pattern = "b c (t p) (h q) (w r) -> b t h w (c p q r)"
        sizes = {"q": self.space, "r": self.space}
        first = rearrange(video[:, :, :1], pattern, p=1, **sizes)
        return first, rearrange(video[:, :, 1:], pattern, p=self.time, **sizes)
