"""The measurement of clips: the metrics of an evaluation, their networks, and the results of each clip."""

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, product, zip_longest

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.imports import how_to_install
from telecine.base.shapes import VALUE_RANGE
from telecine.base.terminal import with_progress
from telecine.data import Span, bytes_from_video, pixels_sha256
from telecine.evaluation.frechet import FeatureNetwork, frechet_distance, load_feature_network
from telecine.evaluation.metrics import BUILT_IN_METRICS, KNOWN_METRICS, ReconstructionMetrics
from telecine.evaluation.protocol import DEFINITIONS
from telecine.evaluation.published import PublishedProtocol
from telecine.evaluation.source import ModelSource, VideoSource, read_span
from telecine.losses.perceptual import LPIPS, as_rgb, load_backbone
from telecine.losses.perceptual.weights import tensor_sha256
from telecine.models import VideoAutoencoder
from telecine.settings import ClipConfig, EvaluateConfig

_LPIPS_BACKBONES = {"lpips_vgg": "vgg", "lpips_alex": "alex"}
# Grey, and the corners of a cube inside the colours, which a ringing reconstruction can leave on both sides.
_FLAT_COLOURS = ((0.0, 0.0, 0.0), *product((-0.8, 0.8), repeat=3))
_LEVELS = 127.5  # a difference of 1 in [-1, 1], in levels of 8 bits


@dataclass(frozen=True)
class MetricSet:
    """The metrics of one evaluation, with their networks."""

    built_in: Sequence[str]
    perceptual: Mapping[str, nn.Module]  # LPIPS modules by metric name
    features: FeatureNetwork | None
    backbones: Mapping[str, str]  # the weights of each network, by metric name
    absent: Mapping[str, str]  # the reason for each metric that cannot be measured
    per_clip_frechet: bool = False  # whether the Frechet distance is that of sets of one clip each
    values: Callable[[Tensor], Tensor] = field(default=lambda video: video.clamp(*VALUE_RANGE))
    """Maps inputs and reconstructions to the values that are measured."""
    requested: Sequence[Callable[..., dict[str, float]]] = ()
    """Measures on request: called with `reconstruction` and `target` `(1, 3, T, H, W)`, each returns values by name."""


def load_metrics(clips: ClipConfig, config: EvaluateConfig, device: torch.device) -> MetricSet:
    """Load all metrics that are defined for these clips; raise a `ValueError` if what was requested is not."""
    features = config.feature_network
    known = (*BUILT_IN_METRICS, *_LPIPS_BACKBONES)
    size = clips.num_frames, clips.height, clips.width
    absent = {name: reason for name in known if (reason := DEFINITIONS[name].unavailable_reason(*size))}
    if not clips.has_colours:
        absent |= dict.fromkeys(_LPIPS_BACKBONES, f"knows colours, not {clips.num_channels} channels")
        for name, value in {"flow": config.flow, "flat": config.flat}.items():
            if value:
                raise _needs_colours(name, value, clips)
    network = load_frechet_network(features, clips, device)
    names = [name for name in known if name not in absent]
    return _metric_set(names, absent, network, network.name if network else "", device)


def load_frechet_network(features: str | None, clips: ClipConfig, device: torch.device) -> FeatureNetwork | None:
    """Return the network that `EvaluateConfig.features` names; raise a `ValueError` if clips are none of its own."""
    if features is None:
        return None
    if not clips.has_colours:
        raise _needs_colours("features", features, clips)
    network = load_feature_network(features, device)
    if clips.num_frames < network.min_frames:
        contract, remedy = f"at least {network.min_frames} for {network.name}", "Use longer clips, or no `features`."
        raise argument_error("num_frames", contract, clips.num_frames, remedy)
    return network


def _needs_colours(name: str, value: object, clips: ClipConfig) -> Exception:
    contract, got = "left out unless clips have 1, 3 or 4 channels", f"{value} for {clips.num_channels}"
    return argument_error(name, contract, got, "Leave it out.")


def _metric_set(
    names: Sequence[str], absent: Mapping[str, str], network: FeatureNetwork | None, frechet: str, device: torch.device
) -> MetricSet:
    weights = {name: load_backbone(net) for name, net in _LPIPS_BACKBONES.items() if name in names}
    perceptual = {name: LPIPS(_LPIPS_BACKBONES[name], weights=each).to(device) for name, each in weights.items()}
    backbones = {name: f"sha256 {tensor_sha256(each)}" for name, each in weights.items()}
    backbones |= {} if network is None else {frechet: network.source}
    return MetricSet([name for name in names if name in KNOWN_METRICS], perceptual, network, backbones, absent)


def load_published_metrics(
    protocol: PublishedProtocol, features: str | None, spans: Sequence[Span], device: torch.device
) -> MetricSet:
    """Load the metrics of a protocol; raise a `ValueError` if a package is missing, or a clip is too short for one."""
    if "ssim_uniform" in protocol.metrics and importlib.util.find_spec("skimage") is None:
        got = f"{protocol.name} without the package scikit-image"
        raise argument_error("protocol", "one whose packages are installed", got, how_to_install("protocols"))
    (frechet,) = (name for name in protocol.metrics if name.startswith("fvd"))  # of all clips, or of single ones
    shortest = ClipConfig(num_frames=protocol.num_frames or min(span.num_frames for span in spans))
    network = load_frechet_network(features, shortest, device)
    absent = {} if network else {frechet: "needs the I3D of StyleGAN-V, i3d_torchscript.pt, as `features`"}
    metric_set = _metric_set(protocol.metrics, absent, network, frechet, device)
    return replace(metric_set, per_clip_frechet=frechet == "fvd_single", values=protocol.measured_values)


@dataclass(frozen=True)
class ClipResult:
    """The results of one clip."""

    index: int  # its position among the selected clips
    source: str
    start: int  # position of its first frame in the file
    metrics: Mapping[str, float]
    per_frame: Mapping[str, list[float]]
    sha256: str  # hash of its input's pixels at 8 bits
    features: tuple[Tensor, Tensor] | None = None
    """Feature vectors `(D,)` of reconstruction and input, if a Frechet distance is computed."""


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
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


@torch.no_grad()
def measure_clips(
    source: ModelSource | VideoSource,
    metric_set: MetricSet,
    spans: Sequence[Span],
    device: torch.device,
    rank: int,
    num_ranks: int,
) -> list[ClipResult]:
    """Return the results of the clips in order, on every process: process i of N measures the clips i, i + N, ..."""
    indices: Iterable[int] = range(rank, len(spans), num_ranks)
    if rank == 0:
        indices = with_progress(indices, "measuring")
    results = (_measure_clip(index, source, metric_set, spans[index], device) for index in indices)
    found = [result for result in results if result is not None]
    gathered = [found]
    if num_ranks > 1:
        gathered = [[] for _ in range(num_ranks)]
        dist.all_gather_object(gathered, found)
    return sorted(chain.from_iterable(gathered), key=lambda result: result.index)


def _measure_clip(
    index: int, source: ModelSource | VideoSource, metric_set: MetricSet, span: Span, device: torch.device
) -> ClipResult | None:
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
    return ClipResult(index, clip["source"], clip["start"], values, metrics.per_frame()[0], sha256, features)


@torch.no_grad()
def measure_flat_colours(model: VideoAutoencoder, num_frames: int, height: int, width: int) -> dict[str, float]:
    """Return `flat_error`, `flat_grid` and, for several frames, `flat_shimmer` of clips of `_FLAT_COLOURS`.

    Grey models get their means, RGBA models opaque ones. Any pattern and any motion comes from the autoencoder. Root
    mean squares in levels of 8 bits: of the error of the mean colour, of each frame's pixels about that frame's mean,
    and of the changes of a pixel from frame to frame.
    """
    colours = torch.tensor(_FLAT_COLOURS, device=model.last_layer.device)
    extra = model.in_channels - 3  # an alpha
    colours = colours.mean(1, keepdim=True) if model.in_channels == 1 else F.pad(colours, (0, extra), value=1.0)
    clips = colours[:, None, :, None, None, None].expand(-1, -1, -1, num_frames, height, width)
    found = [_LEVELS * (model(clip, sample_posterior=False).video.float().clamp(*VALUE_RANGE) - clip) for clip in clips]
    errors = torch.cat(found)
    values = {
        "flat_error": errors.mean((2, 3, 4)),
        "flat_grid": errors - errors.mean((3, 4), keepdim=True),
        "flat_shimmer": errors.diff(dim=2),
    }
    return {name: float(value.square().mean().sqrt()) for name, value in values.items() if value.numel() > 0}


def mean_per_frame(results: Sequence[ClipResult]) -> dict[str, list[float]]:
    """Return the mean of each frame metric at each frame position, over the clips that have this position."""
    means: dict[str, list[float]] = {}
    for name in results[0].per_frame:
        columns = zip_longest(*(result.per_frame[name] for result in results))
        known = ([value for value in column if value is not None] for column in columns)
        means[name] = [sum(values) / len(values) for values in known]
    return means


def frechet_of_clips(results: Sequence[ClipResult], network: FeatureNetwork) -> tuple[dict[str, float], dict[str, str]]:
    """Return two dicts by the name of the Frechet distance: the distance, or the reason why it is undefined."""
    pairs = [result.features for result in results if result.features is not None]
    features, reference = (torch.stack(column) for column in zip(*pairs, strict=True))
    if (reason := frechet_undefined(features, reference)) is not None:
        return {}, {network.name: reason}
    return {network.name: frechet_distance(features=features, reference=reference)}, {}


def frechet_undefined(*sets: Tensor) -> str | None:
    """Return why the Frechet distance of sets of features `(N, D)` is undefined; None if it is defined."""
    num_clips, num_features = min(len(each) for each in sets), sets[0].shape[1]
    if num_clips <= num_features:
        return f"needs at least {num_features + 1} clips, not {num_clips}: with fewer, the covariance is singular"
    if not all(each.isfinite().all() for each in sets):
        return "its features are not finite: the reconstructions contain NaN, or the network overflows"
    return None
