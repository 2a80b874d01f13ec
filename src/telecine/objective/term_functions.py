"""The functions that `objective.terms` can name: each is added to the loss with a weight, beside the one pixel loss.

To add one, such as a further pixel loss, write the function in a file of `losses/`, and a line here. Its weight, log
and plot follow. `settings.Term` lists the arguments that it may have.
"""

from collections.abc import Callable
from typing import Any

from telecine.losses.latent import (
    equivariance,
    latent_masking,
    latent_noise,
    local_correlation,
    round_trip,
    scale_equivariance,
)
from telecine.losses.perceptual import Alignment, gram
from telecine.losses.reconstruction import temporal_difference
from telecine.losses.wavelet import wavelet_l1

TERM_FUNCTIONS: dict[str, Callable[..., Any]] = {
    # of pixels
    "wavelet": wavelet_l1,
    "temporal": temporal_difference,
    # of features of LPIPS' network
    "gram": gram,
    # of the latent
    "equivariance": equivariance,
    "scale_equivariance": scale_equivariance,
    "local_correlation": local_correlation,
    "latent_masking": latent_masking,
    "latent_noise": latent_noise,
    "round_trip": round_trip,
    "alignment": Alignment,
}
