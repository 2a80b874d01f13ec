"""Loss functions: each maps tensors to one scalar and keeps the graph. Those with buffers or weights are modules."""

from telecine.losses.adversarial import GAN_LOSSES as GAN_LOSSES
from telecine.losses.adversarial import GANLoss as GANLoss
from telecine.losses.adversarial import GANLosses as GANLosses
from telecine.losses.adversarial import JointGANLoss as JointGANLoss
from telecine.losses.adversarial import SeparableGANLoss as SeparableGANLoss
from telecine.losses.adversarial import feature_matching as feature_matching
from telecine.losses.adversarial import hinge as hinge
from telecine.losses.adversarial import least_squares as least_squares
from telecine.losses.adversarial import relativistic as relativistic
from telecine.losses.adversarial import vanilla as vanilla
from telecine.losses.divergence import AuxLoss as AuxLoss
from telecine.losses.divergence import AuxLosses as AuxLosses
from telecine.losses.divergence import Gaussian as Gaussian
from telecine.losses.divergence import Moments as Moments
from telecine.losses.divergence import Reduction as Reduction
from telecine.losses.divergence import kl_to_standard_normal as kl_to_standard_normal
from telecine.losses.divergence import posterior_kl as posterior_kl
from telecine.losses.latent import Decode as Decode
from telecine.losses.latent import Encode as Encode
from telecine.losses.latent import equivariance as equivariance
from telecine.losses.latent import latent_masking as latent_masking
from telecine.losses.latent import latent_noise as latent_noise
from telecine.losses.latent import local_correlation as local_correlation
from telecine.losses.latent import round_trip as round_trip
from telecine.losses.latent import scale_equivariance as scale_equivariance
from telecine.losses.penalty import GRAD_PENALTIES as GRAD_PENALTIES
from telecine.losses.penalty import Penalty as Penalty
from telecine.losses.penalty import approximate_r1 as approximate_r1
from telecine.losses.penalty import as_penalty as as_penalty
from telecine.losses.penalty import gradient_penalty as gradient_penalty
from telecine.losses.penalty import one_centered as one_centered
from telecine.losses.penalty import r1 as r1
from telecine.losses.penalty import r1_and_r2 as r1_and_r2
from telecine.losses.penalty import r2 as r2
from telecine.losses.penalty import wgan_gp as wgan_gp
from telecine.losses.reconstruction import RECONSTRUCTION_LOSSES as RECONSTRUCTION_LOSSES
from telecine.losses.reconstruction import charbonnier as charbonnier
from telecine.losses.reconstruction import gaussian_nll as gaussian_nll
from telecine.losses.reconstruction import l1 as l1
from telecine.losses.reconstruction import mse as mse
from telecine.losses.reconstruction import temporal_difference as temporal_difference
from telecine.losses.wavelet import haar as haar
from telecine.losses.wavelet import wavelet_l1 as wavelet_l1

__all__ = [name for name in dir() if not name.startswith("_")]  # for the pages of the Python API
