"""Evaluation of the reconstructions of a set of videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from telecine.base.checks import argument_error
from telecine.base.files import write_json
from telecine.data import Span, VideoInfo, clips_sha256
from telecine.evaluation.flow import WarpingError, load_flow
from telecine.evaluation.measure import (
    ClipMeasure,
    ClipResult,
    MetricSet,
    frechet_of_clips,
    load_metrics,
    load_published_metrics,
    mean_per_frame,
    measure_clips,
)
from telecine.evaluation.metrics import mean_over_clips
from telecine.evaluation.pieces import Pieces
from telecine.evaluation.plots import plot_frames
from telecine.evaluation.processes import process_group
from telecine.evaluation.protocol import EvaluationProtocol
from telecine.evaluation.published import PROTOCOLS
from telecine.evaluation.published_clips import (
    PublishedModelSource,
    check_options,
    describe_published,
    open_published,
    select_published,
)
from telecine.evaluation.source import (
    CLIP_SELECTION,
    ModelSource,
    ReconstructionSource,
    VideoSource,
    contains_videos,
    index_data,
    model_source,
    select_clips,
    video_source,
)
from telecine.settings import ClipConfig, EvaluateConfig

METRICS_FILE = "metrics.json"
CLIPS_FILE = "clips.json"
FRAMES_FILE = "frames.json"
FRAMES_PLOT = "frames.png"
PROTOCOL_FILE = "protocol.json"


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation and its protocol."""

    metrics: dict[str, float]
    """Each metric's mean over clips, and the Frechet distance of the whole set."""
    per_clip: list[dict[str, str | int | float]]
    """Each clip's metrics, with its file (`source`) and first frame (`start`)."""
    per_frame: dict[str, list[float]]
    """Mean over clips at each frame position, of PSNR (of that frame alone), SSIM and LPIPS."""
    protocol: EvaluationProtocol
    """What was measured and how."""
    is_main_process: bool = True
    """True in one of several processes. All of them return the same results."""

    def write(self, folder: Path) -> None:
        """Write metrics.json, clips.json, frames.json, frames.png and protocol.json into a folder."""
        write_json(folder / METRICS_FILE, self.metrics)
        write_json(folder / CLIPS_FILE, self.per_clip)
        write_json(folder / FRAMES_FILE, self.per_frame)
        plot_frames({"": self.per_frame}, folder / FRAMES_PLOT)
        self.protocol.write(folder / PROTOCOL_FILE)


def evaluate(checkpoint: str | Path, config: EvaluateConfig, *, output: str | Path | None = None) -> Evaluation:
    """Measure reconstructions of clips of `config.data`, computed by an autoencoder or read from videos.

    An autoencoder reconstructs the mode of each clip's posterior. Under `torchrun` the processes share the clips; all
    of them return the same results, and the main process writes the files.

    Args:
        checkpoint: Folder of a run (its last checkpoint), of a checkpoint, or of a saved autoencoder; or a folder of
            videos (or one video) that are the reconstructions of the videos of the same names in `config.data`.
        config: The settings.
        output: A folder for metrics.json (the whole set), clips.json (each clip), frames.json and frames.png (by frame
            position in a clip), and protocol.json (what was measured and how).

    Returns:
        The metrics of the set, of each clip and of each frame position, and the protocol.

    Raises:
        ValueError: The checkpoint, the data or the size of the clips does not fit.
    """
    with process_group() as processes:
        device = processes.device(config.device)
        plan = _plan(Path(checkpoint), config, device)
        if output is not None:
            Path(output).mkdir(parents=True, exist_ok=True)
        results = processes.gather(measure_clips(plan.source, plan.metric_set, plan.spans, processes, device))
        if not results:
            got = f"{len(plan.spans)} clips that cannot be decoded"
            raise argument_error("data", "videos with a decodable clip", got, "See the log.")
        results.sort(key=lambda result: result.index)
        evaluation = _summarize(results, plan, str(config.data))
        if output is not None and processes.is_main:
            evaluation.write(Path(output))
        return replace(evaluation, is_main_process=processes.is_main)


@dataclass(frozen=True)
class _Plan:
    """What is measured, and how."""

    source: ReconstructionSource
    spans: Sequence[Span]
    metric_set: MetricSet
    description: Mapping[str, Any]
    """The fields of the protocol that say how clips were selected and read."""


def _plan(checkpoint: Path, config: EvaluateConfig, device: torch.device) -> _Plan:
    if config.data is None:
        raise argument_error("data", "a folder of videos, or one video", "nothing", "Add `--data my_videos/`.")
    if config.protocol is None:
        source, infos = open_source(checkpoint, config, device)
        spans = select_clips(infos, source.clips, config.clip_limit)
        plan = _Plan(source, spans, load_metrics(source.clips, config.features, device), _describe(source.clips, spans))
    else:
        protocol = PROTOCOLS[config.protocol]
        check_options(config, protocol)
        published, infos = open_published(checkpoint, config, protocol, device)
        spans = select_published(infos, protocol)
        metric_set = load_published_metrics(protocol, config.features, device)
        plan = _Plan(published, spans, metric_set, describe_published(protocol, spans))
    return replace(plan, metric_set=_with_requested(plan.metric_set, plan.source, config, device))


def open_source(
    checkpoint: Path, config: EvaluateConfig, device: torch.device
) -> tuple[ModelSource | VideoSource, list[VideoInfo]]:
    """Return the source of the reconstructions, and the videos of `config.data`."""
    data = str(config.data)
    if contains_videos(checkpoint):
        infos = index_data(data)
        return video_source(checkpoint, infos, config, data), infos
    source = model_source(checkpoint, config, device)
    return source, index_data(data)


def _with_requested(
    metric_set: MetricSet, source: ReconstructionSource, config: EvaluateConfig, device: torch.device
) -> MetricSet:
    """Add the measures that settings request.

    Raises:
        ValueError: Reconstructions in pieces are requested, but there is no model.
    """
    requested: list[ClipMeasure] = []
    sources: dict[str, str] = {}
    if config.flow is not None:
        flow = load_flow(config.flow, device)
        requested.append(WarpingError(flow))
        sources |= dict.fromkeys(("warping_error", "warping_excess"), flow.source)
    if config.chunk is not None or config.tile is not None:
        if not isinstance(source, ModelSource | PublishedModelSource):
            contract = "left out, as `tile`, for reconstructions that are given as videos"
            raise argument_error("chunk", contract, source.title, "Pass a model, which reconstructs in pieces.")
        pieces = Pieces(source.model, config.chunk, config.overlap_frames, config.tiling())
        requested.append(pieces)
        sources |= dict.fromkeys(("pieces_psnr", "seam_psnr"), pieces.source)
    return replace(metric_set, requested=requested, backbones={**metric_set.backbones, **sources})


def _describe(clips: ClipConfig, spans: Sequence[Span]) -> dict[str, Any]:
    frame_rates = {span.info.fps for span in spans}
    return {
        "num_frames": clips.num_frames,
        "height": clips.height,
        "width": clips.width,
        "resize": "the smallest size that covers the crop, aspect kept, antialiased bicubic",
        "crop": "center",
        "places": CLIP_SELECTION,
        "fps": frame_rates.pop() / clips.stride if len(frame_rates) == 1 else None,
        "frame_stride": clips.stride,
    }


def _summarize(results: Sequence[ClipResult], plan: _Plan, data: str) -> Evaluation:
    """Return the results of the whole set, with the protocol."""
    metric_set = plan.metric_set
    metrics = mean_over_clips([result.metrics for result in results])
    absent = dict(metric_set.absent)
    if metric_set.features is not None and not metric_set.per_clip_frechet:
        distance, reason = frechet_of_clips(results, metric_set.features)
        metrics, absent = metrics | distance, absent | reason
    protocol = EvaluationProtocol(
        data=data,
        subject=plan.source.title,
        num_clips=len(results),
        num_videos=len({result.source for result in results}),
        clips_sha256=clips_sha256(result.sha256 for result in results),
        metrics=tuple(metrics),
        backbones=tuple(metric_set.backbones.items()),
        definitions=metric_set.definitions(len(results)),
        absent=tuple(absent.items()),
        **plan.description,
    )
    return Evaluation(metrics, [result.as_row() for result in results], mean_per_frame(results), protocol)
