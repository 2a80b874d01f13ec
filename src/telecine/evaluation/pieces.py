"""How far a reconstruction in chunks of frames and tiles is from that of the whole clip, over all and at the seams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from telecine.autoencoders import VideoAutoencoder
from telecine.base.checks import argument_error
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.evaluation.pixel_metrics import psnr
from telecine.evaluation.tiling import (
    blended_chunks,
    count_chunks,
    overlapping_chunks,
    reconstruct_tiled,
    rounded_tiling,
    tile_starts,
)
from telecine.losses.reconstruction import psnr_of_mse
from telecine.settings import Tiling


@dataclass(frozen=True)
class Pieces:
    """Reconstructs clips whole and in pieces, as `telecine reconstruct` does, and compares the two.

    `pieces_psnr` is the PSNR between the two, over the clip. `seam_psnr` is that of the worst frame over its pixels at
    a seam: where pieces overlap, or the pixels on both sides of the edge where they meet. Both are in dB, at most 100;
    larger is better.
    """

    model: VideoAutoencoder
    """In eval mode."""
    chunk: int | None
    """Frames in a chunk, rounded up to a number that the model accepts. None: all frames."""
    overlap_frames: int
    """Frames that consecutive chunks share."""
    tiling: Tiling
    """The tiles of a chunk, before they are rounded for the model."""

    @property
    def source(self) -> str:
        """The pieces, for the protocol."""
        frames = "all frames" if self.chunk is None else f"chunks of {self.chunk} frames, {self.overlap_frames} shared"
        size, overlap = self.tiling.size, self.tiling.overlap
        return f"{frames}; {'whole frames' if size is None else f'tiles of {size} pixels, {overlap} shared'}"

    @torch.no_grad()
    def __call__(self, *, reconstruction: Video, target: Video) -> dict[str, float]:
        """Return both values of a clip `(1, 3, T, H, W)` in [-1, 1].

        The clip is reconstructed whole again, from the mode of its posterior; `reconstruction` is not used.

        Raises:
            ValueError: The clip fits into one piece.
        """
        video = target[0]
        at_seam = self._seams(video.shape[1:]).to(video.device)
        whole = reconstruct_tiled(self.model, video, Tiling()).clamp(*VALUE_RANGE)
        pieces = self._reconstruct(video).clamp(*VALUE_RANGE)
        error = (pieces - whole).square().mean(0)
        worst = max(frame[seam].mean() for frame, seam in zip(error, at_seam, strict=True) if seam.any())
        between = psnr(reconstruction=pieces[None], target=whole[None])
        return {"pieces_psnr": float(between), "seam_psnr": float(psnr_of_mse(worst))}

    def _num_frames(self, size: Sequence[int]) -> int:
        """Return how many frames of a clip of this size are in a chunk."""
        time, height, width = size
        return time if self.chunk is None else self.model.covering_clip(self.chunk, height, width)[0]

    def _reconstruct(self, video: Tensor) -> Tensor:
        """Return the reconstruction of `(3, T, H, W)` in pieces."""
        tiling = rounded_tiling(self.tiling, self.model)

        def reconstruct(chunk: Tensor) -> Tensor:
            return reconstruct_tiled(self.model, chunk.transpose(0, 1), tiling).transpose(0, 1)

        chunks = overlapping_chunks(video.transpose(0, 1), self._num_frames(video.shape[1:]), self.overlap_frames)
        parts = [reconstruction for _, reconstruction in blended_chunks(chunks, self.overlap_frames, reconstruct)]
        return torch.cat(parts).transpose(0, 1)

    def _seams(self, size: Sequence[int]) -> Tensor:
        """Return which pixels of a clip of this size are at a seam, `(T, H, W)`."""
        time, height, width = size
        num_frames, tiling = self._num_frames(size), rounded_tiling(self.tiling, self.model)
        chunks = count_chunks(time, num_frames, self.overlap_frames)
        frames = seams([index * (num_frames - self.overlap_frames) for index in range(chunks)], num_frames, time)
        padded = self.model.covering_clip(min(num_frames, time), height, width)[1:]
        rows, columns = (
            seams(tile_starts(full, tiling), tiling.size or full, side)
            for full, side in zip(padded, (height, width), strict=True)
        )
        at_seam = frames[:, None, None] | rows[:, None] | columns
        if not at_seam.any():
            contract = f"smaller than the clips of {time} x {height} x {width}, or `tile`"
            raise argument_error("chunk", contract, self.source, "Use smaller pieces, or longer clips.")
        return at_seam


def seams(starts: Sequence[int], size: int, total: int) -> Tensor:
    """Return which of `total` positions are at a seam of pieces of `size` positions that begin at `starts`, `(total,)`.

    These are the positions that two pieces share, or the two beside the edge where they meet.
    """
    at_seam = torch.zeros(total, dtype=torch.bool)
    for start, following in pairwise(starts):
        end = start + size
        first, last = (following, end) if following < end else (following - 1, following + 1)
        at_seam[first:last] = True
    return at_seam
