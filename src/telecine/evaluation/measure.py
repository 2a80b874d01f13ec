"""Measurement of clips: the metrics that are defined for their size or by a protocol, and the values of each clip."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Protocol

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.imports import how_to_install
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.base.terminal import with_progress
from telecine.data import Span, bytes_from_video, pixels_sha256
from telecine.evaluation.frechet import FeatureNetwork, frechet_distance, load_feature_network, min_samples
from telecine.evaluation.metrics import (
    BUILT_IN_METRICS,
    CLIP_METRICS,
    FRAME_METRICS,
    ReconstructionMetrics,
    available_metrics,
)
from telecine.evaluation.processes import Processes
from telecine.evaluation.published import PublishedProtocol
from telecine.evaluation.published_clips import measured_values
from telecine.evaluation.source import ReconstructionSource
from telecine.perceptual import LPIPS, load_backbone
from telecine.perceptual.weights import tensor_sha256
from telecine.settings import ClipConfig

LPIPS_BACKBONES = {"lpips_vgg": "vgg", "lpips_alex": "alex"}
# The names of values that are computed from the features of a clip, or of all clips.
FRECHET_METRICS = ("fvd", "fvd_single")


class ClipMeasure(Protocol):
    """Measures several values of a clip, which are requested by settings."""

    def __call__(self, *, reconstruction: Video, target: Video) -> dict[str, float]:
        """Return the values by name, of a clip `(1, 3, T, H, W)` in [-1, 1]."""


@dataclass(frozen=True)
class MetricSet:
    """The metrics of one evaluation, with their networks."""

    built_in: Sequence[str]
    """Names of built-in metrics."""
    perceptual: Mapping[str, nn.Module]
    """LPIPS modules by metric name."""
    features: FeatureNetwork | None
    """The network of the Frechet distance."""
    backbones: Mapping[str, str]
    """The weights of each network, by metric name."""
    absent: Mapping[str, str]
    """Metrics that are undefined for clips of this size, with the reason."""
    per_clip_frechet: bool = False
    """Whether the Frechet distance is that of sets of one clip each."""
    values: Callable[[Tensor], Tensor] = field(default=lambda video: video.clamp(*VALUE_RANGE))
    """Maps inputs and reconstructions to the values that are measured."""
    requested: Sequence[ClipMeasure] = ()
    """Measures that settings request."""

    def definitions(self, num_clips: int) -> tuple[tuple[str, str], ...]:
        """Return name and definition of the Frechet distance over `num_clips` clips, or nothing without a network."""
        if self.features is None or self.per_clip_frechet:
            return ()
        return ((self.features.name, f"{self.features.definition}; {num_clips} clips; smaller is better"),)


def load_metrics(clips: ClipConfig, features: str | None, device: torch.device) -> MetricSet:
    """Load all metrics that are defined for clips of this length and size.

    Raises:
        ValueError: A network cannot be loaded, or the clips are too short for that of the Frechet distance.
    """
    names, absent = available_metrics(
        [*BUILT_IN_METRICS, *LPIPS_BACKBONES], num_frames=clips.num_frames, height=clips.height, width=clips.width
    )
    perceptual, backbones = _load_lpips(names, device)
    network = None if features is None else load_feature_network(features, device)
    if network is not None:
        _check_length(network, clips.num_frames)
        backbones[network.name] = network.source
    built_in = [name for name in names if name not in LPIPS_BACKBONES]
    return MetricSet(built_in, perceptual, network, backbones, absent)


def _load_lpips(names: Sequence[str], device: torch.device) -> tuple[dict[str, LPIPS], dict[str, str]]:
    """Return the LPIPS modules among these metrics by name, and the hashes of their weights."""
    weights = {name: load_backbone(net) for name, net in LPIPS_BACKBONES.items() if name in names}
    modules = {name: LPIPS(LPIPS_BACKBONES[name], weights=tensors).to(device) for name, tensors in weights.items()}
    return modules, {name: f"sha256 {tensor_sha256(tensors)}" for name, tensors in weights.items()}


def load_published_metrics(protocol: PublishedProtocol, features: str | None, device: torch.device) -> MetricSet:
    """Load the metrics of a protocol.

    Raises:
        ValueError: A package is not installed, or a network cannot be loaded or is too long for the clips.
    """
    if "ssim_uniform" in protocol.metrics and importlib.util.find_spec("skimage") is None:
        got = f"{protocol.name} without the package scikit-image"
        raise argument_error("protocol", "one whose packages are installed", got, how_to_install("protocols"))
    perceptual, backbones = _load_lpips(protocol.metrics, device)
    (frechet,) = (name for name in protocol.metrics if name in FRECHET_METRICS)
    network, absent = None, {frechet: "needs the I3D of StyleGAN-V, i3d_torchscript.pt, as `features`"}
    if features is not None:
        network, absent = load_feature_network(features, device), {}
        backbones[frechet] = network.source
    return MetricSet(
        built_in=[name for name in protocol.metrics if name in CLIP_METRICS or name in FRAME_METRICS],
        perceptual=perceptual,
        features=network,
        backbones=backbones,
        absent=absent,
        per_clip_frechet=frechet == "fvd_single",
        values=lambda video: measured_values(video, protocol),
    )


def _check_length(network: FeatureNetwork, num_frames: int) -> None:
    if num_frames < network.min_frames:
        remedy = "Set a larger `num_frames`, or leave `features` out."
        raise argument_error("num_frames", f"at least {network.min_frames} for {network.name}", num_frames, remedy)


@dataclass(frozen=True)
class ClipResult:
    """The measurements of one clip."""

    index: int
    """Its position among the selected clips."""
    source: str
    """The file it comes from."""
    start: int
    """Position of its first frame in the file."""
    metrics: Mapping[str, float]
    """Its metrics."""
    per_frame: Mapping[str, list[float]]
    """The values of its frames, for metrics that are computed frame by frame."""
    sha256: str
    """Hash of its input's pixels at 8 bits."""
    features: tuple[Tensor, Tensor] | None = None
    """Feature vectors `(D,)` of reconstruction and input, if a Frechet distance is computed."""

    def as_row(self) -> dict[str, str | int | float]:
        """Return its entry in `clips.json`."""
        return {"source": self.source, "start": self.start, **self.metrics}


@torch.no_grad()
def measure_clips(
    source: ReconstructionSource,
    metric_set: MetricSet,
    spans: Sequence[Span],
    processes: Processes,
    device: torch.device,
) -> list[ClipResult]:
    """Measure this process' clips: of N processes, process i measures the clips i, i + N, i + 2N, ..."""
    indices: Iterable[int] = range(processes.rank, len(spans), processes.world_size)
    if processes.is_main:
        indices = with_progress(indices, "measuring")
    results = (_measure_clip(index, source, metric_set, spans[index], device) for index in indices)
    return [result for result in results if result is not None]


def _measure_clip(
    index: int, source: ReconstructionSource, metric_set: MetricSet, span: Span, device: torch.device
) -> ClipResult | None:
    """Return the measurements of one clip, or None if it cannot be decoded."""
    clip = source.read(span)
    if clip is None:
        return None
    clip_input = clip["video"][None].to(device)
    reconstruction = metric_set.values(source.reconstruct(span, clip_input))
    target = metric_set.values(clip_input)
    metrics = ReconstructionMetrics(metric_set.perceptual, metrics=metric_set.built_in)
    metrics.update(reconstruction=reconstruction, target=target)
    values, features = metrics.per_clip()[0], None
    if metric_set.features is not None:
        features = metric_set.features(reconstruction)[0].cpu(), metric_set.features(target)[0].cpu()
        if metric_set.per_clip_frechet:
            values["fvd_single"] = float((features[0].double() - features[1].double()).square().sum())
    for measure in metric_set.requested:
        values |= measure(reconstruction=reconstruction, target=target)
    return ClipResult(
        index=index,
        source=clip["source"],
        start=clip["start"],
        metrics=values,
        per_frame=metrics.per_frame()[0],
        sha256=pixels_sha256(bytes_from_video(clip["video"])),
        features=features,
    )


def mean_per_frame(results: Sequence[ClipResult]) -> dict[str, list[float]]:
    """Return the mean over the clips that have a frame position, for metrics that are computed frame by frame."""
    columns = {name: zip_longest(*(result.per_frame[name] for result in results)) for name in results[0].per_frame}
    return {name: [_mean_of_known(column) for column in positions] for name, positions in columns.items()}


def _mean_of_known(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def frechet_of_clips(results: Sequence[ClipResult], network: FeatureNetwork) -> tuple[dict[str, float], dict[str, str]]:
    """Return the Frechet distance by its name, or else, by the same name, the reason why it is undefined."""
    pairs = [result.features for result in results if result.features is not None]
    features, reference = (torch.stack(column) for column in zip(*pairs, strict=True))
    num_needed = min_samples(features.shape[1])
    if len(features) < num_needed:
        reason = (
            f"needs at least {num_needed} clips, not {len(features)}: with fewer, the covariance of its "
            f"{features.shape[1]} features is singular"
        )
        return {}, {network.name: reason}
    if not (features.isfinite().all() and reference.isfinite().all()):
        reason = "its features are not finite: the reconstructions contain NaN, or the network overflows"
        return {}, {network.name: reason}
    return {network.name: frechet_distance(features=features, reference=reference)}, {}
