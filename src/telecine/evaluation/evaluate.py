"""Evaluation of the reconstructions of a set of videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from telecine.checks import argument_error
from telecine.data import Span, VideoInfo, find_videos, index_videos
from telecine.evaluation.config import EvaluateConfig
from telecine.evaluation.measure import (
    ClipResult,
    MetricSet,
    combined_sha256,
    frechet_of_clips,
    load_metrics,
    mean_per_frame,
    measure_clips,
)
from telecine.evaluation.metrics import mean_over_clips
from telecine.evaluation.plots import plot_frames
from telecine.evaluation.processes import process_group
from telecine.evaluation.protocol import EvaluationProtocol
from telecine.evaluation.source import (
    CLIP_SELECTION,
    ReconstructionSource,
    contains_videos,
    model_source,
    select_clips,
    video_source,
)
from telecine.files import write_json

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
        source, infos = open_source(Path(checkpoint), config, device)
        spans = select_clips(infos, source.clips, config.max_clips)
        metric_set = load_metrics(source.clips, config.features, device)
        if output is not None:
            Path(output).mkdir(parents=True, exist_ok=True)
        results = processes.gather(measure_clips(source, metric_set, spans, processes, device))
        if not results:
            got = f"{len(spans)} clips that cannot be decoded"
            raise argument_error("data", "videos with a decodable clip", got, "See the log.")
        results.sort(key=lambda result: result.index)
        evaluation = _summarize(results, metric_set, source, spans, str(config.data))
        if output is not None and processes.is_main:
            evaluation.write(Path(output))
        return replace(evaluation, is_main_process=processes.is_main)


def open_source(
    checkpoint: Path, config: EvaluateConfig, device: torch.device
) -> tuple[ReconstructionSource, list[VideoInfo]]:
    """Return the source of the reconstructions, and the videos of `config.data`."""
    if config.data is None:
        raise argument_error("data", "a folder of videos, or one video", "nothing", "Add `--data my_videos/`.")
    if contains_videos(checkpoint):
        infos, _ = index_videos(find_videos(config.data))
        return video_source(checkpoint, infos, config, Path(config.data)), infos
    source = model_source(checkpoint, config, device)
    infos, _ = index_videos(find_videos(config.data))
    return source, infos


def _summarize(
    results: Sequence[ClipResult],
    metric_set: MetricSet,
    source: ReconstructionSource,
    spans: Sequence[Span],
    data: str,
) -> Evaluation:
    """Return the results of the whole set, with the protocol."""
    metrics = mean_over_clips([result.metrics for result in results])
    absent = dict(metric_set.absent)
    if metric_set.features is not None:
        distance, reason = frechet_of_clips(results, metric_set.features)
        metrics, absent = metrics | distance, absent | reason
    frame_rates = {span.info.fps for span in spans}
    protocol = EvaluationProtocol(
        data=data,
        subject=source.title,
        num_clips=len(results),
        num_videos=len({result.source for result in results}),
        num_frames=source.clips.num_frames,
        height=source.clips.height,
        width=source.clips.width,
        resize="the smallest size that covers the crop, aspect kept, antialiased bicubic",
        crop="center",
        places=CLIP_SELECTION,
        clips_sha256=combined_sha256(results),
        metrics=tuple(metrics),
        fps=frame_rates.pop() / source.clips.stride if len(frame_rates) == 1 else None,
        frame_stride=source.clips.stride,
        backbones=tuple(metric_set.backbones.items()),
        definitions=metric_set.definitions(len(results)),
        absent=tuple(absent.items()),
    )
    return Evaluation(metrics, [result.as_row() for result in results], mean_per_frame(results), protocol)
