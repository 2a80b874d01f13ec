"""Video autoencoders: telecine's own, diffusers' and a user's, behind one interface.

`telecine.autoencoders.diffusers` is imported only when a diffusers model is used.
"""

from telecine.autoencoders.causal import CausalVAE as CausalVAE
from telecine.autoencoders.custom import CustomAutoencoder as CustomAutoencoder
from telecine.autoencoders.custom import as_video_autoencoder as as_video_autoencoder
from telecine.autoencoders.interface import Reconstruction as Reconstruction
from telecine.autoencoders.interface import VideoAutoencoder as VideoAutoencoder
from telecine.autoencoders.latent import DeterministicPosterior as DeterministicPosterior
from telecine.autoencoders.latent import DiagonalGaussian as DiagonalGaussian
from telecine.autoencoders.latent import Posterior as Posterior
from telecine.autoencoders.linear import LinearAutoencoder as LinearAutoencoder
from telecine.autoencoders.load import load_autoencoder as load_autoencoder

__all__ = [name for name in dir() if not name.startswith("_")]  # for the pages of the Python API
