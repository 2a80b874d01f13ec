"""Reconstruction of frames of any size, tile by tile, so that the autoencoder never sees more than one tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.autoencoders import VideoAutoencoder
from telecine.shapes import argument_error


@dataclass(frozen=True)
class Tiling:
    """How frames are cut into overlapping tiles; the sizes are those that an autoencoder accepts."""

    size: int | None = None
    """Height and width of a tile; None for whole frames."""
    overlap: int = 0
    """Rows and columns that neighbouring tiles share."""

    def __post_init__(self) -> None:
        if self.size is None:
            return
        if self.size < 1:
            raise argument_error("tile", "at least 1", self.size, "Leave it out for whole frames.")
        if not 0 <= self.overlap < self.size:
            contract = f"at least 0 and below the tile's {self.size} pixels"
            raise argument_error("tile_overlap", contract, self.overlap, "An eighth to a quarter of a tile is usual.")

    def fitted_to(self, model: VideoAutoencoder) -> Tiling:
        """Return the tiling with its sizes rounded up to what the autoencoder accepts.

        Overlaps are whole strides of the autoencoder too, so that every tile meets its latent grid as the whole frame
        does: with that, tiles and whole frames differ only as far as a tile's edge is seen.
        """
        if self.size is None:
            return self
        _, stride, _ = model.covering_clip(1, 1, 1)
        _, size, _ = model.covering_clip(1, self.size, self.size)
        return Tiling(size, min(-(-self.overlap // stride) * stride, size - stride))


@torch.no_grad()
def reconstruct_tiled(model: VideoAutoencoder, video: Tensor, tiling: Tiling) -> Tensor:
    """Return the reconstruction of one clip, from the mode of its posterior, blended linearly where tiles overlap.

    A clip whose frames fit into one tile goes through whole, with the same result as without tiling.

    Args:
        model: An autoencoder in eval mode.
        video: `(3, T, H, W)` in [-1, 1], of any length and size: the last frame, row and column are repeated up to the
            next size that the autoencoder accepts, and what is repeated is cut off again.
        tiling: Fitted to the model: see `Tiling.fitted_to`.

    Returns:
        `(3, T, H, W)`, not clamped.
    """
    time, height, width = video.shape[1:]
    padded = pad_to(video, model.covering_clip(time, height, width))
    places = [tile_starts(side, tiling) for side in padded.shape[2:]]
    if all(len(starts) == 1 for starts in places):
        whole = model.forward(padded[None], sample_posterior=False).video[0]
        return whole[:, :time, :height, :width]
    blended, total = torch.zeros_like(padded), padded.new_zeros(padded.shape[2:])
    for top, left in product(*places):
        tile = padded[:, :, top : top + _side(tiling, padded, 2), left : left + _side(tiling, padded, 3)]
        weight = tile_weight((top, left), tile.shape[2:], padded.shape[2:], tiling.overlap).to(padded)
        rows, columns = slice(top, top + tile.shape[2]), slice(left, left + tile.shape[3])
        blended[:, :, rows, columns] += weight * model.forward(tile[None], sample_posterior=False).video[0]
        total[rows, columns] += weight
    return blended.div_(total)[:, :time, :height, :width]


def pad_to(video: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat the last frame, row and column of `(3, T, H, W)` up to a size; of that size already, it is returned."""
    if tuple(video.shape[1:]) == tuple(size):
        return video
    amounts = [amount for old, new in zip(video.shape[:0:-1], reversed(size), strict=True) for amount in (0, new - old)]
    return F.pad(video[None], amounts, mode="replicate")[0]


def tile_starts(side: int, tiling: Tiling) -> list[int]:
    """Return where tiles begin along a side; the last one ends with the side, and overlaps more if it has to."""
    if tiling.size is None or side <= tiling.size:
        return [0]
    step = tiling.size - tiling.overlap
    return [*range(0, side - tiling.size, step), side - tiling.size]


def tile_weight(start: Sequence[int], size: Sequence[int], whole: Sequence[int], overlap: int) -> Tensor:
    """Return the weight of each pixel of a tile, `(H, W)`: 1, and falling linearly over the overlap at inner edges."""
    rows, columns = (ramp(*axis, overlap) for axis in zip(start, size, whole, strict=True))
    return rows[:, None] * columns


def ramp(start: int, size: int, whole: int, overlap: int) -> Tensor:
    """Return one axis of `tile_weight`; the weights of two tiles that share `overlap` pixels add up to 1 there."""
    rise = torch.arange(1, overlap + 1) / (overlap + 1)
    weight = torch.ones(size)
    if start > 0:
        weight[:overlap] *= rise
    if start + size < whole:
        weight[size - overlap :] *= rise.flip(0)
    return weight


def _side(tiling: Tiling, video: Tensor, dim: int) -> int:
    return video.shape[dim] if tiling.size is None else min(tiling.size, video.shape[dim])
