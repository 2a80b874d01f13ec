"""Autoencoders, and what the trainer needs of one.

Those of diffusers are in `telecine.autoencoders.diffusers`, which is imported only where one is asked for.
"""

from telecine.autoencoders.causal import CausalVAE
from telecine.autoencoders.causal_config import CausalVAEConfig
from telecine.autoencoders.load import load_autoencoder
from telecine.autoencoders.posterior import DiagonalGaussian
from telecine.autoencoders.protocol import Posterior, Reconstruction, VideoAutoencoder

__all__ = [
    "CausalVAE",
    "CausalVAEConfig",
    "DiagonalGaussian",
    "Posterior",
    "Reconstruction",
    "VideoAutoencoder",
    "load_autoencoder",
]
