"""Evaluation of the reconstructions of a set of videos or images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from torch import nn

from telecine.base.checks import argument_error, check_type
from telecine.base.devices import device_of_process
from telecine.base.files import atomic_write, named_errors, read_json, write_json
from telecine.base.plain_values import as_dataclass
from telecine.base.precision import tf32
from telecine.data import clips_sha256
from telecine.evaluation.evaluation_record import EvaluationRecord, describe_clips
from telecine.evaluation.load_model import Model
from telecine.evaluation.measure_clips import (
    ClipResult,
    mean_per_frame,
    mean_per_pass,
    measure_clips,
    process_group,
    stack_features,
)
from telecine.evaluation.metrics import mean_over_clips
from telecine.evaluation.metrics.flat import measure_flat_colours
from telecine.evaluation.metrics.flow import DISFlow, WarpingError
from telecine.evaluation.metrics.frechet import frechet_distance, frechet_undefined
from telecine.evaluation.metrics.metric import METRICS
from telecine.evaluation.metrics.metric_set import ClipMeasure, Measure, MetricSet, ModelMeasure
from telecine.evaluation.metrics.round_trips import ROUND_TRIP_LATENT, RoundTrips
from telecine.evaluation.metrics.seams import TilingDifference
from telecine.evaluation.protocols.papers import PROTOCOLS
from telecine.evaluation.reconstruction_sources import ModelSource, VideoSource, open_source
from telecine.evaluation.speed import SPEED_FILE, Speed, describe_speed, measure_speed
from telecine.models import VideoAutoencoder
from telecine.settings import EvaluateConfig, Tiling

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS_FILE = "metrics.json"
CLIPS_FILE = "clips.json"
FRAMES_FILE = "frames.json"
ROUND_TRIPS_FILE = "round_trips.json"
ROUND_TRIPS_PAGE = "round_trips.html"
PROTOCOL_FILE = "protocol.json"

# Distinguishable with red-green colour blindness.
COLOURS = {"A": "#d55e00", "B": "#0072b2", "undecided": "#707070"}


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation: of the set, of each clip and of each frame position, and its protocol."""

    metrics: dict[str, float]
    """Each metric's mean over clips, and the Frechet distance of the whole set."""
    per_clip: list[dict[str, float | str]]
    """Each clip's metrics, with its file (`source`) and first frame (`start`)."""
    per_frame: dict[str, list[float]]
    """Mean over clips at each frame position, of PSNR (of that frame alone), SSIM and LPIPS."""
    protocol: EvaluationRecord
    """What was measured and how."""
    per_pass: dict[str, list[float]] = field(default_factory=dict)
    """Mean over clips after each pass of round trips, see `RoundTrips`; empty without them."""
    speed: Speed | None = None
    """How fast the autoencoder is, if that was requested."""

    def write(self, folder: Path) -> None:
        """Write metrics.json, clips.json, frames.json, frames.png and protocol.json into a folder.

        An evaluation of round trips also writes round_trips.json and round_trips.png, one of speed speed.json.
        """
        # Written last: it marks a complete evaluation.
        (folder / PROTOCOL_FILE).unlink(missing_ok=True)
        # That of an earlier evaluation: `telecine.report` writes it.
        (folder / ROUND_TRIPS_PAGE).unlink(missing_ok=True)
        write_json(folder / METRICS_FILE, self.metrics)
        write_json(folder / CLIPS_FILE, self.per_clip)
        write_json(folder / FRAMES_FILE, self.per_frame)
        plot_frames({"": self.per_frame}, folder / "frames.png")
        passes_plot = folder / "round_trips.png"
        if self.per_pass:
            write_json(folder / ROUND_TRIPS_FILE, self.per_pass)
            plot_passes(self.per_pass, passes_plot)
        else:  # remove those of an earlier evaluation
            (folder / ROUND_TRIPS_FILE).unlink(missing_ok=True)
            passes_plot.unlink(missing_ok=True)
        if self.speed is None:
            (folder / SPEED_FILE).unlink(missing_ok=True)
        else:
            write_json(folder / SPEED_FILE, asdict(self.speed))
        write_json(folder / PROTOCOL_FILE, asdict(self.protocol))

    def print_to(self, console: Console) -> None:
        """Print each metric with its better direction, the passes of round trips, and why a metric is missing."""
        table = Table("metric", "mean", "better", title=describe_clips(asdict(self.protocol)))
        for name in self.protocol.metrics:
            table.add_row(name, f"{self.metrics[name]:.4f}", self.protocol.better.get(name, ""))
        console.print(table)
        if self.per_pass:
            passes = Table("pass", *self.pass_columns(), title="round trips")
            for number, values in self.pass_rows():
                passes.add_row(number, *values)
            console.print(passes)
        if self.speed is not None:
            console.print(_speed_table(self.speed, self.protocol.speed))
        for name, reason in self.protocol.absent.items():
            console.print(f"no {name}: {reason}", soft_wrap=True)

    def pass_columns(self) -> list[str]:
        """Return the columns of the table of round trips: what is measured after each pass."""
        return [name.removeprefix("round_trip_") for name in self.per_pass]

    def pass_rows(self) -> list[tuple[str, list[str]]]:
        """Return the rows of the table of round trips: the number of each pass, and its values."""
        rows = []
        for number, values in enumerate(zip(*self.per_pass.values(), strict=True), start=1):
            rows.append((str(number), [f"{value:.3f}" for value in values]))
        return rows


@dataclass(frozen=True)
class SavedEvaluation:
    """An evaluation as its files hold it. A protocol of an older version lacks fields."""

    protocol: dict[str, Any]
    """The content of protocol.json, with `better` of each metric, which older versions did not write."""
    metrics: dict[str, float]
    """See `Evaluation.metrics`."""
    per_clip: list[dict[str, float | str]]
    """See `Evaluation.per_clip`."""

    @staticmethod
    def read(folder: Path) -> "SavedEvaluation":
        """Read an evaluation from its output folder.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, or the files do not fit each other.
        """
        if not (folder / PROTOCOL_FILE).exists():
            contract = f"the output folder of an evaluation, with {PROTOCOL_FILE}"
            got = "another one" if folder.is_dir() else "no folder"
            remedy = "Pass the `--output` of `telecine evaluate`."
            raise argument_error(str(folder), contract, got, remedy, FileNotFoundError)
        protocol = read_json(folder / PROTOCOL_FILE)
        metrics = read_json(folder / METRICS_FILE)
        contract = "an evaluation as it was written"
        remedy = "Evaluate again."
        try:
            with named_errors(folder / CLIPS_FILE):
                clips = json.loads((folder / CLIPS_FILE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise argument_error(
                str(folder / CLIPS_FILE), "JSON", f"other text ({error})", remedy
            ) from error
        # The record of an older version gets defaults here, such as the present versions, which would be wrong in what
        # is returned.
        record = as_dataclass(
            EvaluationRecord, protocol, str(folder / PROTOCOL_FILE), contract, remedy
        )
        values = {"protocol": protocol, "metrics": metrics, "per_clip": clips}
        as_dataclass(SavedEvaluation, values, str(folder), contract, remedy)
        clip_keys = {"source"}
        for name in record.metrics:
            if name not in METRICS or METRICS[name].is_per_clip:
                clip_keys.add(name)
        is_whole = (
            record.metrics.keys() <= metrics.keys()
            and all(clip_keys <= clip.keys() for clip in clips)
            and len(clips) == record.num_clips > 0
        )
        if not is_whole:
            raise argument_error(
                str(folder), contract, "other clips or metrics than in its protocol", remedy
            )
        better: dict[str, str] = {}
        for name, definition in record.metrics.items():
            # In files of older versions, only the definition says it.
            last_part = definition.rpartition("; ")[2]
            better[name] = record.better.get(name, last_part.removesuffix(" is better"))
        return SavedEvaluation({**protocol, "better": better}, metrics, clips)


@tf32(False)
def evaluate(
    checkpoint: Model, config: EvaluateConfig, *, output: str | Path | None = None
) -> Evaluation:
    """Measure reconstructions of clips of `config.data`, computed by an autoencoder or read from videos.

    An autoencoder reconstructs the mode of each clip's posterior. It and the metrics compute without TF32. Under
    `torchrun` the processes share the clips; all of them return the same results, and the main one writes the files.

    Args:
        checkpoint: Folder of a run (its last checkpoint), of a checkpoint, or of a saved autoencoder; a module, which
            is moved to the device and to eval mode; or a folder of videos (or one video) that are the reconstructions
            of the videos of the same names in `config.data`.
        config: The settings.
        output: A folder for metrics.json (the whole set), clips.json (each clip), frames.json and frames.png (by frame
            position in a clip), and protocol.json (what was measured and how); with `round_trips` also for
            round_trips.json and round_trips.png (each pass), with `speed` for speed.json.

    Raises:
        ValueError: The checkpoint, the data or the size of the clips does not fit.
    """
    check_type("config", config, EvaluateConfig, 'Use `EvaluateConfig(data="my_videos")`.')
    with process_group() as (rank, num_ranks):
        device = device_of_process(config.device, num_ranks)
        if config.data is None:
            raise argument_error(
                "data", "a file, or a folder of files", "nothing", "Add `--data my_videos/`."
            )
        if config.protocol is not None:
            PROTOCOLS[config.protocol].check_options(config)
        source, infos = open_source(checkpoint, config, device)
        spans = source.protocol.select(infos)
        metric_set = source.protocol.load_metrics(spans, config, device)
        metric_set = _with_requested(metric_set, source, config)
        description = source.protocol.describe(spans)
        if output is not None:
            Path(output).mkdir(parents=True, exist_ok=True)
        flat_figures = {}
        if config.flat:
            size = (description["num_frames"], description["height"], description["width"])
            flat_figures = measure_flat_colours(_model_of("flat", source), *size)
        speed = None
        if config.speed:
            size = (description["num_frames"], description["height"], description["width"])
            speed, description["speed"] = _speed_of(source, size, num_ranks)
        results = measure_clips(source, metric_set, spans, device, rank, num_ranks)
        if not results:
            got = f"{len(spans)} clips that cannot be decoded"
            raise argument_error("data", "files with a decodable clip", got, "See the log.")
        description["data"] = config.data
        description |= _describe_subject(checkpoint, config, source)
        evaluation = _summarize(results, metric_set, description, flat_figures)
        evaluation = replace(evaluation, speed=speed)
        if output is not None and rank == 0:
            evaluation.write(Path(output))
        return evaluation


def _with_requested(
    metric_set: MetricSet, source: ModelSource | VideoSource, config: EvaluateConfig
) -> MetricSet:
    """Return the metrics with those that options request: `flow`, `chunk` or `tile`, and `round_trips`."""
    clip_measures: list[ClipMeasure] = []
    model_measures: list[ModelMeasure] = []
    round_trips: RoundTrips | None = None
    if config.flow is not None:
        clip_measures.append(WarpingError(DISFlow()))
    if config.chunk is not None or config.tile is not None:
        model = _model_of("chunk" if config.tile is None else "tile", source)
        tiling = Tiling.of(config.tile, config.tile_overlap)
        model_measures.append(TilingDifference(model, config.chunk, config.overlap_frames, tiling))
    measures: list[Measure] = [*clip_measures, *model_measures]
    if config.round_trips is not None:
        model = _model_of("round_trips", source)
        round_trips = RoundTrips(model, config.round_trips, config.through)
        measures.append(round_trips)
    methods = dict(metric_set.methods)
    for measure in measures:
        methods.update((metric.name, measure.method) for metric in measure.metrics)
    return replace(
        metric_set,
        clip_measures=clip_measures,
        model_measures=model_measures,
        round_trips=round_trips,
        methods=methods,
    )


def _model_of(setting: str, source: ModelSource | VideoSource) -> VideoAutoencoder:
    if isinstance(source, VideoSource):
        contract = "left out for reconstructions that are given as videos"
        raise argument_error(
            setting, contract, source.title, "Pass a model, which reconstructs other clips."
        )
    return source.model


def _describe_subject(
    checkpoint: Model, config: EvaluateConfig, source: ModelSource | VideoSource
) -> dict[str, Any]:
    """Return the fields of `EvaluationRecord` that say what was measured."""
    description: dict[str, Any] = {"subject": source.title}
    if isinstance(source, ModelSource):
        description["sampler"] = source.model.describe_decoding()
        if not isinstance(checkpoint, nn.Module):
            description["checkpoint"] = str(checkpoint)
            description["weights"] = config.weights
        if config.decoder is not None:
            description["subject"] = f"{source.title}, decoded by {config.decoder}"
            description["decoder"] = config.decoder
    return description


def _speed_of(
    source: ModelSource | VideoSource, size: tuple[int, int, int], num_ranks: int
) -> tuple[Speed, dict[str, Any]]:
    """Return the speed of a model for a clip of a size, and how it was measured."""
    model = _model_of("speed", source)
    if num_ranks > 1:
        remedy = "Measure it in a call of its own."
        raise argument_error("speed", "false with several processes", True, remedy)
    (speed,) = measure_speed([model], *size)
    return speed, describe_speed(model, size)


def _summarize(
    results: Sequence[ClipResult],
    metric_set: MetricSet,
    description: Mapping[str, Any],
    flat_figures: Mapping[str, float],
) -> Evaluation:
    metrics = mean_over_clips([result.metrics for result in results])
    metrics.update(flat_figures)
    definitions = {name: METRICS[name].describe() for name in metrics}
    better = {name: METRICS[name].better for name in metrics}
    absent = dict(metric_set.absent)
    if metric_set.round_trips is not None and ROUND_TRIP_LATENT.name not in metrics:
        absent[ROUND_TRIP_LATENT.name] = "the model does not return its latent"
    if metric_set.feature_network is not None and not metric_set.per_clip_frechet:
        metric = metric_set.feature_network.metric
        features, reference = stack_features(results)
        reason = frechet_undefined(features, reference)
        if reason is None:
            metrics[metric.name] = frechet_distance(features=features, reference=reference)
            definitions[metric.name] = metric.describe(averaging=f"{len(results)} clips")
            better[metric.name] = metric.better
        else:
            absent[metric.name] = reason
    record = EvaluationRecord(
        num_clips=len(results),
        num_videos=len({result.source for result in results}),
        clips_sha256=clips_sha256(result.sha256 for result in results),
        metrics=definitions,
        better=better,
        backbones=metric_set.methods,
        absent=absent,
        **description,
    )
    rows: list[dict[str, float | str]] = [
        {"source": result.source, "start": result.start, **result.metrics} for result in results
    ]
    return Evaluation(metrics, rows, mean_per_frame(results), record, mean_per_pass(results))


def _speed_table(speed: Speed, conditions: Mapping[str, object]) -> Table:
    size = f"{conditions['num_frames']} x {conditions['height']} x {conditions['width']}"
    device = f"{conditions['device']}, threads: {conditions['threads']}"
    title = f"speed of a clip of {size}, {conditions['dtype']}, {device}"
    table = Table("", "frames/s", "slowest to fastest", "GFLOP", "MiB", "weights", title=title)
    for name, part in speed.parts.items():
        table.add_row(
            name,
            f"{part.frames_per_second:.4g}",
            f"{part.slowest:.4g} to {part.fastest:.4g}",
            f"{part.flops / 1e9:.4g}",
            f"{part.memory / 2**20:.4g}",
            f"{part.weights:,}",
        )
    return table


def plot_passes(curves: Mapping[str, Sequence[float]], path: Path) -> None:
    """Plot the values after each pass of round trips, those of all channels together; write a PNG atomically.

    Args:
        curves: The values after each pass, by name, see `RoundTrips`.
        path: The file.
    """
    from matplotlib.figure import Figure  # as in `plot_frames`

    metrics = [name for name in curves if name in METRICS]
    channels = [name for name in curves if name not in METRICS]
    figure = Figure(figsize=(3.6 * (1 + len(metrics)), 3), dpi=100, layout="constrained")
    subplots = figure.subplots(1, 1 + len(metrics), squeeze=False)[0]
    for name, axes in zip(metrics, subplots[1:], strict=True):
        axes.plot(range(1, 1 + len(curves[name])), curves[name], marker="o", markersize=3)
        axes.set_title(f"{name}, {METRICS[name].better} is better", fontsize=9)
    for name in channels:
        colour = name if name in ("red", "green", "blue") else None
        positions = range(1, 1 + len(curves[name]))
        subplots[0].plot(
            positions, curves[name], marker="o", markersize=3, label=name, color=colour
        )
    subplots[0].set_title("change of the mean, levels of 8 bits", fontsize=9)
    subplots[0].legend(fontsize=8)
    for axes in subplots:
        axes.set_xlabel("pass", fontsize=8)
        axes.locator_params(axis="x", integer=True)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    atomic_write(path, lambda partial: figure.savefig(partial, format="png"))


def plot_frames(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Plot each metric over the frame position in a clip, a line for each evaluation; write a PNG atomically.

    Args:
        curves: For each label of an evaluation, its values at each frame position, by metric.
        path: The file.
    """
    # Takes a second to import, which `telecine --help` must not spend.
    from matplotlib.figure import Figure

    names: list[str] = []
    for evaluation in curves.values():
        for name in evaluation:
            if name not in names:
                names.append(name)
    figure = Figure(figsize=(3.6 * len(names), 3), dpi=100, layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False).flat, strict=True):
        _plot_metric(axes, name, curves)
    atomic_write(path, lambda partial: figure.savefig(partial, format="png"))


def _plot_metric(
    axes: "Axes", name: str, curves: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
    for label, evaluation in curves.items():
        if name in evaluation:
            positions = range(len(evaluation[name]))
            axes.plot(
                positions,
                evaluation[name],
                marker="o",
                markersize=3,
                label=label,
                color=COLOURS.get(label),
            )
    low, high = axes.get_ylim()
    smallest_range = 1.0 if name == "psnr" else 0.01  # so that imperceptible differences look small
    margin = max(0.0, smallest_range - (high - low)) / 2
    axes.set_ylim(low - margin, high + margin)
    axes.set_title(f"{name}, {METRICS[name].better} is better", fontsize=9)
    axes.set_xlabel("frame of the clip", fontsize=8)
    axes.locator_params(axis="x", integer=True)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if any(curves):
        axes.legend(fontsize=8)
