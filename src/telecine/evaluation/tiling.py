"""Chunks over time and tiles over space, which bound the memory that long and large videos need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.autoencoders import VideoAutoencoder
from telecine.base.checks import argument_error
from telecine.settings import Tiling, check_overlap


def overlapping_chunks(frames: Iterable[Tensor], num_frames: int, overlap: int) -> Iterator[Tensor]:
    """Yield chunks `(T, ...)` of `num_frames` frames, each starting with the last `overlap` of the previous chunk.

    The last chunk has the remaining frames, at least one of which is not in the previous chunk.

    Raises:
        ValueError: `overlap` is negative or not below `num_frames`.
    """
    check_overlap(num_frames, overlap)
    chunk: list[Tensor] = []
    num_new = 0
    for frame in frames:
        chunk.append(frame)
        num_new += 1
        if len(chunk) == num_frames:
            yield torch.stack(chunk)
            chunk, num_new = chunk[num_frames - overlap :], 0
    if num_new:
        yield torch.stack(chunk)


def count_chunks(total: int, num_frames: int, overlap: int) -> int:
    """Return how many chunks `overlapping_chunks` makes of `total` frames."""
    return 1 + max(0, -(-(total - num_frames) // (num_frames - overlap)))


def blended_chunks(
    chunks: Iterable[Tensor], overlap: int, reconstruct: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield consecutive input frames and their reconstructions, both `(T, ...)`, each frame once.

    Overlapping reconstructions are blended linearly.

    Args:
        chunks: The output of `overlapping_chunks`.
        overlap: How many frames consecutive chunks share.
        reconstruct: Maps a chunk to as many frames in floating point.
    """
    pending: tuple[Tensor, Tensor] | None = None
    for chunk in chunks:
        recon = reconstruct(chunk)
        if pending is not None:
            recon = torch.cat([crossfade(pending[1], recon[:overlap]), recon[overlap:]])
        num_final = max(0, len(chunk) - overlap)
        pending = chunk[num_final:], recon[num_final:]
        if num_final > 0:
            yield chunk[:num_final], recon[:num_final]
    if pending is not None and len(pending[0]) > 0:
        yield pending


def crossfade(first: Tensor, second: Tensor) -> Tensor:
    """Return frames that change linearly from `first` to `second`, both `(T, ...)`."""
    weight = torch.arange(1, len(second) + 1, device=second.device, dtype=second.dtype) / (len(second) + 1)
    return torch.lerp(first, second, weight.view(len(second), *[1] * (second.ndim - 1)))


def rounded_tiling(tiling: Tiling, model: VideoAutoencoder) -> Tiling:
    """Return the tiling with sizes that the autoencoder accepts, rounded up.

    Overlaps become multiples of the autoencoder's stride, so that the latent cells of every tile coincide with
    those of the whole frame. Results then differ only within the receptive field of a tile's edges.

    Raises:
        ValueError: A tile is so small that it cannot overlap with the next one.
    """
    if tiling.size is None:
        return tiling
    _, smallest, _ = model.covering_clip(1, 1, 1)
    _, next_size, _ = model.covering_clip(1, smallest + 1, smallest + 1)
    stride = next_size - smallest
    _, size, _ = model.covering_clip(1, tiling.size, tiling.size)
    if tiling.overlap and size == stride:
        contract = f"at least {size + stride} for tiles that overlap with this model"
        raise argument_error("tile", contract, tiling.size, f"Set it to {size + stride}, or `tile_overlap` to 0.")
    return Tiling(size, min(-(-tiling.overlap // stride) * stride, size - stride))


@torch.no_grad()
def reconstruct_tiled(model: VideoAutoencoder, video: Tensor, tiling: Tiling) -> Tensor:
    """Return the reconstruction of one clip from the mode of its posterior. Overlapping tiles are blended linearly.

    A clip that fits into one tile is reconstructed whole, exactly as without tiling.

    Args:
        model: An autoencoder in eval mode.
        video: `(3, T, H, W)` in [-1, 1], of any length and size. It is padded to a size that the autoencoder accepts by
            repeating the last frame, row and column, and the reconstruction is cropped.
        tiling: The tiles, with sizes that the autoencoder accepts: see `rounded_tiling`.

    Returns:
        `(3, T, H, W)`, not clamped.
    """
    time, height, width = video.shape[1:]
    padded = pad_to(video, model.covering_clip(time, height, width))
    tile_height, tile_width = (side if tiling.size is None else min(tiling.size, side) for side in padded.shape[2:])
    tops, lefts = (tile_starts(side, tiling) for side in padded.shape[2:])
    if len(tops) == len(lefts) == 1:
        reconstruction = model(padded[None], sample_posterior=False).video[0]
        return reconstruction[:, :time, :height, :width]
    weighted_sum, total_weight = torch.zeros_like(padded), padded.new_zeros(padded.shape[2:])
    for top, left in product(tops, lefts):
        rows, columns = slice(top, top + tile_height), slice(left, left + tile_width)
        tile = padded[:, :, rows, columns]
        weight = tile_weight((top, left), tile.shape[2:], padded.shape[2:], tiling.overlap).to(padded)
        weighted_sum[:, :, rows, columns] += weight * model(tile[None], sample_posterior=False).video[0]
        total_weight[rows, columns] += weight
    return weighted_sum.div_(total_weight)[:, :time, :height, :width]


def pad_to(video: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat the last frame, row and column of `(3, T, H, W)` up to a size. Return a video of that size unchanged."""
    if tuple(video.shape[1:]) == tuple(size):
        return video
    padding = [num for old, new in zip(video.shape[:0:-1], reversed(size), strict=True) for num in (0, new - old)]
    return F.pad(video[None], padding, mode="replicate")[0]


def tile_starts(side: int, tiling: Tiling) -> list[int]:
    """Return where tiles start along a side. The last one ends with the side, so its overlap may be larger."""
    if tiling.size is None or side <= tiling.size:
        return [0]
    step = tiling.size - tiling.overlap
    return [*range(0, side - tiling.size, step), side - tiling.size]


def tile_weight(start: Sequence[int], size: Sequence[int], full_size: Sequence[int], overlap: int) -> Tensor:
    """Return the weight of each pixel of a tile, `(H, W)`: 1, and falling linearly over the overlap at inner edges."""
    rows, columns = (ramp(*axis, overlap) for axis in zip(start, size, full_size, strict=True))
    return rows[:, None] * columns


def ramp(start: int, size: int, full_size: int, overlap: int) -> Tensor:
    """Return one axis of `tile_weight`. The weights of two tiles that share `overlap` pixels add up to 1 there."""
    rise = torch.arange(1, overlap + 1) / (overlap + 1)
    weight = torch.ones(size)
    if start > 0:
        weight[:overlap] *= rise
    if start + size < full_size:
        weight[size - overlap :] *= rise.flip(0)
    return weight
