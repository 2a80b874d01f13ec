"""Evaluation of the reconstructions of a set of videos or images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from telecine.base.checks import argument_error, check_type
from telecine.base.devices import device_of_process
from telecine.base.precision import tf32
from telecine.data import clips_sha256
from telecine.data.processes import check_same_data, log_in_first_process
from telecine.data.span_table import SpanTable
from telecine.evaluation.evaluation_record import EvaluationRecord
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
from telecine.evaluation.metrics.measure import Measure
from telecine.evaluation.metrics.metric import METRICS
from telecine.evaluation.metrics.metric_set import MetricSet
from telecine.evaluation.metrics.round_trips import (
    ROUND_TRIP_LATENT,
    ROUND_TRIP_PSNR,
    RoundTrips,
)
from telecine.evaluation.metrics.seams import TilingDifference
from telecine.evaluation.protocols.papers import PROTOCOLS
from telecine.evaluation.reconstructors import (
    FileReconstructor,
    ModelReconstructor,
    Reconstructor,
    open_reconstructor,
)
from telecine.evaluation.result import Evaluation
from telecine.evaluation.speed import Speed, describe_speed, measure_speed
from telecine.models import VideoAutoencoder
from telecine.settings import EvaluateConfig, Tiling


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
        ValueError: The checkpoint, the data or the size of the clips does not fit, or a process has other data than the
            first one.
    """
    check_type("config", config, EvaluateConfig, 'Use `EvaluateConfig(data="my_videos")`.')
    with process_group() as (rank, num_ranks):
        device = device_of_process(config.device, num_ranks)
        if config.protocol is not None:
            PROTOCOLS[config.protocol].check_options(config)
        with log_in_first_process(rank):
            reconstructor, infos = open_reconstructor(checkpoint, config, device)
            spans = reconstructor.clip_protocol.select(infos)
        if num_ranks > 1:
            check_same_data(SpanTable.of(spans).sha256(), "clips")
        metric_set = reconstructor.clip_protocol.load_metrics(spans, config, device)
        metric_set = metric_set.with_measures(_requested_measures(reconstructor, config))
        description = reconstructor.clip_protocol.describe(spans)
        description["data"] = config.input_data
        description |= _describe_subject(checkpoint, config, reconstructor)
        if output is not None:
            Path(output).mkdir(parents=True, exist_ok=True)
        size = (description["num_frames"], description["height"], description["width"])
        flat_values = {}
        if config.flat:
            flat_values = measure_flat_colours(_model_of("flat", reconstructor), *size)
        speed = None
        if config.speed:
            model = _model_of("speed", reconstructor)
            speed = _speed_of(model, size, num_ranks)
            description["speed"] = describe_speed(model, size)
        results = measure_clips(reconstructor, metric_set, spans, device, rank, num_ranks)
        if not results:
            got = f"{len(spans)} clips that cannot be decoded"
            raise argument_error("data", "files with a decodable clip", got, "See the log.")
        evaluation = _summarize(results, metric_set, description, flat_values)
        evaluation = replace(evaluation, speed=speed)
        if output is not None and rank == 0:
            evaluation.write(Path(output))
        return evaluation


def _requested_measures(reconstructor: Reconstructor, config: EvaluateConfig) -> list[Measure]:
    """Return what the settings `flow`, `chunk` or `tile`, and `round_trips` request."""
    measures: list[Measure] = []
    if config.flow is not None:
        measures.append(WarpingError(DISFlow()))
    if config.chunk is not None or config.tile is not None:
        model = _model_of("chunk" if config.tile is None else "tile", reconstructor)
        tiling = Tiling.of(config.tile, config.tile_overlap)
        measures.append(TilingDifference(model, config.chunk, config.overlap_frames, tiling))
    if config.round_trips is not None:
        model = _model_of("round_trips", reconstructor)
        measures.append(RoundTrips(model, config.round_trips, config.through))
    return measures


def _model_of(setting: str, reconstructor: Reconstructor) -> VideoAutoencoder:
    if isinstance(reconstructor, FileReconstructor):
        contract = "left out for reconstructions that are given as videos"
        raise argument_error(
            setting, contract, reconstructor.title, "Pass a model, which reconstructs other clips."
        )
    return reconstructor.model


def _describe_subject(
    checkpoint: Model, config: EvaluateConfig, reconstructor: Reconstructor
) -> dict[str, Any]:
    """Return the fields of `EvaluationRecord` that say what was measured."""
    description: dict[str, Any] = {"subject": reconstructor.title}
    if isinstance(reconstructor, ModelReconstructor):
        description["sampler"] = reconstructor.model.describe_decoding()
        if not isinstance(checkpoint, nn.Module):
            description["checkpoint"] = str(checkpoint)
            description["weights"] = config.weights
        if config.decoder is not None:
            description["subject"] = f"{reconstructor.title}, decoded by {config.decoder}"
            description["decoder"] = config.decoder
    return description


def _speed_of(model: VideoAutoencoder, size: tuple[int, int, int], num_ranks: int) -> Speed:
    """Return the speed of a model for a clip of a size: frames, height and width."""
    if num_ranks > 1:
        remedy = "Measure it in a call of its own."
        raise argument_error("speed", "false with several processes", True, remedy)
    (speed,) = measure_speed([model], *size)
    return speed


def _summarize(
    results: Sequence[ClipResult],
    metric_set: MetricSet,
    description: Mapping[str, Any],
    flat_values: Mapping[str, float],
) -> Evaluation:
    metrics = mean_over_clips([result.metrics for result in results])
    metrics.update(flat_values)
    definitions = {name: METRICS[name].describe() for name in metrics}
    better = {name: METRICS[name].better for name in metrics}
    absent = dict(metric_set.absent)
    if ROUND_TRIP_PSNR.name in metrics and ROUND_TRIP_LATENT.name not in metrics:
        absent[ROUND_TRIP_LATENT.name] = "the model does not return its latent"
    if metric_set.feature_network is not None:
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
