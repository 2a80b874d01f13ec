"""The convolutional layers of VGG16 and AlexNet that LPIPS uses, as tables."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TypeAlias

from jaxtyping import Float
from pydantic import TypeAdapter
from torch import Tensor

from telecine.base.checks import argument_error, describe
from telecine.settings import MIN_SIZES

FeatureMap: TypeAlias = Float[Tensor, "frame feature row column"]


@dataclass(frozen=True)
class _Convolution:
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
    convolutions: tuple[_Convolution, ...]


@dataclass(frozen=True)
class Backbone:
    """A network whose stages end at the feature maps that LPIPS compares, and the smallest frame it accepts."""

    name: str
    title: str
    minimum_size: int
    stages: tuple[Stage, ...]
    package_root: str
    package_sha256: str

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


# The package is the archive of `telecine.losses.perceptual.weights`: the root is the network's key in it, and the hash
# is that of its tensors.
_TABLE = json.loads(resources.files(__package__).joinpath("backbones.json").read_text(encoding="utf-8"))
BACKBONES: Mapping[str, Backbone] = TypeAdapter(dict[str, Backbone]).validate_python(
    {net: {**fields, "minimum_size": MIN_SIZES[net]} for net, fields in _TABLE.items()}
)


def backbone_of(net: object) -> Backbone:
    """Return the table of `net`; raise a `ValueError` unless it is "vgg" or "alex"."""
    if not isinstance(net, str) or net not in BACKBONES:
        raise argument_error("net", '"vgg" or "alex"', describe(net), 'Use "vgg" as a training loss.')
    return BACKBONES[net]
