"""The best linear autoencoder of a latent size: a principal component analysis of patches, to compare others with."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from telecine.base.checks import argument_error, check_count
from telecine.base.shapes import RGBA, Video
from telecine.models.bottleneck import Bottleneck, Latent
from telecine.models.channels import of_colours_and_alpha
from telecine.models.latent import LatentGrid

# Values of each clip that are kept to compute the components, as random patches: 1 MB, 341 patches of 4 x 8 x 8 pixels.
_VALUES_PER_CLIP = 2**18
# With twice the components that are wanted and four iterations, the randomised algorithm (arXiv:0909.4061) agrees
# with an exact one to six digits.
_OVERSAMPLING = 2
_ITERATIONS = 4
# Directions without variance are not scaled up. One grey level of 255 is 8e-3.
_SMALLEST_STD = 1e-4
# Keeps the normal equations of a latent with dead channels solvable, times their mean diagonal.
_RIDGE = 1e-9
# The same for patches of pixels: about the noise of half a grey level, so that flat patches do not decide the map.
_ENCODER_RIDGE = 1e-4
MAX_FITTED_VALUES = 4096
"""A patch of 4 x 16 x 16 pixels has 3072. The equations of n values need 8 n^2 bytes."""
# Patches that are converted to float64 at a time.
_ROWS_AT_ONCE = 2**14

_Patches = Float[Tensor, "batch frame row column value"]


class _Frames(NamedTuple):
    """Frames of a video or a latent that one map encodes or decodes."""

    map: nn.Linear
    x: Tensor
    """`(B, C, T, H, W)` of the video or the latent."""
    patch_frames: int
    """Frames of a patch."""


class _PatchMaps(nn.Module):
    """Affine maps of patches: one of a first frame that is apart, and one of `time_compression` others."""

    first: nn.Linear | None
    rest: nn.Linear

    def __init__(
        self,
        time_compression: int,
        spatial_compression: int,
        first: nn.Linear | None,
        rest: nn.Linear,
    ) -> None:
        super().__init__()
        self.time = time_compression
        self.space = spatial_compression
        self.first = first
        self.rest = rest

    @property
    def maps(self) -> list[nn.Linear]:
        """The map of the first frame, if it is apart, and the map of the others."""
        return [self.rest] if self.first is None else [self.first, self.rest]

    def split(self, x: Tensor, *, first_chunk: bool = True) -> list[_Frames]:
        """Return the frames of a video or a latent `(B, C, T, H, W)` for each of `maps`.

        Unless they are the `first_chunk`, they follow other frames: none of them is apart.
        """
        if self.first is None or not first_chunk:
            return [_Frames(self.rest, x, self.time)]
        return [_Frames(self.first, x[:, :, :1], 1), _Frames(self.rest, x[:, :, 1:], self.time)]

    def accepts(
        self, num_frames: int, height: int, width: int, *, first_chunk: bool = True
    ) -> bool:
        """Return whether clips of a size consist of whole patches.

        Args:
            num_frames: Frames of the clips.
            height: Height in pixels.
            width: Width in pixels.
            first_chunk: Whether no other frames were before.
        """
        if self.first is not None and first_chunk:
            num_frames -= 1
        return num_frames % self.time == 0 and height % self.space == 0 and width % self.space == 0

    def patches(self, video: Video, *, first_chunk: bool = True) -> list[_Patches]:
        """Return the patches of a video for each of `maps`; without `first_chunk`, of frames that follow others.

        Raises:
            ValueError: The video has another number of frames, height or width.
        """
        if not self.accepts(*video.shape[2:], first_chunk=first_chunk):
            first = "" if self.first is None else "1 + "
            contract = f"of {first}{self.time} k frames, and of multiples of {self.space} pixels"
            raise argument_error("video", contract, video, "Crop it.")
        pattern = "b c (t p) (h q) (w r) -> b t h w (c p q r)"
        parts = self.split(video, first_chunk=first_chunk)
        return [
            rearrange(part.x, pattern, p=part.patch_frames, q=self.space, r=self.space)
            for part in parts
        ]


class PatchEncoder(_PatchMaps):
    """From the patches of a video to their latent; the arguments are those of `LinearAutoencoder`."""

    def __init__(
        self,
        time_compression: int,
        spatial_compression: int,
        latent_channels: int,
        in_channels: int,
        first_frame_apart: bool = True,
    ) -> None:
        num_values = in_channels * spatial_compression**2
        first = nn.Linear(num_values, latent_channels)
        rest = nn.Linear(num_values * time_compression, latent_channels)
        super().__init__(
            time_compression, spatial_compression, first if first_frame_apart else None, rest
        )

    def forward(self, video: Video, *, first_chunk: bool = True) -> Latent:
        """Return the latent `(B, C, k, H / space, W / space)`, of 1 + k frames if the first one is apart.

        Args:
            video: `(B, C, T, H, W)`.
            first_chunk: Whether the frames follow no others. If they do, none of them is apart.
        """
        apply = F.linear
        if video.shape[1] == RGBA:
            apply = partial(of_colours_and_alpha, F.linear, dim=-1)
        maps = self.maps if first_chunk else [self.rest]
        parts = []
        for linear, patches in zip(maps, self.patches(video, first_chunk=first_chunk), strict=True):
            parts.append(apply(patches, linear.weight, linear.bias))
        return rearrange(torch.cat(parts, dim=1), "b t h w c -> b c t h w")


class PatchDecoder(_PatchMaps):
    """The inverse direction of `PatchEncoder`, with the same arguments: from each latent position to its patch."""

    def __init__(
        self,
        time_compression: int,
        spatial_compression: int,
        latent_channels: int,
        in_channels: int,
        first_frame_apart: bool = True,
    ) -> None:
        num_values = in_channels * spatial_compression**2
        first = nn.Linear(latent_channels, num_values)
        rest = nn.Linear(latent_channels, num_values * time_compression)
        super().__init__(
            time_compression, spatial_compression, first if first_frame_apart else None, rest
        )

    def forward(self, latent: Latent, *, first_chunk: bool = True) -> Video:
        """Return the video of a latent; without `first_chunk`, of latent frames that follow others."""
        pattern = "b t h w (c p q r) -> b c (t p) (h q) (w r)"
        parts = []
        for linear, z, patch_frames in self.split(latent, first_chunk=first_chunk):
            patches = linear(rearrange(z, "b c t h w -> b t h w c"))
            parts.append(rearrange(patches, pattern, p=patch_frames, q=self.space, r=self.space))
        return torch.cat(parts, dim=2)


class LinearAutoencoder(nn.Module):
    """A linear autoencoder with the latent of a causal video autoencoder.

    The first frame is coded alone, if it is apart, then every `time_compression` frames together, each patch by
    `latent_channels` values. After `fit` these are its first principal components, scaled to unit variance: no linear
    map of patches has a smaller mean squared error (Pearson, 1901). A worse autoencoder has learned less than a matrix.

    Args:
        time_compression: Frames per latent frame.
        spatial_compression: Pixels per latent position along height and along width.
        latent_channels: Channels of the latent.
        in_channels: Channels of the video.
        bottleneck: Quantizes the components if the latent is discrete; the decoder is the best linear map of the codes.
        first_frame_apart: Whether the first frame has a latent frame of its own.

    Attributes:
        grid: How the latent divides a clip.

    Raises:
        ValueError: If an argument is not a positive int.
    """

    def __init__(
        self,
        time_compression: int,
        spatial_compression: int,
        latent_channels: int,
        in_channels: int = 3,
        bottleneck: Bottleneck | None = None,
        first_frame_apart: bool = True,
    ) -> None:
        super().__init__()
        check_count("time_compression", time_compression)
        check_count("spatial_compression", spatial_compression)
        check_count("latent_channels", latent_channels)
        check_count("in_channels", in_channels)
        self.grid = LatentGrid(
            time_compression, spatial_compression, latent_channels, first_frame_apart
        )
        sizes = (
            time_compression,
            spatial_compression,
            latent_channels,
            in_channels,
            first_frame_apart,
        )
        self.encoder = PatchEncoder(*sizes)
        self.decoder = PatchDecoder(*sizes)
        self.bottleneck = bottleneck
        if bottleneck is not None:
            bottleneck.eval()  # no losses

    def fit(self, clips: Iterable[Video]) -> "LinearAutoencoder":
        """Set the maps to the principal components of clips on the CPU, and return `self`; the random state is kept.

        Args:
            clips: Each `(B, C, T, H, W)` of the frames that the encoder accepts, read one by one; of each at most 2^18
                values are kept, 1 MB. Without a clip of several frames, only the map of the first frame is set.

        Raises:
            ValueError: If there is no clip.
        """
        generator = torch.Generator().manual_seed(0)
        kept = [_GrowingRows(linear.in_features) for linear in self.encoder.maps]
        for clip in clips:
            for rows, patches in zip(kept, self.encoder.patches(clip), strict=True):
                rows.add(_random_rows(patches.flatten(0, -2), generator))
        if len(kept[0].filled()) == 0:
            raise argument_error("clips", "at least one clip", "none", "Pass training clips.")
        for encoder, decoder, rows in zip(self.encoder.maps, self.decoder.maps, kept, strict=True):
            if len(rows.filled()) > 0:
                self._fit_maps(encoder, decoder, rows.filled())
        return self

    @torch.no_grad()
    def _fit_maps(
        self, encoder: nn.Linear, decoder: nn.Linear, patches: Float[Tensor, "patch value"]
    ) -> None:
        _set_to_components(encoder, decoder, patches)
        if self.bottleneck is None:
            return
        fit = _LeastSquares(decoder)
        for rows in patches.split(_ROWS_AT_ONCE):
            codes = self.bottleneck.quantize(encoder(rows)[:, :, None, None, None]).flatten(1)
            fit.add(codes, rows)
        fit.solve()

    def encode(self, video: Video) -> Latent:
        """Return the latent, see `PatchEncoder`."""
        latent: Latent = self.encoder(video)
        if self.bottleneck is not None:
            latent = self.bottleneck.quantize(latent)
        return latent

    def decode(self, latent: Latent) -> Video:
        """Return the video of a latent."""
        return cast(Video, self.decoder(latent))

    def forward(self, video: Video) -> Video:
        """Return the reconstruction, which is not clamped."""
        return self.decode(self.encode(video))


def _set_to_components(
    encoder: nn.Linear, decoder: nn.Linear, patches: Float[Tensor, "patch value"]
) -> None:
    num_values = encoder.out_features
    size = min(_OVERSAMPLING * num_values, *patches.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, scales, components = torch.pca_lowrank(patches, q=size, niter=_ITERATIONS)
    # Where there are fewer directions than values, the last values are 0.
    missing = max(num_values - size, 0)
    std = F.pad(scales / len(patches) ** 0.5, (0, missing))[:num_values]
    components = F.pad(components, (0, missing))[:, :num_values]
    mean = patches.mean(0)
    to_latent = components.T / std.clamp_min(_SMALLEST_STD)[:, None]
    encoder.weight.copy_(to_latent)
    encoder.bias.copy_(-to_latent @ mean)
    decoder.weight.copy_(components * std)
    decoder.bias.copy_(mean)


class LatentFit:
    """The maps with the smallest squared error between videos and their latents, from one pass over pairs of them.

    Args:
        decoder: From latents to videos. Its maps are fitted.
        encoder: From videos to latents. Its maps are fitted, too, but those of patches with more than
            `MAX_FITTED_VALUES` values. None leaves the latents to another model.
    """

    def __init__(self, decoder: PatchDecoder, encoder: PatchEncoder | None = None) -> None:
        self.decoder = decoder
        self._decoder_fits = [_LeastSquares(linear) for linear in decoder.maps]
        self._encoder_fits: list[_LeastSquares | None] = [None] * len(decoder.maps)
        if encoder is not None:
            for index, linear in enumerate(encoder.maps):
                if linear.in_features <= MAX_FITTED_VALUES:
                    self._encoder_fits[index] = _LeastSquares(linear)

    def add(self, latent: Latent, video: Video) -> None:
        """Add a latent `(B, C, k, h, w)` and its video `(B, C, T, H, W)`."""
        frames = self.decoder.split(latent)
        patches = self.decoder.patches(video)
        for index, decoder_fit in enumerate(self._decoder_fits):
            codes = rearrange(frames[index].x, "b c t h w -> (b t h w) c")
            values = patches[index].flatten(0, -2)
            decoder_fit.add(codes, values)
            encoder_fit = self._encoder_fits[index]
            if encoder_fit is not None:
                encoder_fit.add(values, codes)

    def solve(self) -> None:
        """Set the maps. Without a clip of several frames, only those of the first frame are set."""
        for decoder_fit in self._decoder_fits:
            decoder_fit.solve()
        for encoder_fit in self._encoder_fits:
            if encoder_fit is not None:
                encoder_fit.solve(ridge=_ENCODER_RIDGE)


class _LeastSquares:
    """The affine map from inputs `(N, in_features)` to outputs `(N, out_features)` with the smallest squared error.

    Args:
        layer: The layer that becomes this map.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        num_rows = 1 + layer.in_features
        self.sums = torch.zeros(num_rows, num_rows + layer.out_features, dtype=torch.float64)

    @torch.no_grad()
    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add rows to the sums of the normal equations, in float64 on the CPU."""
        rows = F.pad(inputs, (1, 0), value=1.0).cpu().double()
        self.sums += rows.T @ torch.cat([rows, outputs.cpu().double()], dim=1)

    @torch.no_grad()
    def solve(self, ridge: float = _RIDGE) -> None:
        """Set the layer; without rows it stays as it is."""
        num_rows = self.sums[0, 0]
        if num_rows == 0:
            return
        gram, products = self.sums.split([len(self.sums), self.layer.out_features], dim=1)
        added = ridge * gram.diagonal().mean() * torch.eye(len(gram)).double()
        solution = torch.linalg.solve(gram + added, products)
        self.layer.bias.copy_(solution[0])
        self.layer.weight.copy_(solution[1:].T)


class _GrowingRows:
    """Rows in one tensor that grows. The memory of many small ones is not given back when they are freed.

    Args:
        num_values: Values in a row.
    """

    def __init__(self, num_values: int) -> None:
        self._rows = torch.empty(0, num_values)
        self._num_filled = 0

    def add(self, rows: Float[Tensor, "patch value"]) -> None:
        """Add rows at the end."""
        end = self._num_filled + len(rows)
        if end > len(self._rows):
            larger = torch.empty(2 * end, rows.shape[1], dtype=rows.dtype)
            larger[: self._num_filled] = self.filled()
            self._rows = larger
        self._rows[self._num_filled : end] = rows
        self._num_filled = end

    def filled(self) -> Float[Tensor, "patch value"]:
        """Return all rows that were added. It is a view."""
        return self._rows[: self._num_filled]


def _random_rows(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Return `rows`, or a random subset of them with at most `_VALUES_PER_CLIP` values."""
    most = max(_VALUES_PER_CLIP // rows.shape[1], 1)
    if len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:most]]
