"""Measure reconstructions of a set of videos."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telecine.data import Span, VideoInfo, bytes_from_video, find_videos, index_videos, with_progress
from telecine.evaluation.clips import PLACES, plan_clips, read_place
from telecine.evaluation.config import EvaluateConfig
from telecine.evaluation.draw import draw_frames
from telecine.evaluation.features import VideoFeatures
from telecine.evaluation.metrics import mean_over_clips
from telecine.evaluation.networks import Networks, load_networks
from telecine.evaluation.pairs import holds_videos
from telecine.evaluation.protocol import EvaluationProtocol
from telecine.evaluation.ranks import Ranks, joined_ranks
from telecine.evaluation.results import ClipResult, hash_of_clips, mean_curves, set_distance
from telecine.evaluation.source import Source, model_source, video_source
from telecine.files import write_json
from telecine.shapes import VALUE_RANGE, argument_error

METRICS_FILE = "metrics.json"
CLIPS_FILE = "clips.json"
FRAMES_FILE = "frames.json"
FRAMES_PICTURE = "frames.png"
PROTOCOL_FILE = "protocol.json"


@dataclass(frozen=True)
class Evaluation:
    """The figures and how they were measured."""

    metrics: dict[str, float]
    """Mean over clips of each metric, and the Frechet distance of the whole set."""
    per_clip: list[dict[str, Any]]
    """Each clip's metrics, with its source and first frame."""
    per_frame: dict[str, list[float]]
    """Mean over clips at each position in a clip, of PSNR (of each frame alone) and of the metrics of frames."""
    protocol: EvaluationProtocol
    """How they were measured."""
    is_first: bool = True
    """False in all but one of several processes, which all return the same figures."""

    def write(self, folder: Path) -> None:
        """Write the figures, the picture of their course over the frames, and the protocol into a folder."""
        write_json(folder / METRICS_FILE, self.metrics)
        write_json(folder / CLIPS_FILE, self.per_clip)
        write_json(folder / FRAMES_FILE, self.per_frame)
        draw_frames({"": self.per_frame}, folder / FRAMES_PICTURE)
        self.protocol.write(folder / PROTOCOL_FILE)


def evaluate(checkpoint: str | Path, config: EvaluateConfig, *, output: str | Path | None = None) -> Evaluation:
    """Reconstruct clips of `config.data` from the mode of their posterior, or read them from videos, and measure them.

    Under `torchrun` the processes share the clips; all return the same, and the first one writes.

    Args:
        checkpoint: A run's folder (its last checkpoint), a checkpoint's, that of a saved autoencoder, or a folder of
            videos (or one video) that hold the reconstructions of those in `config.data`, by the same names.
        config: What is measured.
        output: A folder for metrics.json (the whole set), clips.json (each clip), frames.json and frames.png (each
            position in a clip), and protocol.json (how they were measured).

    Returns:
        The means over clips, each clip's and each position's figures, and the protocol.

    Raises:
        ValueError: If the checkpoint, the data or a size does not fit.
    """
    with joined_ranks() as ranks:
        device = ranks.device(config.device)
        source, infos = open_source(Path(checkpoint), config, device)
        places = plan_clips(infos, source.clips, config.max_clips)
        networks = load_networks(source.clips, config.features, device)
        if output is not None:
            Path(output).mkdir(parents=True, exist_ok=True)
        results = ranks.gather(measure(source, networks, places, ranks, device))
        results.sort(key=lambda result: result.index)
        check_any(results, places)
        evaluation = summarise(results, networks, source, places, str(config.data))
        if output is not None and ranks.is_first:
            evaluation.write(Path(output))
        return replace(evaluation, is_first=ranks.is_first)


def open_source(checkpoint: Path, config: EvaluateConfig, device: torch.device) -> tuple[Source, list[VideoInfo]]:
    """Return where reconstructions come from, and the indexed videos of the data."""
    if config.data is None:
        raise argument_error("data", "a folder of videos, or one video", "nothing", "Add `--data my_videos/`.")
    if holds_videos(checkpoint):
        infos, _ = index_videos(find_videos(config.data))
        return video_source(checkpoint, infos, config, config.data), infos
    source = model_source(checkpoint, config, device)
    infos, _ = index_videos(find_videos(config.data))
    return source, infos


@torch.no_grad()
def measure(
    source: Source, networks: Networks, places: Sequence[Span], ranks: Ranks, device: torch.device
) -> list[ClipResult]:
    """Measure this process' share of the clips: every n-th of n processes', so that the shares are alike."""
    results = []
    for index in shown(range(ranks.rank, len(places), ranks.count), ranks):
        clip = read_place(places[index], source.clips)
        if clip is None:
            continue
        target = clip["video"][None].to(device)
        reconstruction = source.reconstruct(places[index], target).clamp(*VALUE_RANGE)
        metrics = networks.accumulator()
        metrics.update(reconstruction=reconstruction, target=target)
        result = ClipResult(
            index=index,
            source=clip["source"],
            start=clip["start"],
            values=metrics.per_clip()[0],
            curves=metrics.per_frame()[0],
            sha256=hash_of_pixels(clip["video"]),
            features=vectors(networks.features, reconstruction, target),
        )
        results.append(result)
    return results


def shown(indices: Sequence[int], ranks: Ranks) -> Iterable[int]:
    """Iterate with a progress bar in the first process."""
    return with_progress(indices, "measuring") if ranks.is_first else indices


def vectors(network: VideoFeatures | None, reconstruction: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the features `(D,)` of both videos `(1, 3, T, H, W)`, where there is a network for them."""
    return None if network is None else (network(reconstruction)[0].cpu(), network(target)[0].cpu())


def hash_of_pixels(video: Tensor) -> str:
    """Return the hash of a clip `(3, T, H, W)` at 8 bits."""
    return hashlib.sha256(bytes_from_video(video).numpy().tobytes()).hexdigest()


def check_any(results: Sequence[ClipResult], places: Sequence[Span]) -> None:
    """Raise a `ValueError` unless a clip was measured."""
    if not results:
        got = f"{len(places)} clips that cannot be decoded"
        raise argument_error("data", "videos with a decodable clip", got, "See the log.")


def summarise(
    results: Sequence[ClipResult], networks: Networks, source: Source, places: Sequence[Span], data: str
) -> Evaluation:
    """Return the figures of the whole set, with their protocol."""
    metrics = mean_over_clips([result.values for result in results])
    absent = dict(networks.absent)
    if networks.features is not None:
        distance, reason = set_distance(results, networks.features)
        metrics, absent = metrics | distance, absent | reason
    rates = {place.info.fps for place in places}
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
        places=PLACES,
        clips_sha256=hash_of_clips(results),
        metrics=tuple(metrics),
        fps=rates.pop() / source.clips.stride if len(rates) == 1 else None,
        frame_stride=source.clips.stride,
        backbones=tuple(networks.backbones.items()),
        definitions=networks.definitions(len(results)),
        absent=tuple(absent.items()),
    )
    return Evaluation(metrics, [result.as_row() for result in results], mean_curves(results), protocol)
