"""Diffusers' video autoencoders as `VideoAutoencoder`, and the way back. No other folder imports diffusers."""

from telecine.autoencoders.diffusers.adapter import DiffusersAutoencoder
from telecine.autoencoders.diffusers.diffusion_decoder import DiffusionDecoder
from telecine.autoencoders.diffusers.pipeline import PipelineVAE

__all__ = ["DiffusersAutoencoder", "DiffusionDecoder", "PipelineVAE"]
