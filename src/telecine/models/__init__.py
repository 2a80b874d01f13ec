"""Video autoencoders: telecine's own, diffusers' and a user's, behind one interface.

`telecine.models.diffusers` is imported only when a diffusers model is used.
"""

from telecine.losses import Moments as Moments
from telecine.models.causal import CausalVAE as CausalVAE
from telecine.models.custom import CustomAutoencoder as CustomAutoencoder
from telecine.models.custom import as_video_autoencoder as as_video_autoencoder
from telecine.models.interface import Reconstruction as Reconstruction
from telecine.models.interface import VideoAutoencoder as VideoAutoencoder
from telecine.models.latent import DeterministicPosterior as DeterministicPosterior
from telecine.models.latent import DiagonalGaussian as DiagonalGaussian
from telecine.models.latent import Posterior as Posterior
from telecine.models.latent_autoencoder import LatentAutoencoder as LatentAutoencoder
from telecine.models.linear import LinearAutoencoder as LinearAutoencoder
from telecine.models.load import load_autoencoder as load_autoencoder
from telecine.models.stream import StreamDecoder as StreamDecoder
from telecine.models.stream import StreamEncoder as StreamEncoder
from telecine.models.student import StudentAutoencoder as StudentAutoencoder
from telecine.ops.pass_options import ClipPosition as ClipPosition
from telecine.ops.pass_options import clip_position as clip_position

__all__ = [name for name in dir() if not name.startswith("_")]  # for the pages of the Python API
