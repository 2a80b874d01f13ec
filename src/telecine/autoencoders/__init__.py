"""Video autoencoders: telecine's own, diffusers' and a user's, behind one interface.

`telecine.autoencoders.diffusers` is imported only when a diffusers model is used.
"""

from telecine.autoencoders.causal import CausalVAE
from telecine.autoencoders.custom import CustomAutoencoder, as_video_autoencoder
from telecine.autoencoders.interface import Reconstruction, VideoAutoencoder
from telecine.autoencoders.latent import DeterministicPosterior, DiagonalGaussian, Posterior
from telecine.autoencoders.linear import LinearAutoencoder
from telecine.autoencoders.load import load_autoencoder

__all__ = [
    "CausalVAE",
    "CustomAutoencoder",
    "DeterministicPosterior",
    "DiagonalGaussian",
    "LinearAutoencoder",
    "Posterior",
    "Reconstruction",
    "VideoAutoencoder",
    "as_video_autoencoder",
    "load_autoencoder",
]
