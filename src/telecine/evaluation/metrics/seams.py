"""The difference between a reconstruction in chunks and tiles and that of the whole clip."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.evaluation.metrics.measure import ClipValues
from telecine.evaluation.metrics.metric import Metric, register
from telecine.evaluation.metrics.pixels import psnr
from telecine.evaluation.tiling import (
    count_chunks,
    reconstruct_clip,
    reconstruct_video,
    rounded_tiling,
)
from telecine.losses.reconstruction import MAX_PSNR, psnr_of_mse
from telecine.models import VideoAutoencoder
from telecine.models.tiles import tile_starts
from telecine.settings import Tiling

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
    def method(self) -> str:
        """The chunks and tiles, for `protocol.json`."""
        frames = "all frames"
        if self.chunk is not None:
            frames = f"chunks of {self.chunk} frames, {self.overlap_frames} shared"
        tiles = "whole frames"
        if self.tiling.size is not None:
            tiles = f"tiles of {self.tiling.size} pixels, {self.tiling.overlap} shared"
        return f"{frames}; {tiles}"

    def __call__(self, *, reconstruction: Video, target: Video) -> ClipValues:
        """Return both values of a clip, reconstructed from its posterior's mode.

        Args:
            reconstruction: Not used: it may be that of a sample of the posterior.
            target: The clip, `(1, C, T, H, W)` in [-1, 1].

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
        whole = reconstruct_clip(self.model, video).clamp(*VALUE_RANGE)
        tiled = reconstruct_video(
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
        return ClipValues({PIECES_PSNR.name: float(pieces_psnr), SEAM_PSNR.name: float(seam_psnr)})

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
                "chunk", contract, self.method, "Use smaller chunks or tiles, or longer clips."
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
