from .base.imports import allow_code as allow_code
from .discriminators import Discriminator as Discriminator
from .discriminators import Discriminator3D as Discriminator3D
from .discriminators import Discriminator3DWithfirstframe as Discriminator3DWithfirstframe
from .discriminators import DiscriminatorOutput as DiscriminatorOutput
from .discriminators import FeatureDiscriminator as FeatureDiscriminator
from .discriminators import PatchDiscriminator as PatchDiscriminator
from .discriminators import PatchDiscriminator3D as PatchDiscriminator3D
from .evaluation.evaluate import evaluate as evaluate
from .evaluation.reconstruct import reconstruct as reconstruct
from .losses import gradient_penalty as gradient_penalty
from .losses import kl_to_standard_normal as kl_to_standard_normal
from .losses import mse as mse
from .losses.perceptual import LPIPS as LPIPS
from .models import as_video_autoencoder as as_video_autoencoder
from .models import load_autoencoder as load_autoencoder
from .objective import VideoAutoencoderLoss as VideoAutoencoderLoss
from .settings import DistillConfig as DistillConfig
from .settings import EvaluateConfig as EvaluateConfig
from .settings import Ramp as Ramp
from .settings import ReconstructConfig as ReconstructConfig
from .settings import Term as Term
from .settings import TrainConfig as TrainConfig
from .settings.parse import read_config as read_config
from .tools.distill.distillation import distill as distill
from .tools.plan.plan import plan as plan
from .training import train as train

__version__: str
__all__: list[str]
