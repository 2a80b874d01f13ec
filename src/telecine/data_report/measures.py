"""Measures of frames: what is black, what is static, where a scene is cut, and which videos are copies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# A mean brightness below it, from 0 to 1, is black.
DARK = 0.05
# A mean change of brightness below it is none: half of a level of 8 bits.
STILL = 0.002
# At a cut the mean change is above CUT, and more than CUT_RATIO times the changes before and after it.
CUT = 0.06
CUT_RATIO = 2.5
# Bits of 64 in which the hashes of two frames may differ if one is a copy of the other.
MAX_BITS = 4
# Brightness is averaged over so many parts along height and width: the noise of single pixels is no change.
GRID = 32

DEFINITIONS = {
    "black": f"no frame has a mean brightness above {DARK:.0%}",
    "static": f"between no two frames the brightness changes by more than {STILL:.1%} on average",
    "cut": f"between two frames the brightness changes by more than {CUT:.0%} on average, and by more than "
    f"{CUT_RATIO:g} times the changes before and after; a dissolve is none",
    "copies": "videos with the same bytes, or whose frames at 1/4, 1/2 and 3/4 have difference hashes (64 signs of "
    f"differences of brightness) that differ in at most {MAX_BITS} bits each",
}

Hash = tuple[int, ...]


def brightness(frames: Tensor) -> Tensor:
    """Return the brightness of uint8 frames `(T, H, W, 3)` in [0, 1], averaged over a grid: `(T, 32, 32)`."""
    luma = frames.float() @ torch.tensor([0.299, 0.587, 0.114]) / 255
    return F.adaptive_avg_pool2d(luma, GRID)


def changes(grid: Tensor) -> Tensor:
    """Return the mean absolute change from each frame to the next, `(T - 1,)`, of what `brightness` returns."""
    return (grid[1:] - grid[:-1]).abs().mean(dim=(1, 2))


def is_black(grid: Tensor) -> bool:
    """Return whether all frames are black."""
    return bool(grid.mean(dim=(1, 2)).max() < DARK)


def is_static(grid: Tensor) -> bool:
    """Return whether nothing moves. A single frame is not static."""
    return len(grid) > 1 and bool(changes(grid).max() < STILL)


def cuts(grid: Tensor) -> list[int]:
    """Return the positions of the frames that begin a new scene."""
    if len(grid) < 2:
        return []
    found = changes(grid).tolist()
    before, after = [0.0, *found], [*found[1:], 0.0]
    others = [CUT_RATIO * max(pair) for pair in zip(before, after, strict=False)]
    return [index + 1 for index, change in enumerate(found) if change > max(CUT, others[index])]


def frame_hash(frame: Tensor) -> int | None:
    """Return the difference hash of a uint8 frame `(H, W, 3)`; None if it is flat, as black frames are."""
    luma = frame.float().mean(dim=-1)[None] / 255
    grid = F.adaptive_avg_pool2d(luma, (8, 9))[0]
    if grid.std() < STILL * 10:
        return None
    bits = (grid[:, 1:] > grid[:, :-1]).flatten().tolist()
    return sum(1 << index for index, bit in enumerate(bits) if bit)


def are_copies(first: Hash, second: Hash) -> bool:
    """Return whether two videos are copies by the hashes of their frames."""
    return len(first) == len(second) and all(
        (a ^ b).bit_count() <= MAX_BITS for a, b in zip(first, second, strict=True)
    )


def copies(hashes: Sequence[Hash]) -> list[list[int]]:
    """Return the groups of two or more videos that are copies of the first of their group, by position."""
    groups: list[list[int]] = []
    taken: set[int] = set()
    for index, found in enumerate(hashes):
        if index in taken:
            continue
        group = [index, *(other for other in range(index + 1, len(hashes)) if are_copies(found, hashes[other]))]
        if len(group) > 1:
            groups.append(group)
            taken.update(group)
    return groups
