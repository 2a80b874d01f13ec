"""Reconstruction in chunks of time and tiles of space, which bound memory, and its difference from the whole clip's."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.evaluation.pixel_metrics import psnr
from telecine.losses.reconstruction import psnr_of_mse
from telecine.models import VideoAutoencoder
from telecine.models.interface import clip_position
from telecine.settings import Tiling, check_overlap


def overlapping_chunks(frames: Iterable[Tensor], num_frames: int, overlap: int) -> Iterator[Tensor]:
    """Yield chunks `(T, ...)` of `num_frames` frames or, the last one, fewer; neighbours share `overlap` frames."""
    check_overlap(num_frames, overlap)
    chunk, num_new = list[Tensor](), 0
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
    model: VideoAutoencoder, chunks: Iterable[Tensor], overlap: int, reconstruct: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the frames of `overlapping_chunks` once, with their reconstructions, blended linearly; both `(T, ...)`.

    While `reconstruct` is called, the model's `position` is that of the chunk in the video.
    """
    pending: tuple[Tensor, Tensor] | None = None
    first_frame = 0
    for chunk in chunks:
        with clip_position(model, first_frame=first_frame):
            recon = reconstruct(chunk)
        first_frame += len(chunk) - overlap
        if pending is not None:
            recon = torch.cat([_crossfade(pending[1], recon[:overlap]), recon[overlap:]])
        num_final = max(0, len(chunk) - overlap)
        pending = chunk[num_final:], recon[num_final:]
        if num_final > 0:
            yield chunk[:num_final], recon[:num_final]
    if pending is not None and len(pending[0]) > 0:
        yield pending


def _crossfade(first: Tensor, second: Tensor) -> Tensor:
    weight = torch.arange(1, len(second) + 1, device=second.device, dtype=second.dtype) / (len(second) + 1)
    return torch.lerp(first, second, weight.view(len(second), *[1] * (second.ndim - 1)))


def reconstruct_in_chunks(
    model: VideoAutoencoder, video: Tensor, num_frames: int, *, overlap: int, tiling: Tiling
) -> Tensor:
    """Return the reconstruction of a clip `(3, T, H, W)` in chunks of `num_frames` frames and in tiles, blended."""

    def reconstruct(chunk: Tensor) -> Tensor:
        return reconstruct_tiled(model, chunk.transpose(0, 1), tiling).transpose(0, 1)

    chunks = overlapping_chunks(video.transpose(0, 1), num_frames, overlap)
    return torch.cat([recon for _, recon in blended_chunks(model, chunks, overlap, reconstruct)]).transpose(0, 1)


def rounded_tiling(tiling: Tiling, model: VideoAutoencoder) -> Tiling:
    """Return the tiling with sizes that the model accepts, rounded up; raise a `ValueError` if tiles cannot overlap.

    Overlaps become multiples of the stride, so that the latent cells of every tile are those of the whole frame.
    """
    if tiling.size is None:
        return tiling
    smallest = model.covering_clip(1, 1, 1)[1]
    stride = model.covering_clip(1, smallest + 1, smallest + 1)[1] - smallest
    size = model.covering_clip(1, tiling.size, tiling.size)[1]
    if tiling.overlap and size == stride:
        contract = f"at least {size + stride} for tiles that overlap with this model"
        raise argument_error("tile", contract, tiling.size, f"Set it to {size + stride}, or `tile_overlap` to 0.")
    return Tiling(size, min(-(-tiling.overlap // stride) * stride, size - stride))


@torch.no_grad()
def reconstruct_tiled(model: VideoAutoencoder, video: Tensor, tiling: Tiling) -> Tensor:
    """Return the reconstruction of a clip `(3, T, H, W)` from the mode of its posterior, not clamped.

    The clip may have any length and size: it is padded to one that the autoencoder accepts by repeating the last frame,
    row and column, and the reconstruction is cropped. Overlapping tiles, of sizes of `rounded_tiling`, are blended
    linearly. A clip that fits into one tile is reconstructed whole, exactly as without tiling.
    """
    time, height, width = video.shape[1:]
    padded = _pad_to(video, model.covering_clip(time, height, width))
    tile_height, tile_width = (side if tiling.size is None else min(tiling.size, side) for side in padded.shape[2:])
    tops, lefts = (_tile_starts(side, tiling) for side in padded.shape[2:])
    if len(tops) == len(lefts) == 1:
        return model(padded[None], sample_posterior=False).video[0, :, :time, :height, :width]
    weighted_sum, total_weight = torch.zeros_like(padded), padded.new_zeros(padded.shape[2:])
    for top, left in product(tops, lefts):
        rows, columns = slice(top, top + tile_height), slice(left, left + tile_width)
        row_weight = _ramp(top, tile_height, padded.shape[2], tiling.overlap)
        weight = (row_weight[:, None] * _ramp(left, tile_width, padded.shape[3], tiling.overlap)).to(padded)
        with clip_position(model, frame_size=(padded.shape[2], padded.shape[3]), corner=(top, left)):
            tile = model(padded[None, :, :, rows, columns], sample_posterior=False).video[0]
        weighted_sum[:, :, rows, columns] += weight * tile
        total_weight[rows, columns] += weight
    return weighted_sum.div_(total_weight)[:, :time, :height, :width]


def _pad_to(video: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat the last frame, row and column of `(3, T, H, W)` up to a size. Return a video of that size unchanged."""
    if tuple(video.shape[1:]) == tuple(size):
        return video
    padding = [num for old, new in zip(video.shape[:0:-1], reversed(size), strict=True) for num in (0, new - old)]
    return F.pad(video[None], padding, mode="replicate")[0]


def _tile_starts(side: int, tiling: Tiling) -> list[int]:
    """Return where tiles start along a side. The last one ends with the side, so its overlap may be larger."""
    if tiling.size is None or side <= tiling.size:
        return [0]
    return [*range(0, side - tiling.size, tiling.size - tiling.overlap), side - tiling.size]


def _ramp(start: int, size: int, full_size: int, overlap: int) -> Tensor:
    """Return a tile's weights along one side: 1, and falling linearly over the overlap at an inner edge."""
    rise = torch.arange(1, overlap + 1) / (overlap + 1)
    weight = torch.ones(size)
    if start > 0:
        weight[:overlap] *= rise
    if start + size < full_size:
        weight[size - overlap :] *= rise.flip(0)
    return weight


@dataclass(frozen=True)
class TilingDifference:
    """Compares a reconstruction in chunks and tiles, as of `telecine reconstruct`, with that of the whole clip.

    `pieces_psnr` and `seam_psnr` are in dB, at most 100; larger is better. See `DEFINITIONS` of the protocol.
    """

    model: VideoAutoencoder
    chunk: int | None  # frames in a chunk, rounded up to a number that the model accepts; None: all frames
    overlap_frames: int  # frames that consecutive chunks share
    tiling: Tiling  # the tiles of a chunk, before they are rounded for the model

    @property
    def source(self) -> str:
        """The chunks and tiles, for the protocol."""
        frames = "all frames" if self.chunk is None else f"chunks of {self.chunk} frames, {self.overlap_frames} shared"
        size, overlap = self.tiling.size, self.tiling.overlap
        return f"{frames}; {'whole frames' if size is None else f'tiles of {size} pixels, {overlap} shared'}"

    def __call__(self, *, reconstruction: Video, target: Video) -> dict[str, float]:
        """Return both values of a clip `(1, 3, T, H, W)` in [-1, 1], reconstructed again: from the posterior's mode."""
        video = target[0]
        time, height, width = video.shape[1:]
        num_frames = time if self.chunk is None else self.model.covering_clip(self.chunk, height, width)[0]
        tiling = rounded_tiling(self.tiling, self.model)
        at_seam = self._at_seam((time, height, width), num_frames, tiling).to(video.device)
        whole = reconstruct_tiled(self.model, video, Tiling()).clamp(*VALUE_RANGE)
        tiled = reconstruct_in_chunks(self.model, video, num_frames, overlap=self.overlap_frames, tiling=tiling)
        tiled = tiled.clamp(*VALUE_RANGE)
        error = (tiled - whole).square().mean(0)
        worst = max(frame[seam].mean() for frame, seam in zip(error, at_seam, strict=True) if seam.any())
        between = psnr(reconstruction=tiled[None], target=whole[None])
        return {"pieces_psnr": float(between), "seam_psnr": float(psnr_of_mse(worst))}

    def _at_seam(self, size: tuple[int, int, int], num_frames: int, tiling: Tiling) -> Tensor:
        """Return which pixels of a clip are at a seam, `(T, H, W)`; raise a `ValueError` if none is."""
        time, height, width = size
        chunks = count_chunks(time, num_frames, self.overlap_frames)
        frames = _seams([index * (num_frames - self.overlap_frames) for index in range(chunks)], num_frames, time)
        padded = self.model.covering_clip(min(num_frames, time), height, width)[1:]
        rows, columns = (
            _seams(_tile_starts(full, tiling), tiling.size or full, side)
            for full, side in zip(padded, (height, width), strict=True)
        )
        at_seam = frames[:, None, None] | rows[:, None] | columns
        if not at_seam.any():
            contract = f"smaller than the clips of {time} x {height} x {width}, or `tile`"
            raise argument_error("chunk", contract, self.source, "Use smaller chunks or tiles, or longer clips.")
        return at_seam


def _seams(starts: Sequence[int], size: int, total: int) -> Tensor:
    """Return which of `total` positions two chunks or tiles of `size` share, or are beside the edge where they meet."""
    at_seam = torch.zeros(total, dtype=torch.bool)
    for start, following in pairwise(starts):
        first, last = (following, start + size) if following < start + size else (following - 1, following + 1)
        at_seam[first:last] = True
    return at_seam
