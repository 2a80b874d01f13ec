"""The measurement of clips: the metrics of an evaluation, their networks, and the results of each clip."""

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.imports import how_to_install
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.base.terminal import with_progress
from telecine.data import Span, bytes_from_video, pixels_sha256
from telecine.evaluation.metrics import ReconstructionMetrics, default_metrics
from telecine.evaluation.metrics.frechet import (
    FVD,
    FVD_SINGLE,
    FeatureNetwork,
    load_frechet_network,
)
from telecine.evaluation.metrics.lpips import LPIPS_NETWORKS, load_lpips
from telecine.evaluation.metrics.registry import METRICS, Metric
from telecine.evaluation.protocols.published import PublishedProtocol
from telecine.evaluation.reconstruction_sources import ModelSource, VideoSource, read_span
from telecine.losses.perceptual import as_rgb
from telecine.settings import ClipConfig, EvaluateConfig


class ClipMeasure(Protocol):
    """Measures several metrics of a clip at once, on request: the warping error, the difference of tiling."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """The metrics that it measures."""

    @property
    def source(self) -> str:
        """The method, for the protocol."""

    def __call__(self, *, reconstruction: Video, target: Video) -> dict[str, float]:
        """Return the values of a clip `(1, C, T, H, W)` in [-1, 1] by the names of the metrics."""


def _clamped(video: Tensor) -> Tensor:
    return video.clamp(*VALUE_RANGE)


@dataclass(frozen=True)
class MetricSet:
    """The metrics of one evaluation, with their networks."""

    pixel_metrics: Sequence[str]
    """Names of metrics of pixel values."""
    perceptual: Mapping[str, nn.Module]
    """LPIPS modules by metric name."""
    features: FeatureNetwork | None
    """The network of the Frechet distance."""
    backbones: Mapping[str, str]
    """The source of each network, by metric name."""
    absent: Mapping[str, str]
    """The reason for each metric that cannot be measured."""
    per_clip_frechet: bool = False
    """Whether the Frechet distance is that of sets of one clip each."""
    values: Callable[[Tensor], Tensor] = field(default=_clamped)
    """Maps inputs and reconstructions to the values that are measured."""
    requested: Sequence[ClipMeasure] = ()
    """Measures that options request."""


def load_metrics(clips: ClipConfig, config: EvaluateConfig, device: torch.device) -> MetricSet:
    """Load all metrics that are defined for these clips.

    Args:
        clips: The length, size and channels of the clips.
        config: The settings. Their `features` name the network of the Frechet distance.
        device: Where the networks are.

    Raises:
        ValueError: What was requested is not defined for these clips.
    """
    if not clips.has_colours:
        for name, value in (("flow", config.flow), ("flat", config.flat)):
            if value:
                contract = "left out unless clips have 1, 3 or 4 channels"
                raise argument_error(
                    name, contract, f"{value} for {clips.num_channels}", "Leave it out."
                )
    network = load_frechet_network(config.feature_network, clips, device)
    names = []
    absent = {}
    for name in (*default_metrics(), *LPIPS_NETWORKS):
        reason = METRICS[name].unavailable_reason(clips.num_frames, clips.height, clips.width)
        if name in LPIPS_NETWORKS and not clips.has_colours:
            reason = f"needs RGB frames, but clips have {clips.num_channels} channels"
        if reason is None:
            names.append(name)
        else:
            absent[name] = reason
    perceptual, backbones = load_lpips(names, device)
    if network is not None:
        backbones[network.metric.name] = network.source
    pixel_metrics = [name for name in names if name not in LPIPS_NETWORKS]
    return MetricSet(pixel_metrics, perceptual, network, backbones, absent)


def load_published_metrics(
    protocol: PublishedProtocol, features: str | None, spans: Sequence[Span], device: torch.device
) -> MetricSet:
    """Load the metrics of a protocol.

    Args:
        protocol: The protocol.
        features: The path of the I3D of its Frechet distance, or None, which leaves the distance out.
        spans: The clips.
        device: Where the networks are.

    Raises:
        ValueError: A package is missing, or a clip is too short for a metric.
    """
    if "ssim_uniform" in protocol.metrics and importlib.util.find_spec("skimage") is None:
        got = f"{protocol.name} without the package scikit-image"
        raise argument_error(
            "protocol", "one whose packages are installed", got, how_to_install("protocols")
        )
    num_frames = protocol.num_frames or min(span.num_frames for span in spans)
    network = load_frechet_network(features, ClipConfig(num_frames=num_frames), device)
    perceptual, backbones = load_lpips(protocol.metrics, device)
    absent = {}
    pixel_metrics = []
    for name in protocol.metrics:
        if name in LPIPS_NETWORKS:
            continue
        if name not in (FVD.name, FVD_SINGLE.name):
            pixel_metrics.append(name)
        elif network is None:
            absent[name] = "needs the I3D of StyleGAN-V, i3d_torchscript.pt, as `features`"
        else:
            backbones[name] = network.source
    return MetricSet(
        pixel_metrics,
        perceptual,
        network,
        backbones,
        absent,
        per_clip_frechet=FVD_SINGLE.name in protocol.metrics,
        values=protocol.measured_values,
    )


@dataclass(frozen=True)
class ClipResult:
    """The results of one clip."""

    index: int
    """Its position among the selected clips."""
    source: str
    start: int
    """Position of its first frame in the file."""
    metrics: Mapping[str, float]
    per_frame: Mapping[str, list[float]]
    sha256: str
    """Hash of its input's pixels at 8 bits."""
    features: tuple[Tensor, Tensor] | None = None
    """Feature vectors `(D,)` of reconstruction and input, if a Frechet distance is computed."""


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """Yield the rank of this process and the number of processes that share an evaluation.

    They are those of the current process group, or under `torchrun` of one of gloo, which is destroyed at the end.
    """
    if dist.is_available() and dist.is_initialized():
        yield dist.get_rank(), dist.get_world_size()
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
        try:
            yield dist.get_rank(), dist.get_world_size()
        finally:
            dist.destroy_process_group()
    else:
        yield 0, 1


@torch.no_grad()
def measure_clips(
    source: ModelSource | VideoSource,
    metric_set: MetricSet,
    spans: Sequence[Span],
    device: torch.device,
    rank: int,
    num_ranks: int,
) -> list[ClipResult]:
    """Return the results of the clips in order, on every process. Clips that cannot be decoded are left out.

    Args:
        source: Reconstructs the clips.
        metric_set: The metrics.
        spans: The clips.
        device: Where clips are measured.
        rank: The number i of this process, which measures the clips i, i + N, i + 2 N, ...
        num_ranks: The number N of processes.
    """
    indices: Iterable[int] = range(rank, len(spans), num_ranks)
    if rank == 0:
        indices = with_progress(indices, "measuring")
    results = []
    for index in indices:
        result = _measure_clip(index, source, metric_set, spans[index], device)
        if result is not None:
            results.append(result)
    if num_ranks > 1:
        gathered: list[list[ClipResult]] = [[] for _ in range(num_ranks)]
        dist.all_gather_object(gathered, results)
        results = []
        for rank_results in gathered:
            results += rank_results
    return sorted(results, key=lambda result: result.index)


def _measure_clip(
    index: int,
    source: ModelSource | VideoSource,
    metric_set: MetricSet,
    span: Span,
    device: torch.device,
) -> ClipResult | None:
    """Return the results of one clip, or None if it cannot be decoded."""
    clip = read_span(span, source.clips)
    if clip is None:
        return None
    clip_input = clip["video"][None].to(device)
    reconstruction = metric_set.values(source.reconstruct(span, clip_input))
    target = metric_set.values(clip_input)
    metrics = ReconstructionMetrics(metric_set.perceptual, metrics=metric_set.pixel_metrics)
    metrics.update(reconstruction=reconstruction, target=target)
    values = metrics.per_clip()[0]
    features = None
    if metric_set.features is not None:
        recon_features = metric_set.features(as_rgb(reconstruction))[0].cpu()
        target_features = metric_set.features(as_rgb(target))[0].cpu()
        features = (recon_features, target_features)
        if metric_set.per_clip_frechet:
            distance = (recon_features.double() - target_features.double()).square().sum()
            values[FVD_SINGLE.name] = float(distance)
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
    """Return the mean of each frame metric at each frame position, over the clips that have this position."""
    means: dict[str, list[float]] = {}
    for name in results[0].per_frame:
        curves = [result.per_frame[name] for result in results]
        means[name] = []
        for position in range(max(len(curve) for curve in curves)):
            values = [curve[position] for curve in curves if position < len(curve)]
            means[name].append(sum(values) / len(values))
    return means


def stack_features(results: Sequence[ClipResult]) -> tuple[Tensor, Tensor]:
    """Return the features of all reconstructions and of all inputs, each `(N, D)`, of results that have them."""
    features = []
    reference = []
    for result in results:
        assert result.features is not None
        features.append(result.features[0])
        reference.append(result.features[1])
    return torch.stack(features), torch.stack(reference)
