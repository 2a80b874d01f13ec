"""The sizes of clips that a run trains on, and which of them a step gets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import torch

from telecine.data.info import VideoInfo
from telecine.shapes import argument_error


@dataclass(frozen=True)
class Bucket:
    """One size of clips, and how often it is trained on."""

    num_frames: int
    """Frames in a clip."""
    height: int
    """Height of a clip in pixels."""
    width: int
    """Width of a clip in pixels."""
    weight: float = 1.0
    """Share of the steps that get this size, relative to the other buckets' weights."""

    def __post_init__(self) -> None:
        for name in ("num_frames", "height", "width"):
            check_count(name, getattr(self, name), least=1)
        if not 0.0 < self.weight < float("inf"):
            raise argument_error("weight", "above 0", self.weight, "Leave a bucket out that is never to be used.")

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height and width."""
        return self.num_frames, self.height, self.width

    def still(self) -> Bucket:
        """Return the same picture size with a single frame, which is what images have."""
        return replace(self, num_frames=1)

    def covered_by(self, info: VideoInfo, zoom: float) -> tuple[int, int]:
        """Return the `(height, width)` at which a video is read: the smallest that covers the crop, times the zoom."""
        scale = zoom * max(self.height / info.height, self.width / info.width)
        return max(self.height, round(info.height * scale)), max(self.width, round(info.width * scale))


def draw_bucket(buckets: Sequence[Bucket], generator: torch.Generator) -> Bucket:
    """Return one of the buckets at random, each as often as its weight says."""
    ends = list(accumulate(bucket.weight for bucket in buckets))
    point = float(torch.rand((), generator=generator, dtype=torch.float64)) * ends[-1]
    return buckets[min(bisect_right(ends, point), len(buckets) - 1)]


class AcceptsClips(Protocol):
    """What is asked of a model before it is trained on clips of several sizes."""

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` unless the model reproduces clips of this size."""

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest (frames, rows, columns) that `check_clip` accepts and that cover these."""


def check_buckets(buckets: Sequence[Bucket], model: AcceptsClips, *, images: bool) -> None:
    """Raise a `ValueError` that names the first bucket that a model does not reproduce, and the next larger size.

    Args:
        buckets: the sizes of the clips.
        model: what they are for.
        images: whether single frames of each height and width are used too.
    """
    for bucket in buckets:
        _check("a clip", bucket, model)
        if images:
            _check("an image", bucket.still(), model)


def _check(kind: str, bucket: Bucket, model: AcceptsClips) -> None:
    try:
        model.check_clip(*bucket.shape)
    except ValueError as error:
        covering = "x".join(map(str, model.covering_clip(*bucket.shape)))
        remedy = f"{error} The next larger size that it accepts is {covering}."
        raise argument_error("clips", "of sizes that the model reproduces", f"{kind} of {bucket}", remedy) from error


def check_count(name: str, value: int, least: int) -> None:
    """Raise an error unless `value` is a whole number, at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise argument_error(name, "a whole number", value, f"Use {least} or more.", TypeError)
    if value < least:
        raise argument_error(name, f"at least {least}", value, f"Use {least} or more.")
