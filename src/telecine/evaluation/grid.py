"""Metric for the grid artifacts that strided layers leave on flat regions."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.shapes import Video
from telecine.evaluation.definitions import FLAT_FRACTION, GRID_PATCH, GRID_PERIODS, ROUNDING_VARIANCE


def grid_excess(*, reconstruction: Video, target: Video, period: int) -> Tensor:
    """Return how much stronger a grid of `period` pixels is in each clip than in its target, `(B,)` in dB.

    A grid repeats every `period` pixels, so its power lies at one frequency and its multiples, while the spectrum of a
    natural image falls off smoothly. In flat regions, the power at the grid's frequency divided by the geometric mean
    of the powers at the two neighbouring frequencies is therefore about 1 without a grid and far larger with one. The
    result is 10 log10 of this ratio in the reconstruction over the ratio in the target: 0 for identical clips, positive
    if a grid was added, negative if a grid of the target was removed (such as the block edges of a codec).

    The mean over colours gives grey frames. They are cut into patches of 32 x 32 without overlap, and the quarter with
    the smallest variance in the target is kept. Each patch's mean and slope are removed, then the spectra of its rows
    and columns are averaged. 32 pixels hold a whole number of every period, so no window function is needed. The result
    is the mean over patches in dB, so that flat patches count as much as busy ones. Sharp grid lines also appear at the
    multiples of their frequency: the largest period with a large value is the period of the grid. The variance of 8-bit
    rounding is added to all powers, so that constant clips have a finite value.

    Raises:
        ValueError: The period is not 2, 4, 8 or 16, or a frame is smaller than a patch.
    """
    if period not in GRID_PERIODS:
        raise argument_error("period", f"one of {GRID_PERIODS}", period, "Use the autoencoder's spatial stride.")
    if min(target.shape[-2:]) < GRID_PATCH:
        remedy = "Evaluate at a larger size."
        raise argument_error("target", f"frames of at least {GRID_PATCH} x {GRID_PATCH}", target, remedy)
    pairs = zip(reconstruction, target, strict=True)
    return torch.stack([_excess(*flat_patches(*pair), period=period) for pair in pairs])


def flat_patches(reconstruction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return grey patches `(N, 32, 32)` of two clips `(3, T, H, W)`, at the places where the target is flattest."""
    recon_patches, target_patches = _grey_patches(reconstruction), _grey_patches(target)
    num_kept = max(1, round(FLAT_FRACTION * len(target_patches)))
    flattest = target_patches.var(dim=(1, 2)).topk(num_kept, largest=False).indices
    return recon_patches[flattest], target_patches[flattest]


def _grey_patches(clip: Tensor) -> Tensor:
    rows, columns = (side // GRID_PATCH * GRID_PATCH for side in clip.shape[-2:])
    grey = clip.mean(0)[:, :rows, :columns]
    return rearrange(grey, "t (h p) (w q) -> (t h w) p q", p=GRID_PATCH, q=GRID_PATCH)


def _excess(recon_patches: Tensor, target_patches: Tensor, *, period: int) -> Tensor:
    return 10 * (_peak_ratio(recon_patches, period).log10() - _peak_ratio(target_patches, period).log10()).mean()


def _peak_ratio(patches: Tensor, period: int) -> Tensor:
    """Return each patch's power at a period over the geometric mean of the powers at the neighbouring frequencies."""
    power = _power_spectrum(patches) + ROUNDING_VARIANCE
    frequency = GRID_PATCH // period
    neighbours = [other for other in (frequency - 1, frequency + 1) if other < power.shape[1]]
    return power[:, frequency] / power[:, neighbours].log().mean(1).exp()


def _power_spectrum(patches: Tensor) -> Tensor:
    """Return each patch's mean power spectrum of rows and columns, `(N, 17)`; that of white noise is its variance."""
    detrended = remove_plane(patches)
    rows = torch.fft.rfft(detrended, dim=2, norm="ortho").abs().square().mean(dim=1)
    columns = torch.fft.rfft(detrended, dim=1, norm="ortho").abs().square().mean(dim=2)
    return (rows + columns) / 2


def remove_plane(patches: Tensor) -> Tensor:
    """Subtract the best-fitting plane from each patch `(N, S, S)`.

    A slope would jump at the patch's edge, and a jump has power at all frequencies.
    """
    size = patches.shape[-1]
    ramp = torch.arange(size).to(patches) - (size - 1) / 2
    ramp = ramp / ramp.norm()
    vertical = torch.einsum("nij,i->n", patches, ramp) / size
    horizontal = torch.einsum("nij,j->n", patches, ramp) / size
    plane = vertical[:, None, None] * ramp[:, None] + horizontal[:, None, None] * ramp
    return patches - plane - patches.mean(dim=(1, 2), keepdim=True)
