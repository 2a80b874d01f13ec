"""Evaluation of the reconstructions of a set of videos or images."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from telecine.autoencoders import VideoAutoencoder
from telecine.base.checks import argument_error
from telecine.base.devices import pick_device
from telecine.base.files import atomic_write, write_json
from telecine.base.imports import how_to_install
from telecine.base.shapes import VALUE_RANGE
from telecine.base.terminal import with_progress
from telecine.data import Span, VideoInfo, bytes_from_video, clips_sha256, pixels_sha256
from telecine.evaluation.flat import flat_colours
from telecine.evaluation.flow import WarpingError, load_flow
from telecine.evaluation.frechet import FeatureNetwork, frechet_distance, load_feature_network
from telecine.evaluation.metrics import BUILT_IN_METRICS, KNOWN_METRICS, ReconstructionMetrics, mean_over_clips
from telecine.evaluation.protocol import DEFINITIONS, EvaluationProtocol
from telecine.evaluation.published import PROTOCOLS, PublishedProtocol
from telecine.evaluation.source import (
    CLIP_SELECTION,
    Model,
    ModelSource,
    VideoSource,
    open_source,
    read_span,
    select_clips,
)
from telecine.evaluation.tiling import TilingDifference
from telecine.perceptual import LPIPS, as_rgb, load_backbone
from telecine.perceptual.weights import tensor_sha256
from telecine.settings import ClipConfig, EvaluateConfig, Tiling

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS_FILE = "metrics.json"
CLIPS_FILE = "clips.json"
FRAMES_FILE = "frames.json"
PROTOCOL_FILE = "protocol.json"

LPIPS_BACKBONES = {"lpips_vgg": "vgg", "lpips_alex": "alex"}
# Distinguishable with red-green colour blindness.
COLOURS = {"A": "#d55e00", "B": "#0072b2", "undecided": "#707070"}


@dataclass(frozen=True)
class _Evaluation:
    """The results of an evaluation: of the set, of each clip and of each frame position, and its protocol."""

    metrics: dict[str, float]
    """Each metric's mean over clips, and the Frechet distance of the whole set."""
    per_clip: list[dict[str, object]]
    """Each clip's metrics, with its file (`source`) and first frame (`start`)."""
    per_frame: dict[str, list[float]]
    """Mean over clips at each frame position, of PSNR (of that frame alone), SSIM and LPIPS."""
    protocol: EvaluationProtocol
    """What was measured and how."""

    def write(self, folder: Path) -> None:
        """Write metrics.json, clips.json, frames.json, frames.png and protocol.json into a folder."""
        write_json(folder / METRICS_FILE, self.metrics)
        write_json(folder / CLIPS_FILE, self.per_clip)
        write_json(folder / FRAMES_FILE, self.per_frame)
        plot_frames({"": self.per_frame}, folder / "frames.png")
        self.protocol.write(folder / PROTOCOL_FILE)

    def print_to(self, console: Console) -> None:
        """Print each metric with its better direction, and the reason for each missing one."""
        protocol = self.protocol
        frames = "whole videos" if protocol.num_frames is None else f"{protocol.num_frames} frames"
        size = "their size" if protocol.height is None else f"{protocol.height} x {protocol.width}"
        name = dict(protocol.published).get("name")
        title = f"{protocol.num_clips} clips, {frames} of {size}{f', protocol {name}' if name else ''}"
        table = Table("metric", "mean", "better", title=title)
        for name, value in self.metrics.items():
            table.add_row(name, f"{value:.4f}", protocol.better(name))
        console.print(table)
        for name, reason in protocol.absent:
            console.print(f"no {name}: {reason}", soft_wrap=True)


def evaluate(checkpoint: Model, config: EvaluateConfig, *, output: str | Path | None = None) -> _Evaluation:
    """Measure reconstructions of clips of `config.data`, computed by an autoencoder or read from videos.

    An autoencoder reconstructs the mode of each clip's posterior. Under `torchrun` the processes share the clips; all
    of them return the same results, and the main process writes the files.

    Args:
        checkpoint: Folder of a run (its last checkpoint), of a checkpoint, or of a saved autoencoder; a module, which
            is moved to the device and to eval mode; or a folder of videos (or one video) that are the reconstructions
            of the videos of the same names in `config.data`.
        config: The settings.
        output: A folder for metrics.json (the whole set), clips.json (each clip), frames.json and frames.png (by frame
            position in a clip), and protocol.json (what was measured and how).

    Raises:
        ValueError: The checkpoint, the data or the size of the clips does not fit.
    """
    with _process_group() as (rank, num_ranks):
        device = _device_of(config.device, num_ranks)
        if config.data is None:
            raise argument_error("data", "a folder of videos or images, or one", "nothing", "Add `--data my_videos/`.")
        if config.protocol is not None:
            PROTOCOLS[config.protocol].check_options(config)
        source, infos = open_source(checkpoint, config, device)
        spans, metric_set, description = _plan(source, infos, config, device)
        if output is not None:
            Path(output).mkdir(parents=True, exist_ok=True)
        flat = _of_flat_clips(source, config)
        results = _gather(_measure_clips(source, metric_set, spans, device, rank, num_ranks), num_ranks)
        if not results:
            got = f"{len(spans)} clips that cannot be decoded"
            raise argument_error("data", "files with a decodable clip", got, "See the log.")
        results.sort(key=lambda result: result.index)
        description |= {"data": config.data, "subject": source.title}
        if isinstance(source, ModelSource):
            description["sampler"] = tuple(source.sampler().items())
        evaluation = _summarize(results, metric_set, description, flat)
        if output is not None and rank == 0:
            evaluation.write(Path(output))
        return evaluation


def _plan(
    source: ModelSource | VideoSource, infos: Sequence[VideoInfo], config: EvaluateConfig, device: torch.device
) -> tuple[Sequence[Span], _MetricSet, dict[str, Any]]:
    """Return the clips, the metrics, and the fields of the protocol that say how clips were selected and read."""
    clips = source.clips
    if isinstance(clips, PublishedProtocol):
        spans = clips.select(infos)
        metric_set = _load_published_metrics(clips, config.features, device)
        description = clips.describe(spans)
    else:
        spans = select_clips(infos, clips, config.clip_limit)
        metric_set = _load_metrics(clips, config.features, device)
        frame_rates = {span.info.fps for span in spans}
        description = {name: getattr(clips, name) for name in ("num_frames", "height", "width")}
        description |= {
            "resize": "the smallest size that covers the crop, aspect kept, antialiased bicubic",
            "crop": "center",
            "places": CLIP_SELECTION,
            "fps": frame_rates.pop() / clips.stride if len(frame_rates) == 1 else None,
            "frame_stride": clips.stride,
        }
    return spans, _with_requested(metric_set, source, config, device), description


def _with_requested(
    metric_set: _MetricSet, source: ModelSource | VideoSource, config: EvaluateConfig, device: torch.device
) -> _MetricSet:
    """Add the measures that settings request."""
    requested: list[Callable[..., dict[str, float]]] = []
    sources = dict(metric_set.backbones)
    if config.flow is not None:
        flow = load_flow(config.flow, device)
        requested.append(WarpingError(flow))
        sources |= dict.fromkeys(("warping_error", "warping_excess"), flow.source)
    if config.chunk is not None or config.tile is not None:
        model = _model_of("chunk" if config.tile is None else "tile", source)
        difference = TilingDifference(
            model, config.chunk, config.overlap_frames, Tiling.of(config.tile, config.tile_overlap)
        )
        requested.append(difference)
        sources |= dict.fromkeys(("pieces_psnr", "seam_psnr"), difference.source)
    return replace(metric_set, requested=requested, backbones=sources)


def _of_flat_clips(source: ModelSource | VideoSource, config: EvaluateConfig) -> dict[str, float]:
    """Return the measures of clips of one colour, if they are requested; these have the size of the other clips."""
    if not config.flat:
        return {}
    model, clips = _model_of("flat", source), source.clips
    assert isinstance(clips, ClipConfig)  # `flat` is refused with a protocol
    return flat_colours(model, clips.num_frames, clips.height, clips.width)


def _model_of(setting: str, source: ModelSource | VideoSource) -> VideoAutoencoder:
    """Return the model that a setting needs; raise a `ValueError` if reconstructions are given as videos."""
    if isinstance(source, VideoSource):
        contract = "left out for reconstructions that are given as videos"
        raise argument_error(setting, contract, source.title, "Pass a model, which reconstructs other clips.")
    return source.model


def _summarize(
    results: Sequence[_ClipResult], metric_set: _MetricSet, description: Mapping[str, Any], flat: dict[str, float]
) -> _Evaluation:
    """Return the results of the whole set, with the protocol."""
    metrics = {**mean_over_clips([result.metrics for result in results]), **flat}
    absent = dict(metric_set.absent)
    definitions: dict[str, str] = {}
    if (network := metric_set.features) is not None and not metric_set.per_clip_frechet:
        distance, reason = _frechet_of_clips(results, network)
        metrics, absent = metrics | distance, absent | reason
        definitions[network.name] = f"{network.definition}; {len(results)} clips; smaller is better"
    protocol = EvaluationProtocol(
        num_clips=len(results),
        num_videos=len({result.source for result in results}),
        clips_sha256=clips_sha256(result.sha256 for result in results),
        metrics=tuple(metrics),
        backbones=tuple(metric_set.backbones.items()),
        definitions=tuple(definitions.items()),
        absent=tuple(absent.items()),
        **description,
    )
    rows = [{"source": result.source, "start": result.start, **result.metrics} for result in results]
    return _Evaluation(metrics, rows, _mean_per_frame(results), protocol)


@dataclass(frozen=True)
class _MetricSet:
    """The metrics of one evaluation, with their networks."""

    built_in: Sequence[str]
    perceptual: Mapping[str, nn.Module]
    """LPIPS modules by metric name."""
    features: FeatureNetwork | None
    backbones: Mapping[str, str]
    """The weights of each network, by metric name."""
    absent: Mapping[str, str]
    """The reason for each metric that cannot be measured."""
    per_clip_frechet: bool = False
    """Whether the Frechet distance is that of sets of one clip each."""
    values: Callable[[Tensor], Tensor] = field(default=lambda video: video.clamp(*VALUE_RANGE))
    """Maps inputs and reconstructions to the values that are measured."""
    requested: Sequence[Callable[..., dict[str, float]]] = ()
    """Measures on request: called with `reconstruction` and `target` `(1, 3, T, H, W)`, each returns values by name."""


def _load_metrics(clips: ClipConfig, features: str | None, device: torch.device) -> _MetricSet:
    """Load all metrics that are defined for these clips; raise a `ValueError` if they are too short for `features`."""
    known = (*BUILT_IN_METRICS, *LPIPS_BACKBONES)
    names, absent = _available_metrics(known, clips.num_frames, clips.height, clips.width)
    perceptual, backbones = _load_lpips(names, device)
    network = None if features is None else load_feature_network(features, device)
    if network is not None:
        if clips.num_frames < network.min_frames:
            contract = f"at least {network.min_frames} for {network.name}"
            remedy = "Set a larger `num_frames`, or leave `features` out."
            raise argument_error("num_frames", contract, clips.num_frames, remedy)
        backbones[network.name] = network.source
    built_in = [name for name in names if name not in LPIPS_BACKBONES]
    return _MetricSet(built_in, perceptual, network, backbones, absent)


def _available_metrics(
    names: Sequence[str], num_frames: int, height: int, width: int
) -> tuple[list[str], dict[str, str]]:
    """Return the metrics that are defined for clips of this size, and the reason for each other metric."""
    reasons = {name: DEFINITIONS[name].unavailable_reason(num_frames, height, width) for name in names}
    absent = {name: reason for name, reason in reasons.items() if reason is not None}
    return [name for name in names if name not in absent], absent


def _load_lpips(names: Sequence[str], device: torch.device) -> tuple[dict[str, LPIPS], dict[str, str]]:
    """Return the LPIPS modules among these metrics by name, and the hashes of their weights."""
    weights = {name: load_backbone(net) for name, net in LPIPS_BACKBONES.items() if name in names}
    modules = {name: LPIPS(LPIPS_BACKBONES[name], weights=tensors).to(device) for name, tensors in weights.items()}
    return modules, {name: f"sha256 {tensor_sha256(tensors)}" for name, tensors in weights.items()}


def _load_published_metrics(protocol: PublishedProtocol, features: str | None, device: torch.device) -> _MetricSet:
    """Load the metrics of a protocol; raise a `ValueError` if a package is not installed."""
    if "ssim_uniform" in protocol.metrics and importlib.util.find_spec("skimage") is None:
        got = f"{protocol.name} without the package scikit-image"
        raise argument_error("protocol", "one whose packages are installed", got, how_to_install("protocols"))
    built_in = [name for name in protocol.metrics if name in KNOWN_METRICS]
    perceptual, backbones = _load_lpips(protocol.metrics, device)
    (frechet,) = (name for name in protocol.metrics if name.startswith("fvd"))  # of all clips, or of single ones
    network, absent = None, {frechet: "needs the I3D of StyleGAN-V, i3d_torchscript.pt, as `features`"}
    if features is not None:
        network, absent = load_feature_network(features, device), {}
        backbones[frechet] = network.source
    is_single, values = frechet == "fvd_single", protocol.measured_values
    return _MetricSet(built_in, perceptual, network, backbones, absent, is_single, values)


@dataclass(frozen=True)
class _ClipResult:
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
def _process_group() -> Iterator[tuple[int, int]]:
    """Yield the rank of this process and the number of processes that share an evaluation.

    They are those of the current process group, or under `torchrun` of one of gloo, which is destroyed at the end.
    """
    joins = dist.is_available() and dist.is_initialized()
    starts = not joins and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if starts:
        dist.init_process_group("gloo")
    try:
        yield (dist.get_rank(), dist.get_world_size()) if joins or starts else (0, 1)
    finally:
        if starts:
            dist.destroy_process_group()


def _device_of(name: str, num_ranks: int) -> torch.device:
    """Return this process' device. On a machine with several GPUs, each process gets a different one."""
    device = pick_device(name)
    if device.type != "cuda" or num_ranks == 1:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _gather(results: list[_ClipResult], num_ranks: int) -> list[_ClipResult]:
    """Return the results of all processes, in rank order, on every process."""
    if num_ranks == 1:
        return results
    gathered: list[list[_ClipResult]] = [[] for _ in range(num_ranks)]
    dist.all_gather_object(gathered, results)
    return [result for of_rank in gathered for result in of_rank]


@torch.no_grad()
def _measure_clips(
    source: ModelSource | VideoSource,
    metric_set: _MetricSet,
    spans: Sequence[Span],
    device: torch.device,
    rank: int,
    num_ranks: int,
) -> list[_ClipResult]:
    """Measure the clips of this process: process i of N measures the clips i, i + N, i + 2N, ..."""
    indices: Iterable[int] = range(rank, len(spans), num_ranks)
    if rank == 0:
        indices = with_progress(indices, "measuring")
    results = (_measure_clip(index, source, metric_set, spans[index], device) for index in indices)
    return [result for result in results if result is not None]


def _measure_clip(
    index: int, source: ModelSource | VideoSource, metric_set: _MetricSet, span: Span, device: torch.device
) -> _ClipResult | None:
    """Return the results of one clip, or None if it cannot be decoded."""
    clip = read_span(span, source.clips)
    if clip is None:
        return None
    clip_input = clip["video"][None].to(device)
    reconstruction = metric_set.values(source.reconstruct(span, clip_input))
    target = metric_set.values(clip_input)
    metrics = ReconstructionMetrics(metric_set.perceptual, metrics=metric_set.built_in)
    metrics.update(reconstruction=reconstruction, target=target)
    values, features = metrics.per_clip()[0], None
    if metric_set.features is not None:
        in_rgb = as_rgb(reconstruction), as_rgb(target)
        features = metric_set.features(in_rgb[0])[0].cpu(), metric_set.features(in_rgb[1])[0].cpu()
        if metric_set.per_clip_frechet:
            values["fvd_single"] = float((features[0].double() - features[1].double()).square().sum())
    for measure in metric_set.requested:
        values |= measure(reconstruction=reconstruction, target=target)
    sha256 = pixels_sha256(bytes_from_video(clip["video"]))
    return _ClipResult(index, clip["source"], clip["start"], values, metrics.per_frame()[0], sha256, features)


def _mean_per_frame(results: Sequence[_ClipResult]) -> dict[str, list[float]]:
    """Return the mean of each frame metric at each frame position, over the clips that have this position."""
    means: dict[str, list[float]] = {}
    for name in results[0].per_frame:
        columns = zip_longest(*(result.per_frame[name] for result in results))
        known = ([value for value in column if value is not None] for column in columns)
        means[name] = [sum(values) / len(values) for values in known]
    return means


def _frechet_of_clips(
    results: Sequence[_ClipResult], network: FeatureNetwork
) -> tuple[dict[str, float], dict[str, str]]:
    """Return two dicts by the name of the Frechet distance: the distance, or the reason why it is undefined."""
    pairs = [result.features for result in results if result.features is not None]
    features, reference = (torch.stack(column) for column in zip(*pairs, strict=True))
    num_clips, num_features = features.shape
    if num_clips <= num_features:
        reason = f"needs at least {num_features + 1} clips, not {num_clips}: with fewer, the covariance of its "
        reason += f"{num_features} features is singular"
    elif not (features.isfinite().all() and reference.isfinite().all()):
        reason = "its features are not finite: the reconstructions contain NaN, or the network overflows"
    else:
        return {network.name: frechet_distance(features=features, reference=reference)}, {}
    return {}, {network.name: reason}


def plot_frames(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Plot each metric over the frame position in a clip, a line for each label of `curves`; write a PNG atomically."""
    from matplotlib.figure import Figure  # takes a second to import, which `telecine --help` must not spend

    names = list(dict.fromkeys(name for evaluation in curves.values() for name in evaluation))
    figure = Figure(figsize=(3.6 * len(names), 3), dpi=100, layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False).flat, strict=True):
        _plot_metric(axes, name, curves)
    atomic_write(path, lambda partial: figure.savefig(partial, format="png"))


def _plot_metric(axes: Axes, name: str, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    for label, evaluation in curves.items():
        if name in evaluation:
            positions = range(len(evaluation[name]))
            axes.plot(positions, evaluation[name], marker="o", markersize=3, label=label, color=COLOURS.get(label))
    low, high = axes.get_ylim()
    smallest = 1.0 if name == "psnr" else 0.01  # range of values, so that imperceptible differences look small
    missing = max(0.0, smallest - (high - low)) / 2
    axes.set_ylim(low - missing, high + missing)
    axes.set_title(f"{name}, {DEFINITIONS[name].better} is better", fontsize=9)
    axes.set_xlabel("frame of the clip", fontsize=8)
    axes.locator_params(axis="x", integer=True)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if any(curves):
        axes.legend(fontsize=8)
