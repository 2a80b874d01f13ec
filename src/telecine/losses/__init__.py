"""Loss functions without state: each maps tensors to one scalar and keeps the graph."""

from telecine.losses.adversarial import hinge_discriminator, hinge_generator
from telecine.losses.divergence import kl_to_standard_normal
from telecine.losses.penalty import gradient_penalty
from telecine.losses.reconstruction import mse

__all__ = ["gradient_penalty", "hinge_discriminator", "hinge_generator", "kl_to_standard_normal", "mse"]
