"""Reconstruction in chunks of time and tiles of space, which bound memory.

| function | does |
|---|---|
| `split_frames` | yields the chunks of a video, which may overlap |
| `reconstruct_clip` | returns the reconstruction of a clip, padded to a size that the model accepts |
| `reconstruct_clip_in_tiles` | the same, tile by tile |
| `iterate_reconstruction` | yields the chunks of a video with their reconstructions in tiles: streamed, or crossfaded |
| `reconstruct_video` | returns what that yields, for a clip |
| `crossfade_chunks` | blends the reconstructions of chunks where they overlap |
| `merge_tiles` | blends the reconstructions of tiles where they overlap |
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.models import VideoAutoencoder
from telecine.models.tiles import Tile, tiles_of_frame
from telecine.ops.pass_options import clip_position
from telecine.settings import Tiling, check_overlap


def split_frames(frames: Iterable[Tensor], num_frames: int, overlap: int) -> Iterator[Tensor]:
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
    """Return how many chunks `split_frames` makes of `total` frames.

    Args:
        total: Frames of the video.
        num_frames: Frames in a chunk.
        overlap: Frames that neighbours share.
    """
    num_after_first = max(0, total - num_frames)
    return 1 + -(-num_after_first // (num_frames - overlap))


def crossfade_chunks(
    chunks: Iterable[Tensor],
    overlap: int,
    reconstruct: Callable[[Tensor], Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the frames of `split_frames` once, with their reconstructions, blended linearly; both `(T, ...)`.

    Args:
        chunks: Chunks `(T, ...)`, as `split_frames` yields them.
        overlap: Frames that neighbours share.
        reconstruct: Maps a chunk to its reconstruction `(T, ...)`. It is called inside `clip_position`.
    """
    pending: tuple[Tensor, Tensor] | None = None
    first_frame = 0
    for chunk in chunks:
        with clip_position(first_frame=first_frame):
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


def reconstruct_video(
    model: VideoAutoencoder, video: Tensor, num_frames: int, *, overlap: int, tiling: Tiling
) -> Tensor:
    """Return the reconstruction of a clip in chunks and in tiles, `(C, T, H, W)`, not clamped.

    Args:
        model: The autoencoder.
        video: `(C, T, H, W)` in [-1, 1].
        num_frames: Frames in a chunk.
        overlap: Frames that neighbours share; 0 for a model that streams.
        tiling: The tiles, of sizes of `rounded_tiling`.
    """
    parts = []
    chunks = split_frames(video.transpose(0, 1), num_frames, overlap)
    for _, recon in iterate_reconstruction(model, chunks, num_frames, overlap, tiling):
        parts.append(recon)
    return torch.cat(parts).transpose(0, 1)


def iterate_reconstruction(
    model: VideoAutoencoder,
    chunks: Iterable[Tensor],
    num_frames: int,
    overlap: int,
    tiling: Tiling,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the frames of `split_frames` once, with their reconstructions, not clamped; both `(T, C, H, W)`.

    A model that streams has the reconstruction of the whole video. Others reconstruct each chunk by itself.

    Args:
        model: The autoencoder.
        chunks: Chunks `(T, C, H, W)` in [-1, 1], as `split_frames` yields them.
        num_frames: Frames in a chunk.
        overlap: Frames that neighbours share.
        tiling: The tiles, of sizes of `rounded_tiling`.

    Raises:
        ValueError: Chunks of a model that streams overlap.
    """
    if not model.streams:

        def reconstruct(chunk: Tensor) -> Tensor:
            return reconstruct_clip_in_tiles(model, chunk.transpose(0, 1), tiling).transpose(0, 1)

        yield from crossfade_chunks(chunks, overlap, reconstruct)
        return
    if overlap > 0:
        contract = "0 for a model that keeps frames between chunks, which have no seam"
        raise argument_error("overlap_frames", contract, overlap, "Leave it out.")
    stream: TiledStream | None = None
    pending: list[Tensor] = []
    for chunk in chunks:
        video = chunk.transpose(0, 1)
        if stream is None:
            stream = TiledStream(model, video.shape[2:], tiling, num_frames)
        pending.append(chunk)
        recon = stream.push(video)
        if recon is not None:
            waiting = torch.cat(pending)
            yield waiting[: recon.shape[1]], recon.transpose(0, 1)
            pending = [waiting[recon.shape[1] :]]
    if stream is not None:
        recon = stream.flush()
        if recon is not None:
            yield torch.cat(pending), recon.transpose(0, 1)


class TiledStream:
    """Reconstructs a video of any length, in tiles. Each tile has its encoder stream and its decoder stream.

    Args:
        model: A model that streams.
        frame_size: Height and width of the frames.
        tiling: The tiles, of sizes of `rounded_tiling`.
        num_frames: Largest number of frames that are computed at once.
    """

    def __init__(
        self, model: VideoAutoencoder, frame_size: Sequence[int], tiling: Tiling, num_frames: int
    ) -> None:
        self.frame_size = frame_size
        _, self.full_height, self.full_width = model.covering_clip(1, *frame_size)
        full_size = (self.full_height, self.full_width)
        self.tiles = list(tiles_of_frame(*full_size, tiling))
        self.encoders = [model.stream_encoder(num_frames) for _ in self.tiles]
        self.decoders = []
        for tile in self.tiles:
            with clip_position(frame_size=full_size, corner=tile.corner):
                self.decoders.append(model.stream_decoder(num_frames))
        self.num_frames = 0
        """Frames that were pushed."""
        self.num_done = 0
        """Frames whose reconstruction was returned."""
        self._last_frame: Tensor | None = None

    def push(self, video: Tensor) -> Tensor | None:
        """Return the reconstruction of the frames that are complete, `(C, T, H, W)`, not clamped; None if none is.

        Args:
            video: The next frames, `(C, T, H, W)` in [-1, 1].
        """
        self.num_frames += video.shape[1]
        self._last_frame = video[:, -1:].clone()
        padded = pad_to(video, (video.shape[1], self.full_height, self.full_width))
        parts = []
        for tile, encoder, decoder in zip(self.tiles, self.encoders, self.decoders, strict=True):
            posterior = encoder.push(padded[None, :, :, tile.rows, tile.columns])
            if posterior is None:
                continue
            output = decoder.push(posterior.mode())
            if output is not None:
                parts.append(output[0])
        return self._merge(parts)

    def flush(self) -> Tensor | None:
        """Return the reconstruction of the frames that are left: the video ends with copies of its last frame."""
        num_missing = self.encoders[0].num_missing
        assert self._last_frame is not None
        end = self._last_frame.expand(-1, num_missing, -1, -1)
        parts = []
        for tile, encoder, decoder in zip(self.tiles, self.encoders, self.decoders, strict=True):
            posteriors = []
            if num_missing > 0:
                padded = pad_to(end, (num_missing, self.full_height, self.full_width))
                posteriors.append(encoder.push(padded[None, :, :, tile.rows, tile.columns]))
            posteriors.append(encoder.flush())
            outputs = []
            for posterior in posteriors:
                if posterior is not None:
                    outputs.append(decoder.push(posterior.mode()))
            outputs.append(decoder.flush())
            videos = [output for output in outputs if output is not None]
            if videos:
                parts.append(torch.cat(videos, dim=2)[0])
        return self._merge(parts)

    def _merge(self, parts: Sequence[Tensor]) -> Tensor | None:
        """Return the next frames `(C, T, H, W)` without their padding.

        Args:
            parts: The video of each tile, `(C, T, h, w)`; empty if no frame is complete.
        """
        if not parts:
            return None
        height, width = self.frame_size
        recon = merge_tiles(parts, self.tiles, self.full_height, self.full_width)
        num_left = self.num_frames - self.num_done
        recon = recon[:, :num_left, :height, :width]
        self.num_done += recon.shape[1]
        return recon


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
def reconstruct_clip(model: VideoAutoencoder, video: Tensor) -> Tensor:
    """Return the reconstruction of a clip without tiles: it is padded and cropped as by `reconstruct_clip_in_tiles`.

    Args:
        model: The autoencoder.
        video: `(C, T, H, W)` in [-1, 1].
    """
    num_frames, height, width = video.shape[1:]
    padded = pad_to(video, model.covering_clip(num_frames, height, width))
    return model(padded[None], sample_posterior=False).video[0, :, :num_frames, :height, :width]


def reconstruct_clip_in_tiles(model: VideoAutoencoder, video: Tensor, tiling: Tiling) -> Tensor:
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
    full_size = model.covering_clip(num_frames, height, width)
    _, full_height, full_width = full_size
    tiles = list(tiles_of_frame(full_height, full_width, tiling))
    if len(tiles) == 1:
        return reconstruct_clip(model, video)
    padded = pad_to(video, full_size)
    parts = []
    for tile in tiles:
        with clip_position(frame_size=(full_height, full_width), corner=tile.corner):
            inputs = padded[None, :, :, tile.rows, tile.columns]
            parts.append(model(inputs, sample_posterior=False).video[0])
    return merge_tiles(parts, tiles, full_height, full_width)[:, :num_frames, :height, :width]


def merge_tiles(parts: Sequence[Tensor], tiles: Sequence[Tile], height: int, width: int) -> Tensor:
    """Return the video `(C, T, H, W)` of its tiles, which are blended linearly.

    Args:
        parts: The video of each tile, `(C, T, h, w)`.
        tiles: Where they lie.
        height: Height of the frames.
        width: Width of the frames.
    """
    if len(tiles) == 1:
        return parts[0]
    weighted_sum = parts[0].new_zeros(*parts[0].shape[:2], height, width)
    total_weight = parts[0].new_zeros(height, width)
    for part, tile in zip(parts, tiles, strict=True):
        weight = tile.weight.to(part)
        weighted_sum[:, :, tile.rows, tile.columns] += weight * part
        total_weight[tile.rows, tile.columns] += weight
    return weighted_sum.div_(total_weight)


def pad_to(video: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Repeat the last frame, row and column of `(C, T, H, W)` up to a size. Return a video of that size unchanged."""
    num_frames, height, width = video.shape[1:]
    if (num_frames, height, width) == tuple(size):
        return video
    padding = [0, size[2] - width, 0, size[1] - height, 0, size[0] - num_frames]
    return F.pad(video[None], padding, mode="replicate")[0]
