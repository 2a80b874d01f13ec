"""Discriminators of images and videos: CogVideo's with its state-dict names, PatchGAN, frozen features."""

from telecine.discriminators.augment import augment as augment
from telecine.discriminators.build import DiscriminatorSpec as DiscriminatorSpec
from telecine.discriminators.build import build_discriminator as build_discriminator
from telecine.discriminators.features import FeatureDiscriminator as FeatureDiscriminator
from telecine.discriminators.gradient_checkpointing import frozen as frozen
from telecine.discriminators.output import DiscriminatorOutput as DiscriminatorOutput
from telecine.discriminators.output import as_output as as_output
from telecine.discriminators.patch import PatchDiscriminator as PatchDiscriminator
from telecine.discriminators.patch import PatchDiscriminator3D as PatchDiscriminator3D
from telecine.discriminators.residual import Discriminator as Discriminator
from telecine.discriminators.residual import Discriminator3D as Discriminator3D
from telecine.discriminators.residual import (
    Discriminator3DWithfirstframe as Discriminator3DWithfirstframe,
)

__all__ = [name for name in dir() if not name.startswith("_")]  # for the pages of the Python API
