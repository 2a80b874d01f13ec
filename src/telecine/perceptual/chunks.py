"""Comparing many frames with the memory of a few: chunk by chunk, each computed again for its gradient."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from telecine.perceptual.pairs import check_pair
from telecine.shapes import Frames, argument_error, describe

Distance = TypeVar("Distance", bound="Tensor | tuple[Tensor, ...]")
Out = TypeVar("Out", bound="Tensor | tuple[Tensor, ...]", covariant=True)


class Compare(Protocol[Out]):
    """Maps two batches of N frames to one tensor (N,), or to a tuple of such."""

    def __call__(self, *, reconstruction: Frames, target: Frames) -> Out:
        """Return what each frame of the one has to do with the same frame of the other."""


def in_chunks(
    compare: Compare[Distance], *, reconstruction: Frames, target: Frames, chunk_size: int | None
) -> Distance:
    """Return `compare(reconstruction=reconstruction, target=target)`, computed `chunk_size` frames at a time.

    What is kept for the backward does not grow with the number of frames, apart from the frames themselves: each
    chunk's forward is run again when its gradient is due (Chen et al., arXiv:1604.06174), which costs one more forward
    per backward and changes neither values nor gradients. Without gradients nothing is run twice.

    Args:
        compare: a distance that treats frames apart from each other and returns (N,), or a (named) tuple of such. It
            must be deterministic, as its second run uses another random state.
        reconstruction: (N, C, H, W).
        target: as `reconstruction`.
        chunk_size: how many frames are in memory at a time; `None`, or N and more, is one plain call.

    Returns:
        The distances of all frames in order, (N,) each, in the type that `compare` returns; the graph is kept and may
        be walked more than once.

    Raises:
        ValueError: `chunk_size` is below 1, or the two are no frames of one shape and device.
        TypeError: `chunk_size` is neither an integer nor `None`.
    """
    check_chunk_size(chunk_size)
    check_pair(reconstruction=reconstruction, target=target)
    if chunk_size is None or chunk_size >= len(reconstruction):
        return compare(reconstruction=reconstruction, target=target)

    def run(x: Frames, y: Frames) -> Distance:
        return compare(reconstruction=x, target=y)

    pairs = zip(reconstruction.split(chunk_size), target.split(chunk_size), strict=True)
    # Nothing is drawn, so no random state is kept. With gradients disabled this is a plain call.
    return _concatenate([checkpoint(run, x, y, use_reentrant=False, preserve_rng_state=False) for x, y in pairs])


def check_chunk_size(value: Any) -> None:
    """Raise a `ValueError` or `TypeError` unless `value` is a positive int or `None`."""
    contract, remedy = "a positive int or None", "Pass None for all frames at once, 1 for the least memory."
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise argument_error("chunk_size", contract, describe(value), remedy, TypeError)
    if value is not None and value < 1:
        raise argument_error("chunk_size", contract, value, remedy)


def _concatenate(parts: list[Distance]) -> Distance:
    first = parts[0]
    if isinstance(first, Tensor):
        return cast(Distance, torch.cat(cast("list[Tensor]", parts)))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    make = getattr(type(first), "_make", type(first))  # a named tuple's way to be built from an iterable
    return make(columns)
