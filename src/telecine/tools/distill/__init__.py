"""`telecine distill`: a small decoder, or autoencoder, that learns from another one."""

from telecine.tools.distill.features import TeacherFeatures as TeacherFeatures
from telecine.tools.distill.latent import TeacherLatent as TeacherLatent
from telecine.tools.distill.reconstruction import TeacherReconstruction as TeacherReconstruction
from telecine.tools.distill.run import distill as distill
