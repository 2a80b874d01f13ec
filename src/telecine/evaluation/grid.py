"""A test for the grids that strided layers leave on flat regions."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from telecine.evaluation.definitions import FLAT_SHARE, GRID_PATCH, GRID_PERIODS, ROUNDING_VARIANCE
from telecine.shapes import Video, argument_error


def grid_excess(*, reconstruction: Video, target: Video, period: int) -> Tensor:
    """Return how much a grid of `period` pixels stands out in each clip more than in its target, `(B,)` in dB.

    A grid repeats itself every few pixels, so its power lies at one frequency and its multiples, while that of
    pictures falls off smoothly. Where pictures are flat, the power at that frequency over the geometric mean of that at
    the two frequencies beside it is therefore about 1 without a grid and far above it with one. The result is this
    ratio in the reconstruction over that in the target, as 10 log10: 0 for equal clips, above 0 where a grid was added,
    below 0 where the target's own (block edges of a codec) was removed.

    Means over colours give grey. Of the patches of 32 x 32 of all the clip's frames, without overlap, the quarter is
    taken whose grey values vary least in the target; the result is the mean over them, so that a flat one counts as
    much as a busier one. Each one's mean and slope are removed. Spectra are those of rows and of columns, averaged; 32
    holds a whole number of each period, so no window is needed. A grid with sharp lines shows at its multiples too: the
    largest period that stands out is the grid's. Rounding noise is added to all powers, so that a constant clip has a
    value.

    Raises:
        ValueError: the period is none of 2, 4, 8, 16, or a frame is smaller than a patch.
    """
    if period not in GRID_PERIODS:
        raise argument_error("period", f"one of {GRID_PERIODS}", period, "Take the autoencoder's spatial stride.")
    if min(target.shape[-2:]) < GRID_PATCH:
        remedy = "Evaluate at a larger size."
        raise argument_error("target", f"frames of at least {GRID_PATCH} x {GRID_PATCH}", target, remedy)
    pairs = zip(reconstruction, target, strict=True)
    return torch.stack([_excess(*flat_patches(*pair), period=period) for pair in pairs])


def flat_patches(reconstruction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cut grey patches `(N, 32, 32)` out of two clips `(3, T, H, W)`, where the second is flattest."""
    patches, goals = _patches(reconstruction), _patches(target)
    num_kept = max(1, round(FLAT_SHARE * len(goals)))
    flattest = goals.var(dim=(1, 2)).topk(num_kept, largest=False).indices
    return patches[flattest], goals[flattest]


def _patches(clip: Tensor) -> Tensor:
    rows, columns = (side // GRID_PATCH * GRID_PATCH for side in clip.shape[-2:])
    grey = clip.mean(0)[:, :rows, :columns]
    return rearrange(grey, "t (h p) (w q) -> (t h w) p q", p=GRID_PATCH, q=GRID_PATCH)


def _excess(patches: Tensor, goals: Tensor, *, period: int) -> Tensor:
    return 10 * (_prominence(patches, period).log10() - _prominence(goals, period).log10()).mean()


def _prominence(patches: Tensor, period: int) -> Tensor:
    """Return each patch's power at a period over the geometric mean of the powers at the frequencies beside it."""
    power = _power(patches) + ROUNDING_VARIANCE
    place = GRID_PATCH // period
    beside = [neighbour for neighbour in (place - 1, place + 1) if neighbour < power.shape[1]]
    return power[:, place] / power[:, beside].log().mean(1).exp()


def _power(patches: Tensor) -> Tensor:
    """Return each patch's mean power spectrum of rows and columns, `(N, 17)`; white noise has its variance in all."""
    level = without_slope(patches)
    rows = torch.fft.rfft(level, dim=2, norm="ortho").abs().square().mean(dim=1)
    columns = torch.fft.rfft(level, dim=1, norm="ortho").abs().square().mean(dim=2)
    return (rows + columns) / 2


def without_slope(patches: Tensor) -> Tensor:
    """Take the plane nearest to each patch `(N, S, S)` off it; a slope's jump at the edge has power everywhere."""
    size = patches.shape[-1]
    ramp = torch.arange(size).to(patches) - (size - 1) / 2
    ramp = ramp / ramp.norm()
    down = torch.einsum("nij,i->n", patches, ramp) / size
    across = torch.einsum("nij,j->n", patches, ramp) / size
    plane = down[:, None, None] * ramp[:, None] + across[:, None, None] * ramp
    return patches - plane - patches.mean(dim=(1, 2), keepdim=True)
