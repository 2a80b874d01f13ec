"""Diffusers' video autoencoders as `VideoAutoencoder`. No other folder imports diffusers."""

from telecine.autoencoders.diffusers.adapter import DiffusersAutoencoder

__all__ = ["DiffusersAutoencoder"]
