"""Autoencoders, and what the trainer needs of one."""

from telecine.autoencoders.causal import CausalVAE
from telecine.autoencoders.causal_config import CausalVAEConfig
from telecine.autoencoders.posterior import DiagonalGaussian
from telecine.autoencoders.protocol import Posterior, Reconstruction, VideoAutoencoder

__all__ = ["CausalVAE", "CausalVAEConfig", "DiagonalGaussian", "Posterior", "Reconstruction", "VideoAutoencoder"]
