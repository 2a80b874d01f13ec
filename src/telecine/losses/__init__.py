"""Loss functions without state: each maps tensors to one scalar and keeps the graph."""

from telecine.losses.adversarial import (
    GAN_LOSSES,
    Duel,
    GANLoss,
    generator_needs_real,
    hinge,
    is_separable,
    least_squares,
    relativistic,
    vanilla,
)
from telecine.losses.divergence import Reduction, kl_to_standard_normal, posterior_kl
from telecine.losses.features import feature_matching
from telecine.losses.lecam import lecam
from telecine.losses.penalty import (
    GRAD_PENALTIES,
    Judge,
    Judged,
    Penalty,
    approximate_r1,
    gradient_penalty,
    one_centered,
    r1,
    r1_and_r2,
    r2,
    sample_norms,
    wgan_gp,
)
from telecine.losses.reconstruction import (
    RECONSTRUCTION_LOSSES,
    ReconstructionLoss,
    charbonnier,
    gaussian_nll,
    l1,
    mse,
)
from telecine.losses.temporal import temporal_difference
from telecine.losses.wavelet import haar, wavelet_l1

__all__ = [
    "GAN_LOSSES",
    "GRAD_PENALTIES",
    "RECONSTRUCTION_LOSSES",
    "Duel",
    "GANLoss",
    "Judge",
    "Judged",
    "Penalty",
    "ReconstructionLoss",
    "Reduction",
    "approximate_r1",
    "charbonnier",
    "feature_matching",
    "gaussian_nll",
    "generator_needs_real",
    "gradient_penalty",
    "haar",
    "hinge",
    "is_separable",
    "kl_to_standard_normal",
    "l1",
    "least_squares",
    "lecam",
    "mse",
    "one_centered",
    "posterior_kl",
    "r1",
    "r1_and_r2",
    "r2",
    "relativistic",
    "sample_norms",
    "temporal_difference",
    "vanilla",
    "wavelet_l1",
    "wgan_gp",
]
