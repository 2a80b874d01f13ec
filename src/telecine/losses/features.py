"""How far apart a discriminator's feature maps of real and fake samples are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.precision import at_least_float32
from telecine.shapes import Scalar, argument_error, describe


def feature_matching(*, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Scalar:
    """Return the mean over the layers of the mean absolute difference of their feature maps.

    pix2pixHD (Wang et al., arXiv:1711.11585), equation 4, divided by the number of layers: a weight then means the
    same for discriminators of any depth. Only `fake` gets a gradient: the generator learns from it, and where the real
    features are is not its business.

    Args:
        real: Feature maps of the real samples, one a layer, of any shapes.
        fake: Those of the reconstructions, layer by layer of the same shapes.

    Returns:
        A 0-d tensor >= 0, at least float32; 0 for equal features, unbounded, smaller is closer.

    Raises:
        ValueError: If there is no layer, or the numbers of layers or the shapes of a layer differ.
    """
    if len(real) == 0:
        raise argument_error("real", "one feature map a layer", "none", "Name the layers whose features count.")
    if len(fake) != len(real):
        contract = f"as long as `real`, {len(real)} feature maps"
        raise argument_error("fake", contract, str(len(fake)), "Take both from the same discriminator.")
    # Equation 4
    return torch.stack([_layer(index, x, y) for index, (x, y) in enumerate(zip(real, fake, strict=True))]).mean()


def _layer(index: int, real: Tensor, fake: Tensor) -> Scalar:
    if fake.shape != real.shape:
        contract = f"of `real[{index}]`'s shape {tuple(real.shape)}"
        raise argument_error(f"fake[{index}]", contract, describe(fake), "Show both sides the same view.")
    return F.l1_loss(at_least_float32(fake), at_least_float32(real.detach()))
