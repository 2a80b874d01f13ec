"""Reconstruction in chunks of time and tiles of space, which bound memory, and its difference from the whole clip's."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.evaluation.metric import Metric, register
from telecine.evaluation.pixel_metrics import psnr
from telecine.losses.reconstruction import MAX_PSNR, psnr_of_mse
from telecine.models import VideoAutoencoder
from telecine.models.interface import clip_position
from telecine.models.tiles import tile_starts, tiles_of_frame
from telecine.settings import Tiling, check_overlap

PIECES_PSNR = register(
    Metric(
        name="pieces_psnr",
        unit="dB",
        definition="PSNR between the reconstruction of the whole clip and that in pieces, both clamped, "
        f"at most {MAX_PSNR:g}",
    )
)
SEAM_PSNR = register(
    Metric(
        name="seam_psnr",
        unit="dB",
        definition="as pieces_psnr, of the worst frame, over its pixels at a seam: where pieces overlap, or the pixels "
        "on both sides of the edge where they meet",
    )
)


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


@dataclass(frozen=True)
class TilingDifference:
    """Compares a reconstruction in chunks and tiles, as of `telecine reconstruct`, with that of the whole clip.

    `pieces_psnr` and `seam_psnr` are in dB, at most 100; larger is better.
    """

    model: VideoAutoencoder
    chunk: int | None
    """Frames in a chunk, rounded up to a number that the model accepts. None: all frames."""
    overlap_frames: int
    """Frames that consecutive chunks share."""
    tiling: Tiling
    """The tiles of a chunk, before they are rounded for the model."""
    metrics = (PIECES_PSNR, SEAM_PSNR)

    @property
    def source(self) -> str:
        """The chunks and tiles, for the protocol."""
        frames = "all frames"
        if self.chunk is not None:
            frames = f"chunks of {self.chunk} frames, {self.overlap_frames} shared"
        tiles = "whole frames"
        if self.tiling.size is not None:
            tiles = f"tiles of {self.tiling.size} pixels, {self.tiling.overlap} shared"
        return f"{frames}; {tiles}"

    def __call__(self, *, reconstruction: Video, target: Video) -> dict[str, float]:
        """Return both values of a clip.

        Args:
            reconstruction: Not used: the clip is reconstructed again, from the posterior's mode.
            target: `(1, C, T, H, W)` in [-1, 1].

        Raises:
            ValueError: The clip has no seam.
        """
        video = target[0]
        num_frames, height, width = video.shape[1:]
        chunk_frames = num_frames
        if self.chunk is not None:
            chunk_frames = self.model.covering_clip(self.chunk, height, width)[0]
        tiling = rounded_tiling(self.tiling, self.model)
        at_seam = self._at_seam((num_frames, height, width), chunk_frames, tiling).to(video.device)
        whole = reconstruct_tiled(self.model, video, Tiling()).clamp(*VALUE_RANGE)
        tiled = reconstruct_in_chunks(
            self.model, video, chunk_frames, overlap=self.overlap_frames, tiling=tiling
        )
        tiled = tiled.clamp(*VALUE_RANGE)
        pieces_psnr = psnr(reconstruction=tiled[None], target=whole[None])
        error = (tiled - whole).square().mean(0)
        seam_errors = []
        for frame_error, seam in zip(error, at_seam, strict=True):
            if seam.any():
                seam_errors.append(frame_error[seam].mean())
        seam_psnr = psnr_of_mse(max(seam_errors))
        return {PIECES_PSNR.name: float(pieces_psnr), SEAM_PSNR.name: float(seam_psnr)}

    def _at_seam(self, size: tuple[int, int, int], chunk_frames: int, tiling: Tiling) -> Tensor:
        """Return which pixels of a clip are at a seam, `(T, H, W)`; raise a `ValueError` if none is."""
        num_frames, height, width = size
        num_chunks = count_chunks(num_frames, chunk_frames, self.overlap_frames)
        chunk_starts = [index * (chunk_frames - self.overlap_frames) for index in range(num_chunks)]
        frames = seams(chunk_starts, chunk_frames, num_frames)
        _, full_height, full_width = self.model.covering_clip(
            min(chunk_frames, num_frames), height, width
        )
        rows = seams(tile_starts(full_height, tiling), tiling.size or full_height, height)
        columns = seams(tile_starts(full_width, tiling), tiling.size or full_width, width)
        at_seam = frames[:, None, None] | rows[:, None] | columns
        if not at_seam.any():
            contract = f"smaller than the clips of {num_frames} x {height} x {width}, or `tile`"
            raise argument_error(
                "chunk", contract, self.source, "Use smaller chunks or tiles, or longer clips."
            )
        return at_seam


def seams(starts: Sequence[int], size: int, total: int) -> Tensor:
    """Return a mask of the positions at a seam: in two chunks or tiles, or beside the edge where they meet.

    Args:
        starts: The first position of each chunk or tile.
        size: Positions in a chunk or tile.
        total: Number of positions.
    """
    at_seam = torch.zeros(total, dtype=torch.bool)
    for start, following in pairwise(starts):
        end = start + size
        if following < end:
            at_seam[following:end] = True
        else:
            at_seam[following - 1 : following + 1] = True
    return at_seam
