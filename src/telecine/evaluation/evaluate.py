"""Evaluation of the reconstructions of a set of videos or images."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from telecine.base.checks import argument_error, check_type
from telecine.base.devices import pick_device
from telecine.base.files import atomic_write, read_json, write_json
from telecine.data import Span, VideoInfo, clips_sha256
from telecine.evaluation.flow import DISFlow, WarpingError
from telecine.evaluation.measure import (
    ClipResult,
    MetricSet,
    frechet_of_clips,
    load_metrics,
    load_published_metrics,
    mean_per_frame,
    measure_clips,
    measure_flat_colours,
    process_group,
)
from telecine.evaluation.metrics import mean_over_clips
from telecine.evaluation.protocol import DEFINITIONS, SET_DEFINITIONS, EvaluationProtocol, better_values, describe_clips
from telecine.evaluation.published import PROTOCOLS, PublishedProtocol
from telecine.evaluation.source import CLIP_SELECTION, Model, ModelSource, VideoSource, open_source, select_clips
from telecine.evaluation.tiling import TilingDifference
from telecine.models import VideoAutoencoder
from telecine.runs.history import as_dataclass
from telecine.settings import EvaluateConfig, Tiling

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS_FILE = "metrics.json"
CLIPS_FILE = "clips.json"
FRAMES_FILE = "frames.json"
PROTOCOL_FILE = "protocol.json"

# Distinguishable with red-green colour blindness.
COLOURS = {"A": "#d55e00", "B": "#0072b2", "undecided": "#707070"}


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation: of the set, of each clip and of each frame position, and its protocol."""

    metrics: dict[str, float]  # each metric's mean over clips, and the Frechet distance of the whole set
    per_clip: list[dict[str, float | str]]  # each clip's metrics, with its file (`source`) and first frame (`start`)
    per_frame: dict[str, list[float]]
    """Mean over clips at each frame position, of PSNR (of that frame alone), SSIM and LPIPS."""
    protocol: EvaluationProtocol  # what was measured and how

    def write(self, folder: Path) -> None:
        """Write metrics.json, clips.json, frames.json, frames.png and protocol.json into a folder."""
        (folder / PROTOCOL_FILE).unlink(missing_ok=True)  # that of other figures
        write_json(folder / METRICS_FILE, self.metrics)
        write_json(folder / CLIPS_FILE, self.per_clip)
        write_json(folder / FRAMES_FILE, self.per_frame)
        plot_frames({"": self.per_frame}, folder / "frames.png")
        write_json(folder / PROTOCOL_FILE, asdict(self.protocol))

    @staticmethod
    def read(folder: Path) -> tuple[dict[str, Any], dict[str, float], list[dict[str, Any]]]:
        """Return the protocol of an evaluation, its means and its clips; raise a `ValueError` if one is damaged."""
        protocol, means = (read_json(folder / name) for name in (PROTOCOL_FILE, METRICS_FILE))
        contract, remedy = "an evaluation as it was written", "Evaluate again."
        try:
            clips = json.loads((folder / CLIPS_FILE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise argument_error(str(folder / CLIPS_FILE), "JSON", f"other text ({error})", remedy) from error
        values = {"protocol": protocol, "metrics": means, "per_clip": clips, "per_frame": {}}
        evaluation = as_dataclass(Evaluation, values, str(folder), contract, remedy)
        names = evaluation.protocol.metrics.keys()
        of_clip = {name for name in names - SET_DEFINITIONS.keys() if not name.startswith("flat_")} | {"source"}
        is_whole = names <= means.keys() and all(of_clip <= clip.keys() for clip in clips)
        if not is_whole or not len(clips) == evaluation.protocol.num_clips > 0:
            raise argument_error(str(folder), contract, "other clips or metrics than in its protocol", remedy)
        return protocol, means, clips

    def print_to(self, console: Console) -> None:
        """Print each metric with its better direction, and the reason for each missing one."""
        table = Table("metric", "mean", "better", title=describe_clips(asdict(self.protocol)))
        for name, definition in self.protocol.metrics.items():
            table.add_row(name, f"{self.metrics[name]:.4f}", better_values(definition))
        console.print(table)
        for name, reason in self.protocol.absent.items():
            console.print(f"no {name}: {reason}", soft_wrap=True)


def evaluate(checkpoint: Model, config: EvaluateConfig, *, output: str | Path | None = None) -> Evaluation:
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
    check_type("config", config, EvaluateConfig, 'Use `EvaluateConfig(data="my_videos")`.')
    with process_group() as (rank, num_ranks):
        device = _device_of(config.device, num_ranks)
        if config.data is None:
            raise argument_error("data", "a file, or a folder of files", "nothing", "Add `--data my_videos/`.")
        if config.protocol is not None:
            PROTOCOLS[config.protocol].check_options(config)
        source, infos = open_source(checkpoint, config, device)
        spans, metric_set, description = _plan(source, infos, config, device)
        if output is not None:
            Path(output).mkdir(parents=True, exist_ok=True)
        size = (description["num_frames"], description["height"], description["width"])
        flat = measure_flat_colours(_model_of("flat", source), *size) if config.flat else {}
        results = measure_clips(source, metric_set, spans, device, rank, num_ranks)
        if not results:
            got = f"{len(spans)} clips that cannot be decoded"
            raise argument_error("data", "files with a decodable clip", got, "See the log.")
        description |= {"data": config.data, "subject": source.title}
        if isinstance(source, ModelSource):
            description["sampler"] = source.model.describe_decoding()
        evaluation = _summarize(results, metric_set, description, flat)
        if output is not None and rank == 0:
            evaluation.write(Path(output))
        return evaluation


def _device_of(name: str, num_ranks: int) -> torch.device:
    """Return this process' device. On a machine with several GPUs, each process gets a different one."""
    device = pick_device(name)
    if device.type != "cuda" or num_ranks == 1:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _plan(
    source: ModelSource | VideoSource, infos: Sequence[VideoInfo], config: EvaluateConfig, device: torch.device
) -> tuple[Sequence[Span], MetricSet, dict[str, Any]]:
    """Return the clips, the metrics, and the fields of the protocol that say how clips were selected and read."""
    clips = source.clips
    if isinstance(clips, PublishedProtocol):
        spans = clips.select(infos)
        metric_set = load_published_metrics(clips, config.feature_network, spans, device)
        description = clips.describe(spans)
    else:
        spans = select_clips(infos, clips, config.clip_limit)
        metric_set = load_metrics(clips, config, device)
        frame_rates = {span.info.fps for span in spans}
        description = {name: getattr(clips, name) for name in ("num_frames", "height", "width")}
        description |= {
            "resize": "the smallest size that covers the crop, aspect kept, antialiased bicubic",
            "crop": "center",
            "places": CLIP_SELECTION,
            "fps": frame_rates.pop() / clips.stride if len(frame_rates) == 1 else None,
            "frame_stride": clips.stride,
        }
    return spans, _with_requested(metric_set, source, config), description


def _with_requested(metric_set: MetricSet, source: ModelSource | VideoSource, config: EvaluateConfig) -> MetricSet:
    requested: list[Callable[..., dict[str, float]]] = []
    sources = dict(metric_set.backbones)
    if config.flow is not None:
        flow = DISFlow()
        requested.append(WarpingError(flow))
        sources |= dict.fromkeys(("warping_error", "warping_excess"), flow.source)
    if config.chunk is not None or config.tile is not None:
        model = _model_of("chunk" if config.tile is None else "tile", source)
        tiling = Tiling.of(config.tile, config.tile_overlap)
        difference = TilingDifference(model, config.chunk, config.overlap_frames, tiling)
        requested.append(difference)
        sources |= dict.fromkeys(("pieces_psnr", "seam_psnr"), difference.source)
    return replace(metric_set, requested=requested, backbones=sources)


def _model_of(setting: str, source: ModelSource | VideoSource) -> VideoAutoencoder:
    if isinstance(source, VideoSource):
        contract = "left out for reconstructions that are given as videos"
        raise argument_error(setting, contract, source.title, "Pass a model, which reconstructs other clips.")
    return source.model


def _summarize(
    results: Sequence[ClipResult], metric_set: MetricSet, description: Mapping[str, Any], flat: dict[str, float]
) -> Evaluation:
    metrics, absent = mean_over_clips([each.metrics for each in results]) | flat, dict(metric_set.absent)
    definitions = {name: str(definition) for name, definition in DEFINITIONS.items()}
    if (network := metric_set.features) is not None and not metric_set.per_clip_frechet:
        distance, reason = frechet_of_clips(results, network)
        metrics, absent = metrics | distance, absent | reason
        definitions[network.name] = f"{network.definition}; {len(results)} clips; smaller is better"
    protocol = EvaluationProtocol(
        num_clips=len(results),
        num_videos=len({result.source for result in results}),
        clips_sha256=clips_sha256(result.sha256 for result in results),
        metrics={name: definitions[name] for name in metrics},
        backbones=metric_set.backbones,
        absent=absent,
        **description,
    )
    rows = [dict[str, float | str](source=each.source, start=each.start, **each.metrics) for each in results]
    return Evaluation(metrics, rows, mean_per_frame(results), protocol)


def plot_frames(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Plot each metric over the frame position in a clip, a line for each label of `curves`; write a PNG atomically."""
    from matplotlib.figure import Figure  # takes a second to import, which `telecine --help` must not spend

    names = list(dict.fromkeys(name for evaluation in curves.values() for name in evaluation))
    figure = Figure(figsize=(3.6 * len(names), 3), dpi=100, layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False).flat, strict=True):
        _plot_metric(axes, name, curves)
    atomic_write(path, lambda partial: figure.savefig(partial, format="png"))


def _plot_metric(axes: "Axes", name: str, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
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
