"""Clip sizes (buckets): which one a step trains on, and whether a model accepts them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch

from telecine.base.checks import argument_error
from telecine.settings import Bucket


def draw_bucket(buckets: Sequence[Bucket], generator: torch.Generator) -> Bucket:
    """Draw a bucket with probability proportional to its weight."""
    ends = list(accumulate(bucket.weight for bucket in buckets))
    point = float(torch.rand((), generator=generator, dtype=torch.float64)) * ends[-1]
    return buckets[min(bisect_right(ends, point), len(buckets) - 1)]


class SupportsClipSizes(Protocol):
    """A model that accepts only some clip sizes."""

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` unless the model reconstructs clips of this size."""

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest accepted (frames, height, width) that is at least this large."""


def check_buckets(buckets: Sequence[Bucket], model: SupportsClipSizes, *, images: bool) -> None:
    """Check that a model accepts all clip sizes.

    Args:
        buckets: The clip sizes.
        model: The model.
        images: Whether to check single frames of each height and width too.

    Raises:
        ValueError: the model does not accept a size. The message has that size and the next larger accepted one.
    """
    for bucket in buckets:
        _check_bucket("a clip", bucket, model)
        if images:
            _check_bucket("an image", bucket.as_image(), model)


def _check_bucket(kind: str, bucket: Bucket, model: SupportsClipSizes) -> None:
    try:
        model.check_clip(*bucket.shape)
    except ValueError as error:
        covering = "x".join(map(str, model.covering_clip(*bucket.shape)))
        remedy = f"{error} The next larger accepted size is {covering}."
        raise argument_error("clips", "of sizes that the model accepts", f"{kind} of {bucket}", remedy) from error
