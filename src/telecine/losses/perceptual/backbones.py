"""The convolutional layers of VGG16 and AlexNet that LPIPS uses, as tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from telecine.base.checks import argument_error, describe
from telecine.settings import MIN_SIZES

FeatureMap: TypeAlias = Float[Tensor, "frame feature row column"]


@dataclass(frozen=True)
class Convolution:
    """A convolution with a bias, followed by a ReLU."""

    name: str  # torchvision's, for example `features.5`
    in_channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True)
class Stage:
    """The layers before one feature map that LPIPS compares: a max pooling (0 = none), then convolutions."""

    pool: int
    convolutions: tuple[Convolution, ...]


@dataclass(frozen=True)
class Backbone:
    """A network whose stages end at the feature maps that LPIPS compares, and the smallest frame it accepts."""

    name: str
    title: str
    minimum_size: int  # height and width of the smallest frame
    stages: tuple[Stage, ...]
    package_root: str  # the key of the network in the archive of `weights.py`
    package_sha256: str  # of the tensors in that archive, see `weights.tensor_sha256`

    def convolutions(self) -> list[Convolution]:
        """Return the convolutions of all stages."""
        return [layer for stage in self.stages for layer in stage.convolutions]

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that the stages read, by torchvision's names."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.convolutions():
            shapes[f"{layer.name}.weight"] = (
                layer.out_channels,
                layer.in_channels,
                layer.kernel,
                layer.kernel,
            )
            shapes[f"{layer.name}.bias"] = (layer.out_channels,)
        return shapes


VGG16 = Backbone(
    name="vgg16",
    title="VGG16",
    minimum_size=MIN_SIZES["vgg"],
    stages=(
        Stage(
            pool=0,
            convolutions=(
                Convolution("features.0", 3, 64),
                Convolution("features.2", 64, 64),
            ),
        ),
        Stage(
            pool=2,
            convolutions=(
                Convolution("features.5", 64, 128),
                Convolution("features.7", 128, 128),
            ),
        ),
        Stage(
            pool=2,
            convolutions=(
                Convolution("features.10", 128, 256),
                Convolution("features.12", 256, 256),
                Convolution("features.14", 256, 256),
            ),
        ),
        Stage(
            pool=2,
            convolutions=(
                Convolution("features.17", 256, 512),
                Convolution("features.19", 512, 512),
                Convolution("features.21", 512, 512),
            ),
        ),
        Stage(
            pool=2,
            convolutions=(
                Convolution("features.24", 512, 512),
                Convolution("features.26", 512, 512),
                Convolution("features.28", 512, 512),
            ),
        ),
    ),
    package_root="VGG16_0",
    package_sha256="e7a5a0521f65f1615c3aab84437b37f969539737cec5eb492c06e0321f4bdbc4",
)
ALEXNET = Backbone(
    name="alexnet",
    title="AlexNet",
    minimum_size=MIN_SIZES["alex"],
    stages=(
        Stage(
            pool=0, convolutions=(Convolution("features.0", 3, 64, kernel=11, stride=4, padding=2),)
        ),
        Stage(pool=3, convolutions=(Convolution("features.3", 64, 192, kernel=5, padding=2),)),
        Stage(pool=3, convolutions=(Convolution("features.6", 192, 384),)),
        Stage(pool=0, convolutions=(Convolution("features.8", 384, 256),)),
        Stage(pool=0, convolutions=(Convolution("features.10", 256, 256),)),
    ),
    package_root="AlexNet_0",
    package_sha256="195266a4c8e96483085621ac3389a6c24f1dd0963c9ac0e001705d24ece83273",
)
BACKBONES: Mapping[str, Backbone] = {"vgg": VGG16, "alex": ALEXNET}


def backbone_of(net: object) -> Backbone:
    """Return the table of `net`; raise a `ValueError` unless it is "vgg" or "alex"."""
    if not isinstance(net, str) or net not in BACKBONES:
        raise argument_error(
            "net", '"vgg" or "alex"', describe(net), 'Use "vgg" as a training loss.'
        )
    return BACKBONES[net]
