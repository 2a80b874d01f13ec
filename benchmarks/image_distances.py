"""Distances between frames of other libraries: LPIPS of its authors, DISTS and FSIM of piq, and features of VGG16."""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution
from typing import Any

import lpips
import torch
from piq import DISTS, fsim
from piq.perceptual import VGG16_LAYERS, ContentLoss
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import vgg16

from telecine.losses.perceptual import load_backbone
from telecine.losses.perceptual.feature_maps import IMAGENET

# VGG16's layers that DISTS compares, after the frames themselves, and their channels.
LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
CHANNELS = (3, 64, 128, 256, 512, 512)


class _WithoutRandomWeights(TorchFunctionMode):
    """Leaves out the drawing of weights, which takes seconds for VGG16 whose weights are loaded afterwards."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def vgg16_features() -> nn.Sequential:
    """Return VGG16's convolutions with the weights of telecine's cache."""
    with _WithoutRandomWeights():
        features = vgg16().features
    features.load_state_dict(
        {name.removeprefix("features."): value for name, value in load_backbone("vgg").items()}
    )
    return features.eval()


@cache
def published_lpips(net: str) -> nn.Module:
    """Return LPIPS of its authors' package, frozen, with the same weights of the backbone as telecine's."""
    with _WithoutRandomWeights():
        module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    weights = load_backbone(net)
    module.net.load_state_dict(
        {key: weights[f"features.{key.split('.', 1)[1]}"] for key in module.net.state_dict()}
    )
    return module.requires_grad_(False)


class OfflineDISTS(DISTS):
    """DISTS (arXiv:2004.07728) of piq, with the weights of the package `dists-pytorch` instead of a download.

    Called with frames `(N, 3, H, W)` in [-1, 1], returns `(N,)`: 0 for equal frames.
    """

    def __init__(self) -> None:
        path = distribution("dists-pytorch").locate_file("DISTS_pytorch/weights.pt")
        learned = torch.load(str(path), weights_only=True)
        weights = [
            part for name in ("alpha", "beta") for part in learned[name].split(CHANNELS, dim=1)
        ]
        mean, std = (list(values) for values in IMAGENET)
        ContentLoss.__init__(
            self,
            vgg16_features(),
            layers=[VGG16_LAYERS[name] for name in LAYERS],
            weights=weights,
            replace_pooling=True,
            reduction="none",
            mean=mean,
            std=std,
            allow_layers_weights_mismatch=True,
        )
        self.eval()

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Return one distance for each frame."""
        return super().forward((reconstruction + 1) / 2, (target + 1) / 2).flatten()


class FSIM(nn.Module):
    """Feature similarity (Zhang et al., 2011) of piq: 1 for equal frames."""

    def forward(self, *, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Return `(N,)` for frames `(N, 3, H, W)` in [-1, 1]."""
        return fsim((reconstruction + 1) / 2, (target + 1) / 2, data_range=1.0, reduction="none")
