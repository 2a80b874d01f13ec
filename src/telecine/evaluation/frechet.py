"""The Frechet distance between the features of two sets of videos."""

from __future__ import annotations

import torch
from torch import Tensor

from telecine.shapes import argument_error


def frechet_distance(*, features: Tensor, reference: Tensor) -> float:
    """Return the squared Frechet distance between Gaussians fitted to two sets of features; smaller is better.

    |m - n|^2 + tr(S + R - 2 (S^1/2 R S^1/2)^1/2), with means m, n and covariances S, R (divided by the number of
    samples less one) of the two: equation 6 of arXiv 1706.08500, which for video features is FVD (arXiv 1812.01717).
    Computed in float64. The square root is taken of a symmetric matrix through its eigenvalues, those that rounding
    made negative counting as 0, so that it is real and exists for singular covariances.

    Args:
        features: `(N, D)`, a row for each video of one set.
        reference: `(M, D)`, the same of the other.

    Raises:
        ValueError: the two are no such matrices, or have fewer rows than `samples_needed`.
    """
    _check(features, "features")
    _check(reference, "reference")
    if features.shape[1] != reference.shape[1]:
        remedy = "Take the features of one network."
        raise argument_error("features", f"of {reference.shape[1]} columns, as `reference`", features, remedy)
    x, y = features.double(), reference.double()
    root = _square_root(x.T.cov())
    shared = torch.linalg.eigvalsh(root @ y.T.cov() @ root).clamp(min=0).sqrt().sum()
    traces = x.var(dim=0).sum() + y.var(dim=0).sum()
    distance = (x.mean(0) - y.mean(0)).square().sum() + traces - 2 * shared
    return float(distance.clamp(min=0))


def samples_needed(num_features: int) -> int:
    """Return how many samples a covariance needs to have full rank: with fewer, the distance is that of a subspace."""
    return num_features + 1


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _check(features: Tensor, name: str) -> None:
    if features.ndim != 2 or not features.is_floating_point():
        raise argument_error(name, "floating point of shape (N, D)", features, "Give each video one row.")
    if len(features) < samples_needed(features.shape[1]):
        contract = f"at least {samples_needed(features.shape[1])} rows for {features.shape[1]} columns"
        raise argument_error(name, contract, features, "Measure more clips: with fewer the covariance is singular.")
