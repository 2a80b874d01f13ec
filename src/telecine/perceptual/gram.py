"""How far the textures of two feature maps are apart: which features occur together, wherever in the frame.

As in "Perceptual Losses for Real-Time Style Transfer" (Johnson et al., arXiv:1603.08155), section 3.2.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from telecine.perceptual.backbones import FeatureMap
from telecine.precision import at_least_float32, autocast_off


def gram_matrix(features: FeatureMap) -> Float[Tensor, "frame feature feature"]:
    """Return `F F^T / (C H W)` of each feature map, with F its C rows of H W values (equation 3).

    Args:
        features: (N, C, H, W); the graph is kept and holds no copy of them.

    Returns:
        Symmetric matrices (N, C, C) in at least float32, also under autocast; entries are >= 0 where features are.
    """
    with autocast_off(features.device):
        rows = at_least_float32(features).flatten(2)
        return rows @ rows.transpose(1, 2) / rows[0].numel()


def gram_distance(x: FeatureMap, y: FeatureMap) -> Float[Tensor, " frame"]:
    """Return the squared Frobenius norm of the difference of two Gram matrices, one per frame (equation 4).

    Args:
        x: (N, C, H, W).
        y: (N, C, H', W'); height and width may differ from those of `x`.

    Returns:
        (N,) in [0, inf), at least float32; 0 for equal textures, larger is worse. The graph is kept. The norm is
        squared, so the gradient is finite where the two are equal or all features are zero.
    """
    return (gram_matrix(x) - gram_matrix(y)).square().sum(dim=(1, 2))
