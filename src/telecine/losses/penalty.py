"""Penalties on the discriminator's gradient with respect to its input."""

from __future__ import annotations

import torch
from torch import Tensor

from telecine.precision import at_least_float32
from telecine.shapes import Scalar


def gradient_penalty(*, real: Tensor, logits: Tensor, center: float = 1.0) -> Scalar:
    """Return the mean over the batch of `(|| d sum(logits) / d real_b ||_2 - center)^2`.

    The norm is that of WGAN-GP (Gulrajani et al., arXiv:1704.00028, equation 3), taken on the real samples instead
    of on interpolates, as MAGVIT-2's public code and CogVideo do. It runs over every axis but the batch.

    Args:
        real: The real samples `(B, ...)` that `logits` were computed from; must require gradients.
        logits: Their logits; one logit a sample or a map of them, of samples that do not see each other.
        center: The gradient norm at which the penalty vanishes.

    Returns:
        A 0-d tensor >= 0 whose graph leads to the discriminator's parameters (a double backward).
    """
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return (sample_norms(gradient) - center).square().mean()


def sample_norms(tensor: Tensor) -> Tensor:
    """Return the 2-norm of each sample over every axis but the first, shape `(B,)`, in at least float32.

    The gradient of `vector_norm` at exactly zero is zero, so a sample that the discriminator ignores is safe.
    """
    return torch.linalg.vector_norm(at_least_float32(tensor).flatten(1), dim=1)
