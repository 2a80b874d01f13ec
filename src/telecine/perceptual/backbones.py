"""The convolutional layers of VGG16 and AlexNet that LPIPS uses, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from telecine.base.checks import argument_error, describe
from telecine.settings import MIN_SIZES

FeatureMap: TypeAlias = Float[Tensor, "frame feature row column"]


@dataclass(frozen=True)
class _Convolution:
    """One convolution with bias and ReLU."""

    name: str
    """Torchvision's, for example `features.5`."""
    in_channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True)
class Stage:
    """The layers before one feature map that LPIPS compares: a max pooling (0 = none), then convolutions."""

    pool: int
    convolutions: tuple[_Convolution, ...]


@dataclass(frozen=True)
class Backbone:
    """A network whose stages end at the feature maps that LPIPS compares, and the smallest frame it accepts."""

    name: str
    title: str
    minimum_size: int
    stages: tuple[Stage, ...]

    def convolutions(self) -> list[_Convolution]:
        """Return the convolutions of all stages."""
        return [layer for stage in self.stages for layer in stage.convolutions]

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that the stages read, by torchvision's names."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.convolutions():
            shapes[f"{layer.name}.weight"] = (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
            shapes[f"{layer.name}.bias"] = (layer.out_channels,)
        return shapes


def _stage_of_3x3(pool: int, first: int, *channels: int) -> Stage:
    """Return convolutions from each number of channels to the next; every second layer from `first` on is one."""
    layers = enumerate(pairwise(channels))
    return Stage(pool, tuple(_Convolution(f"features.{first + 2 * index}", *widths) for index, widths in layers))


_VGG16 = Backbone(
    name="vgg16",
    title="VGG16",
    minimum_size=MIN_SIZES["vgg"],  # four halvings before the last stage
    stages=(
        _stage_of_3x3(0, 0, 3, 64, 64),
        _stage_of_3x3(2, 5, 64, 128, 128),
        _stage_of_3x3(2, 10, 128, 256, 256, 256),
        _stage_of_3x3(2, 17, 256, 512, 512, 512),
        _stage_of_3x3(2, 24, 512, 512, 512, 512),
    ),
)
_ALEXNET = Backbone(
    name="alexnet",
    title="AlexNet",
    minimum_size=MIN_SIZES["alex"],  # the smallest size at which the second pooling's window of 3 fits
    stages=(
        Stage(0, (_Convolution("features.0", 3, 64, kernel=11, stride=4, padding=2),)),
        Stage(3, (_Convolution("features.3", 64, 192, kernel=5, padding=2),)),
        Stage(3, (_Convolution("features.6", 192, 384),)),
        Stage(0, (_Convolution("features.8", 384, 256),)),
        Stage(0, (_Convolution("features.10", 256, 256),)),
    ),
)
BACKBONES: Mapping[str, Backbone] = {"vgg": _VGG16, "alex": _ALEXNET}


def backbone_of(net: object) -> Backbone:
    """Return the table of `net`; raise a `ValueError` unless it is "vgg" or "alex"."""
    if not isinstance(net, str) or net not in BACKBONES:
        raise argument_error("net", '"vgg" or "alex"', describe(net), 'Use "vgg" as a training loss.')
    return BACKBONES[net]
