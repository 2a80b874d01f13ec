"""The video autoencoders of diffusers, trainable: the only folder that knows diffusers."""

from telecine.autoencoders.diffusers.adapter import DiffusersAutoencoder
from telecine.autoencoders.diffusers.posterior import PointPosterior

__all__ = ["DiffusersAutoencoder", "PointPosterior"]
