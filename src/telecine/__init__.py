"""telecine: the training objective of video autoencoders done right, and everything around it.

The names below are the public door. `train` and `evaluate` need the extra `telecine[train]`.
"""

from telecine.discriminators import Discriminator, Discriminator3D, Discriminator3DWithfirstframe
from telecine.losses import gradient_penalty, hinge_discriminator, hinge_generator, kl_to_standard_normal, mse
from telecine.objective import VideoAutoencoderLoss
from telecine.perceptual import LPIPS

__version__ = "0.1.0"

__all__ = [
    "LPIPS",
    "Discriminator",
    "Discriminator3D",
    "Discriminator3DWithfirstframe",
    "VideoAutoencoderLoss",
    "gradient_penalty",
    "hinge_discriminator",
    "hinge_generator",
    "kl_to_standard_normal",
    "mse",
]
