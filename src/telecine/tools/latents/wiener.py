"""The best linear denoiser of latents, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from einops import rearrange
from torch import Tensor

from telecine.base.checks import argument_error

# Patches for each of their values from which a covariance is estimated, at least: the filter of white noise then leaves
# at most 2 % more than the best one.
_ROWS_PER_VALUE = 32
_MAX_VALUES = 1024


@dataclass(frozen=True)
class WienerFilter:
    """The linear map of noisy patches of latents with the smallest squared error, from their mean and covariance.

    With a latent `x`, normal noise `eps` and `x_t = (1 - t) x + t eps`, it predicts `x` (Wiener, 1949), and with it the
    velocity `eps - x`. In the direction of an eigenvector of the covariance with the eigenvalue `v`, it leaves a
    velocity error of `v / ((1 - t)^2 v + t^2)`.
    """

    patch: tuple[int, int, int]
    """Frames, height and width of a patch."""
    mean: Tensor
    """Mean of a patch, `(D,)` in float64."""
    eigenvalues: Tensor
    """Eigenvalues of the covariance, `(D,)`."""
    eigenvectors: Tensor
    """Columns `(D, D)`."""

    @classmethod
    def fit(cls, latents: Tensor, patch: tuple[int, int, int] | None = None) -> WienerFilter:
        """Return the filter of latents for patches anywhere in them.

        Args:
            latents: `(N, C, t, h, w)`.
            patch: Frames, height and width of a patch. None: as large as the number of latents allows.

        Raises:
            ValueError: There are too few latents for patches of one position.
        """
        if patch is None:
            patch = largest_patch(latents)
        rows = _rows(latents, patch).cpu().double()
        eigenvalues, eigenvectors = torch.linalg.eigh(rows.T.cov(correction=0))
        return cls(patch, rows.mean(0), eigenvalues.clamp(min=0), eigenvectors)

    def velocity(self, noisy: Tensor, level: float) -> Tensor:
        """Return the predicted velocity of noisy latents `(N, C, t, h, w)` at a level in (0, 1]."""
        gain = (1 - level) * self.eigenvalues / ((1 - level) ** 2 * self.eigenvalues + level**2)
        rows = _rows(noisy, self.patch).cpu().double()
        clean = (
            self.mean
            + (rows - (1 - level) * self.mean) @ (self.eigenvectors * gain) @ self.eigenvectors.T
        )
        p, q, r = self.patch
        num_frames, height, width = noisy.shape[2:]
        velocity = rearrange(
            (rows - clean) / level,
            "(b t h w) (c p q r) -> b c (t p) (h q) (w r)",
            p=p,
            q=q,
            r=r,
            t=num_frames // p,
            h=height // q,
            w=width // r,
        )
        return velocity.to(noisy)


def _rows(latents: Tensor, patch: tuple[int, int, int]) -> Tensor:
    p, q, r = patch
    return rearrange(latents, "b c (t p) (h q) (w r) -> (b t h w) (c p q r)", p=p, q=q, r=r)


def largest_patch(latents: Tensor) -> tuple[int, int, int]:
    """Return the frames, height and width of the largest patches whose covariance the latents determine.

    Raises:
        ValueError: There are too few latents `(N, C, t, h, w)` for patches of one position.
    """
    channels, *size = latents.shape[1:]
    num_positions = min(_MAX_VALUES, math.isqrt(latents.numel() // _ROWS_PER_VALUE)) // channels
    if num_positions == 0:
        contract = f"at least {_ROWS_PER_VALUE * channels} positions for {channels} channels"
        raise argument_error("latents", contract, latents, "Use more clips.")
    num_frames, height, width = size
    patches = product(_divisors(num_frames), _divisors(height), _divisors(width))
    small_patches = [patch for patch in patches if math.prod(patch) <= num_positions]
    # Of patches of the same size, the most compact.
    return max(small_patches, key=lambda patch: (math.prod(patch), -sum(patch)))


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
