"""Diffusers' video autoencoders as `VideoAutoencoder`, and the way back. No other folder imports diffusers."""

from telecine.models.diffusers.adapter import DiffusersAutoencoder
from telecine.models.diffusers.diffusion_decoder import DiffusionDecoder
from telecine.models.diffusers.pipeline import PipelineVAE

__all__ = ["DiffusersAutoencoder", "DiffusionDecoder", "PipelineVAE"]
