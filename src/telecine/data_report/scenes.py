"""Cuts in whole videos, and the list of the scenes between them."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.files import atomic_write
from telecine.base.terminal import with_progress
from telecine.data import DecodeError, Span, VideoInfo, iterate_frames
from telecine.data.source import RemotePath, Source

CUT = 0.06  # at a cut the mean change is above it, and more than CUT_RATIO times the changes before and after
CUT_RATIO = 2.5
GRID = 32  # parts of height and of width over which brightness is averaged: the noise of single pixels is no change
_DECODED_SIZE = (64, 64)
logger = logging.getLogger(__name__)


def brightness(frames: Tensor) -> Tensor:
    """Return the brightness of uint8 frames `(T, H, W, 3)` in [0, 1], averaged over a grid: `(T, 32, 32)`."""
    luma = frames.float() @ torch.tensor([0.299, 0.587, 0.114]) / 255
    return F.adaptive_avg_pool2d(luma, GRID)


def changes(grid: Tensor) -> Tensor:
    """Return the mean absolute change of `brightness` from each frame to the next, `(T - 1,)`."""
    return (grid[1:] - grid[:-1]).abs().mean(dim=(1, 2))


def cuts(found: Sequence[float]) -> list[int]:
    """Return the position of each frame that begins a new scene, from the `changes` of all frames."""
    neighbours = zip([0.0, *found], [*found[1:], 0.0], strict=False)
    limits = [max(CUT, CUT_RATIO * max(pair)) for pair in neighbours]
    return [index for index, (change, limit) in enumerate(zip(found, limits, strict=False), 1) if change > limit]


def find_cuts(infos: Sequence[VideoInfo], max_frames: int) -> dict[Source, list[int]]:
    """Return the cuts in each of the first videos that have `max_frames` together, unless a frame does not decode."""
    found: dict[Source, list[int]] = {}
    videos = [info for info in infos if not info.is_image]
    ends = torch.tensor([info.num_frames for info in videos]).cumsum(0).tolist()
    few = [info for info, end in zip(videos, ends, strict=True) if end <= max_frames]
    for info in with_progress(few, "finding cuts"):
        grids = (brightness(frame[None]) for frame in iterate_frames(info.path, _DECODED_SIZE))
        try:
            all_changes = [float(changes(torch.cat(pair))) for pair in pairwise(grids)]
        except DecodeError as error:  # training replaces the clips of such a file, too
            logger.warning("no cuts were searched for in %s: %s", info.path, error)
            continue
        if len(all_changes) == info.num_frames - 1:  # an edit list may leave out some
            found[info.path] = cuts(all_changes)
    return found


def scenes_of(spans: Sequence[Span], cuts: dict[Source, list[int]]) -> Iterator[Span]:
    """Yield the parts of spans between the cuts of their videos."""
    for span in spans:
        inside = (cut for cut in cuts.get(span.info.path, ()) if span.first_frame < cut <= span.last_frame)
        for first, end in pairwise([span.first_frame, *inside, span.last_frame + 1]):
            yield Span(span.info, first, end - 1)


def write_scenes(path: Path, scenes: Sequence[Span]) -> None:
    """Write scenes as a list that `--data` reads. Paths are absolute; members of tar files have none."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "start_frame", "end_frame"])
    for scene in scenes:
        source = scene.info.path
        name = source.url if isinstance(source, RemotePath) else str(Path(str(source)).absolute())
        writer.writerow([name, scene.first_frame, scene.last_frame + 1])
    atomic_write(path, lambda partial: partial.write_text(text.getvalue(), encoding="utf-8", newline=""))
