"""Reconstruction of videos of any length, chunk by chunk, so that memory does not depend on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from telecine.shapes import argument_error


def overlapping(frames: Iterable[Tensor], num_frames: int, overlap: int) -> Iterator[Tensor]:
    """Yield frames in chunks `(T, ...)` of `num_frames`, each beginning with the last `overlap` of the one before.

    The last chunk holds what is left, and at least one frame that no chunk before it had.

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


def check_overlap(num_frames: int, overlap: int) -> None:
    """Raise a `ValueError` unless chunks that overlap so much get on."""
    if not 0 <= overlap < num_frames:
        contract = f"at least 0 and below the chunk's {num_frames} frames"
        raise argument_error("overlap_frames", contract, overlap, "2 to 4 frames hide a seam.")


def count_chunks(total: int, num_frames: int, overlap: int) -> int:
    """Return how many chunks `overlapping` makes of `total` frames."""
    return 1 + max(0, -(-(total - num_frames) // (num_frames - overlap)))


def blended_chunks(
    chunks: Iterable[Tensor], overlap: int, reconstruct: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield consecutive input frames and their reconstructions, each frame once, `(T, ...)` both.

    Where chunks overlap, one reconstruction fades linearly into the next.

    Args:
        chunks: As `overlapping` makes them.
        overlap: How many frames each shares with the one before.
        reconstruct: Maps a chunk to floating point of the same number of frames.
    """
    held: tuple[Tensor, Tensor] | None = None
    for chunk in chunks:
        recon = reconstruct(chunk)
        if held is not None:
            recon = torch.cat([crossfade(held[1], recon[:overlap]), recon[overlap:]])
        done = max(0, len(chunk) - overlap)
        held = chunk[done:], recon[done:]
        if done > 0:
            yield chunk[:done], recon[:done]
    if held is not None and len(held[0]) > 0:
        yield held


def crossfade(before: Tensor, after: Tensor) -> Tensor:
    """Return frames that go linearly from `before` to `after`, both `(T, ...)`."""
    share = torch.arange(1, len(after) + 1, device=after.device, dtype=after.dtype) / (len(after) + 1)
    return torch.lerp(before, after, share.view(len(after), *[1] * (after.ndim - 1)))
