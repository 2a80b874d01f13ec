"""The settings of all commands, and how they are read. Needs no PyTorch."""

from telecine.settings.autoencoder import CausalVAEConfig as CausalVAEConfig
from telecine.settings.data import CHANNELS as CHANNELS
from telecine.settings.data import MAX_PIXELS as MAX_PIXELS
from telecine.settings.data import RGB as RGB
from telecine.settings.data import TIMEOUT as TIMEOUT
from telecine.settings.data import Bucket as Bucket
from telecine.settings.data import ClipConfig as ClipConfig
from telecine.settings.data import PixelFormat as PixelFormat
from telecine.settings.data import channels_named as channels_named
from telecine.settings.discriminators import MIN_SIZES as MIN_SIZES
from telecine.settings.discriminators import DiscriminatorConfig as DiscriminatorConfig
from telecine.settings.discriminators import FeaturesConfig as FeaturesConfig
from telecine.settings.distill import DistillConfig as DistillConfig
from telecine.settings.evaluate import Codec as Codec
from telecine.settings.evaluate import EvaluateConfig as EvaluateConfig
from telecine.settings.evaluate import LatentsConfig as LatentsConfig
from telecine.settings.evaluate import MeasuredClips as MeasuredClips
from telecine.settings.evaluate import ProbeConfig as ProbeConfig
from telecine.settings.evaluate import ProtocolName as ProtocolName
from telecine.settings.evaluate import ReconstructConfig as ReconstructConfig
from telecine.settings.evaluate import SavedWeights as SavedWeights
from telecine.settings.evaluate import Tiling as Tiling
from telecine.settings.evaluate import check_overlap as check_overlap
from telecine.settings.objective import AdaptiveWeightConfig as AdaptiveWeightConfig
from telecine.settings.objective import Augmentation as Augmentation
from telecine.settings.objective import DiscriminatorKind as DiscriminatorKind
from telecine.settings.objective import GANConfig as GANConfig
from telecine.settings.objective import ObjectiveConfig as ObjectiveConfig
from telecine.settings.objective import PenaltyConfig as PenaltyConfig
from telecine.settings.objective import PerceptualConfig as PerceptualConfig
from telecine.settings.objective import Ramp as Ramp
from telecine.settings.objective import ReconstructionConfig as ReconstructionConfig
from telecine.settings.objective import Side as Side
from telecine.settings.objective import Term as Term
from telecine.settings.objective import TermSchedule as TermSchedule
from telecine.settings.objective import Weight as Weight
from telecine.settings.train import MAX_FAILURES as MAX_FAILURES
from telecine.settings.train import OptimizerConfig as OptimizerConfig
from telecine.settings.train import PredictiveConfig as PredictiveConfig
from telecine.settings.train import TrainableConfig as TrainableConfig
from telecine.settings.train import TrainConfig as TrainConfig

__all__ = [name for name in dir() if name[0].isupper()]  # for the pages of the Python API
