"""Tiles of a frame that overlap, and the weights with which they are blended."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from telecine.settings import Tiling


class Tile(NamedTuple):
    """A part of a frame."""

    rows: slice
    columns: slice
    weight: Tensor
    """Of each pixel, `(h, w)`: 1, and falling linearly where the tile overlaps another one."""

    @property
    def corner(self) -> tuple[int, int]:
        """The first row and the first column."""
        return self.rows.start, self.columns.start


def tiles_of_frame(height: int, width: int, tiling: Tiling) -> Iterator[Tile]:
    """Yield the tiles that cover a frame.

    Args:
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.
        tiling: The size of the tiles, and what neighbours share; a single tile if the size is None.
    """
    tile_height = height if tiling.size is None else min(tiling.size, height)
    tile_width = width if tiling.size is None else min(tiling.size, width)
    for top in tile_starts(height, tiling):
        for left in tile_starts(width, tiling):
            row_weight = _ramp(top, tile_height, height, tiling.overlap)
            column_weight = _ramp(left, tile_width, width, tiling.overlap)
            yield Tile(
                rows=slice(top, top + tile_height),
                columns=slice(left, left + tile_width),
                weight=row_weight[:, None] * column_weight,
            )


def tile_starts(side: int, tiling: Tiling) -> list[int]:
    """Return where tiles start along a side. The last one ends with the side, so its overlap may be larger."""
    if tiling.size is None or side <= tiling.size:
        return [0]
    starts = list(range(0, side - tiling.size, tiling.size - tiling.overlap))
    starts.append(side - tiling.size)
    return starts


def _ramp(start: int, size: int, full_size: int, overlap: int) -> Tensor:
    """Return a tile's weights along one side: 1, and falling linearly over the overlap at an inner edge."""
    rise = torch.arange(1, overlap + 1) / (overlap + 1)
    weight = torch.ones(size)
    if start > 0:
        weight[:overlap] *= rise
    if start + size < full_size:
        weight[size - overlap :] *= rise.flip(0)
    return weight
