"""The measurement of clips by one or several processes, and the results of each clip."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from telecine.base.terminal import with_progress
from telecine.data import Span, bytes_from_video, pixels_sha256
from telecine.evaluation.metrics import ReconstructionMetrics
from telecine.evaluation.metrics.metric_set import MetricSet
from telecine.evaluation.reconstructors import Reconstructor
from telecine.losses.perceptual import as_rgb


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
    per_pass: Mapping[str, list[float]]
    """The values after each pass of round trips, by name; empty without them."""
    feature_pair: tuple[Tensor, Tensor] | None = None
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
    reconstructor: Reconstructor,
    metric_set: MetricSet,
    spans: Sequence[Span],
    device: torch.device,
    rank: int,
    num_ranks: int,
) -> list[ClipResult]:
    """Return the results of the clips in order, on every process. Clips that cannot be decoded are left out.

    Args:
        reconstructor: Reconstructs the clips.
        metric_set: The metrics.
        spans: The clips.
        device: Where clips are measured.
        rank: The number i of this process, which measures the clips i, i + N, i + 2 N, ...
        num_ranks: The number N of processes.
    """
    indices = range(rank, len(spans), num_ranks)
    results = []
    for index in with_progress(indices, "measuring", is_shown=rank == 0):
        result = _measure_clip(index, reconstructor, metric_set, spans[index], device)
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
    reconstructor: Reconstructor,
    metric_set: MetricSet,
    span: Span,
    device: torch.device,
) -> ClipResult | None:
    """Return the results of one clip, or None if it cannot be decoded."""
    clip_protocol = reconstructor.clip_protocol
    clip = clip_protocol.read(span)
    if clip is None:
        return None
    clip_input = clip["video"][None].to(device)
    reconstruction = clip_protocol.measured_values(reconstructor.reconstruct(span, clip_input))
    target = clip_protocol.measured_values(clip_input)
    metrics = ReconstructionMetrics(
        metric_set.perceptual, metrics=metric_set.pixel_metrics, range_is_known=True
    )
    metrics.update(reconstruction=reconstruction, target=target)
    values = metrics.per_clip()[0]
    feature_pair = None
    if metric_set.feature_network is not None:
        recon_features = metric_set.feature_network(as_rgb(reconstruction))[0].cpu()
        target_features = metric_set.feature_network(as_rgb(target))[0].cpu()
        feature_pair = (recon_features, target_features)
    per_pass: dict[str, list[float]] = {}
    for measure in metric_set.measures:
        measured = measure(reconstruction=reconstruction, target=target)
        values.update(measured.values)
        per_pass.update(measured.per_pass)
    return ClipResult(
        index=index,
        source=clip["source"],
        start=clip["start"],
        metrics=values,
        per_frame=metrics.per_frame()[0],
        sha256=pixels_sha256(bytes_from_video(clip["video"])),
        per_pass=per_pass,
        feature_pair=feature_pair,
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


def mean_per_pass(results: Sequence[ClipResult]) -> dict[str, list[float]]:
    """Return the mean over clips of each value after each pass of round trips; empty without them."""
    means: dict[str, list[float]] = {}
    for name in results[0].per_pass:
        curves = torch.tensor([result.per_pass[name] for result in results], dtype=torch.float64)
        means[name] = curves.mean(0).tolist()
    return means


def stack_features(results: Sequence[ClipResult]) -> tuple[Tensor, Tensor]:
    """Return the features of all reconstructions and of all inputs, each `(N, D)`, of results that have them."""
    features = []
    reference = []
    for result in results:
        assert result.feature_pair is not None
        features.append(result.feature_pair[0])
        reference.append(result.feature_pair[1])
    return torch.stack(features), torch.stack(reference)
