"""Reconstruction in chunks of time and tiles of space, which bound memory."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.models import VideoAutoencoder
from telecine.models.interface import clip_position
from telecine.models.tiles import tiles_of_frame
from telecine.settings import Tiling, check_overlap


def overlapping_chunks(frames: Iterable[Tensor], num_frames: int, overlap: int) -> Iterator[Tensor]:
    """Yield chunks `(T, ...)` of a video; neighbours share frames.

    Args:
        frames: The frames of the video, each `(...)`.
        num_frames: Frames in a chunk. The last one may have fewer.
        overlap: Frames that neighbours share, below `num_frames`.
    """
    check_overlap(num_frames, overlap)
    chunk: list[Tensor] = []
    num_new = 0
    for frame in frames:
        chunk.append(frame)
        num_new += 1
        if len(chunk) == num_frames:
            yield torch.stack(chunk)
            chunk = chunk[num_frames - overlap :]
            num_new = 0
    if num_new > 0:
        yield torch.stack(chunk)


def count_chunks(total: int, num_frames: int, overlap: int) -> int:
    """Return how many chunks `overlapping_chunks` makes of `total` frames.

    Args:
        total: Frames of the video.
        num_frames: Frames in a chunk.
        overlap: Frames that neighbours share.
    """
    num_after_first = max(0, total - num_frames)
    return 1 + -(-num_after_first // (num_frames - overlap))


def blended_chunks(
    model: VideoAutoencoder,
    chunks: Iterable[Tensor],
    overlap: int,
    reconstruct: Callable[[Tensor], Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the frames of `overlapping_chunks` once, with their reconstructions, blended linearly; both `(T, ...)`.

    Args:
        model: The autoencoder. While `reconstruct` is called, its `position` is that of the chunk in the video.
        chunks: Chunks `(T, ...)`, as `overlapping_chunks` yields them.
        overlap: Frames that neighbours share.
        reconstruct: Maps a chunk to its reconstruction `(T, ...)`.
    """
    pending: tuple[Tensor, Tensor] | None = None
    first_frame = 0
    for chunk in chunks:
        with clip_position(model, first_frame=first_frame):
            recon = reconstruct(chunk)
        first_frame += len(chunk) - overlap
        if pending is not None:
            blended = _crossfade(pending[1], recon[:overlap])
            recon = torch.cat([blended, recon[overlap:]])
        num_final = max(0, len(chunk) - overlap)
        pending = (chunk[num_final:], recon[num_final:])
        if num_final > 0:
            yield chunk[:num_final], recon[:num_final]
    if pending is not None and len(pending[0]) > 0:
        yield pending


def _crossfade(first: Tensor, second: Tensor) -> Tensor:
    weight = torch.arange(1, len(second) + 1, device=second.device, dtype=second.dtype) / (
        len(second) + 1
    )
    shape = [len(second)] + [1] * (second.ndim - 1)
    return torch.lerp(first, second, weight.view(shape))


def reconstruct_in_chunks(
    model: VideoAutoencoder, video: Tensor, num_frames: int, *, overlap: int, tiling: Tiling
) -> Tensor:
    """Return the reconstruction of a clip in chunks and in tiles, blended: `(C, T, H, W)`, not clamped.

    Args:
        model: The autoencoder.
        video: `(C, T, H, W)` in [-1, 1].
        num_frames: Frames in a chunk.
        overlap: Frames that neighbours share.
        tiling: The tiles, of sizes of `rounded_tiling`.
    """

    def reconstruct(chunk: Tensor) -> Tensor:
        return reconstruct_tiled(model, chunk.transpose(0, 1), tiling).transpose(0, 1)

    chunks = overlapping_chunks(video.transpose(0, 1), num_frames, overlap)
    parts = []
    for _, recon in blended_chunks(model, chunks, overlap, reconstruct):
        parts.append(recon)
    return torch.cat(parts).transpose(0, 1)


def rounded_tiling(tiling: Tiling, model: VideoAutoencoder) -> Tiling:
    """Return the tiling with sizes that the model accepts, rounded up.

    Overlaps become multiples of the stride, so that the latent cells of every tile are those of the whole frame.

    Raises:
        ValueError: The tiles are too small to overlap.
    """
    if tiling.size is None:
        return tiling
    _, smallest, _ = model.covering_clip(1, 1, 1)
    _, next_size, _ = model.covering_clip(1, smallest + 1, smallest + 1)
    stride = next_size - smallest
    _, size, _ = model.covering_clip(1, tiling.size, tiling.size)
    if tiling.overlap and size == stride:
        contract = f"at least {size + stride} for tiles that overlap with this model"
        raise argument_error(
            "tile", contract, tiling.size, f"Set it to {size + stride}, or `tile_overlap` to 0."
        )
    overlap = -(-tiling.overlap // stride) * stride
    return Tiling(size, min(overlap, size - stride))


@torch.no_grad()
def reconstruct_tiled(model: VideoAutoencoder, video: Tensor, tiling: Tiling) -> Tensor:
    """Return the reconstruction of a clip from the mode of its posterior, `(C, T, H, W)`, not clamped.

    The clip may have any length and size: it is padded to one that the autoencoder accepts by repeating the last frame,
    row and column, and the reconstruction is cropped. Overlapping tiles are blended linearly. A clip that fits into one
    tile is reconstructed whole, exactly as without tiling.

    Args:
        model: The autoencoder.
        video: `(C, T, H, W)` in [-1, 1].
        tiling: The tiles, of sizes of `rounded_tiling`.
    """
    num_frames, height, width = video.shape[1:]
    padded = _pad_to(video, model.covering_clip(num_frames, height, width))
    full_height, full_width = padded.shape[2:]
    tiles = list(tiles_of_frame(full_height, full_width, tiling))
    if len(tiles) == 1:
        return model(padded[None], sample_posterior=False).video[0, :, :num_frames, :height, :width]
    weighted_sum = torch.zeros_like(padded)
    total_weight = padded.new_zeros(full_height, full_width)
    for rows, columns, tile_weight in tiles:
        weight = tile_weight.to(padded)
        corner = (rows.start, columns.start)
        with clip_position(model, frame_size=(full_height, full_width), corner=corner):
            tile = model(padded[None, :, :, rows, columns], sample_posterior=False).video[0]
        weighted_sum[:, :, rows, columns] += weight * tile
        total_weight[rows, columns] += weight
    return weighted_sum.div_(total_weight)[:, :num_frames, :height, :width]


def _pad_to(video: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Repeat the last frame, row and column of `(C, T, H, W)` up to a size. Return a video of that size unchanged."""
    num_frames, height, width = video.shape[1:]
    if (num_frames, height, width) == tuple(size):
        return video
    padding = [0, size[2] - width, 0, size[1] - height, 0, size[0] - num_frames]
    return F.pad(video[None], padding, mode="replicate")[0]
