"""Measures of frames: what is unusual about a clip, where a video is cut, and which files are copies."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_DARK = 0.05  # a mean brightness below it, from 0 to 1, is black
_STILL = 0.002  # a mean change of brightness below it is none: half of a level of 8 bits
_CUT = 0.06  # at a cut the mean change is above it, and more than _CUT_RATIO times the changes before and after
_CUT_RATIO = 2.5
# The largest number of its 64 bits in which the hash of an image, or of each of three frames of a video, may differ
# from that of a copy. Of 41 clips of photographs that were encoded again (x264, crf 30), 34 differ in at most 4 bits
# and all in at most 8. Of 3362 pairs of clips of other photographs, two do not differ in more: skies and walls without
# a detail.
_MAX_BITS = 8
_MAX_BITS_OF_IMAGE = 4
_GRID = 32  # parts of height and of width over which brightness is averaged: the noise of single pixels is no change

DEFINITIONS = {
    "black": f"no frame has a mean brightness above {_DARK:.0%}",
    "static": f"between no two frames the brightness changes by more than {_STILL:.1%} on average",
    "cut": (
        f"between two frames the brightness changes by more than {_CUT:.0%} on average, and by more than "
        f"{_CUT_RATIO:g} times the changes before and after; a dissolve is none"
    ),
    "copies": (
        "videos with the same bytes (of more than 1 MiB, the same size and 16 evenly spaced blocks), or whose frames "
        "at 1/4, 1/2 and 3/4 have difference hashes (64 signs of differences of brightness) that differ in at most "
        f"{_MAX_BITS} bits each; for images {_MAX_BITS_OF_IMAGE}"
    ),
}
"""What the page and data.json say about clips and files."""


def brightness(frames: Tensor) -> Tensor:
    """Return the brightness of uint8 frames `(T, H, W, 3)` in [0, 1], averaged over a grid: `(T, 32, 32)`."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    luma = frames.float() @ weights / 255
    return F.adaptive_avg_pool2d(luma, _GRID)


def changes(grid: Tensor) -> Tensor:
    """Return the mean absolute change of `brightness` from each frame to the next, `(T - 1,)`."""
    return (grid[1:] - grid[:-1]).abs().mean(dim=(1, 2))


def find_cuts(frame_changes: Sequence[float]) -> list[int]:
    """Return the position of each frame that begins a new scene, from the `changes` of all frames."""
    cuts = []
    for index, change in enumerate(frame_changes):
        before = frame_changes[index - 1] if index > 0 else 0.0
        after = frame_changes[index + 1] if index + 1 < len(frame_changes) else 0.0
        if change > max(_CUT, _CUT_RATIO * max(before, after)):
            cuts.append(index + 1)
    return cuts


def find_flaws(frames: Tensor) -> list[str]:
    """Return what is unusual about a clip of uint8 frames `(T, H, W, 3)`. A single frame is not static."""
    grid = brightness(frames)
    frame_changes = changes(grid)
    flaws = []
    if grid.mean(dim=(1, 2)).max() < _DARK:
        flaws.append("black")
    elif len(grid) > 1 and frame_changes.max() < _STILL:
        flaws.append("static")
    for position in find_cuts(frame_changes.tolist()):
        flaws.append(f"cut before frame {position}")
    return flaws


def frame_hash(frame: Tensor) -> int | None:
    """Return the difference hash of a uint8 frame `(H, W, 3)`; None if it is flat, as black frames are."""
    grey = frame.float().mean(dim=-1) / 255
    grid = F.adaptive_avg_pool2d(grey[None], (8, 9))[0]
    if grid.std() < _STILL * 10:
        return None
    bits = (grid[:, 1:] > grid[:, :-1]).flatten().tolist()
    return sum(1 << index for index, bit in enumerate(bits) if bit)


def group_copies(hashes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Return the groups of two or more files, by position, that are copies of the first of their group.

    Args:
        hashes: The `frame_hash` of each of a file's frames. Files of other numbers of frames are no copies.
    """
    groups = []
    left = list(range(len(hashes)))
    while left:
        first = hashes[left[0]]
        copies = [index for index in left if _are_copies(first, hashes[index])]
        left = [index for index in left if index not in copies]
        if len(copies) > 1:
            groups.append(copies)
    return groups


def _are_copies(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    if len(first) != len(second):
        return False
    limit = _MAX_BITS if len(first) > 1 else _MAX_BITS_OF_IMAGE
    return all((a ^ b).bit_count() <= limit for a, b in zip(first, second, strict=True))
