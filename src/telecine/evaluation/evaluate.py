"""Measure a checkpoint on a folder of videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from telecine.autoencoders import CausalVAE
from telecine.data import (
    Clip,
    ClipConfig,
    VideoInfo,
    find_videos,
    index_videos,
    iterate_validation_clips,
    whole_video,
    with_progress,
)
from telecine.devices import DeviceName, pick_device
from telecine.evaluation.metrics import ReconstructionMetrics
from telecine.evaluation.protocol import EvaluationProtocol
from telecine.files import write_json
from telecine.perceptual import LPIPS
from telecine.perceptual.weights import listing
from telecine.runs import CONFIG_FILE, Weights, find_checkpoint, find_model
from telecine.shapes import argument_error


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured on what."""

    data: str
    """A folder of videos (searched with its subfolders) or one video."""
    weights: Weights = "ema"
    """The averaged weights, or the raw ones ("model")."""
    max_clips: int = 100
    """How many clips to measure, spread over the videos."""
    num_frames: int | None = None
    """Frames in a clip; those of the training run by default."""
    height: int | None = None
    """Height of a clip; that of the training run by default."""
    width: int | None = None
    """Width of a clip; that of the training run by default."""
    stride: int | None = None
    """Distance between the frames of a clip; that of the training run by default."""
    device: DeviceName = "auto"
    """Where to compute."""


@dataclass(frozen=True)
class Evaluation:
    """The figures and how they were measured."""

    metrics: dict[str, float]
    """Mean over clips of each metric."""
    per_clip: list[dict[str, Any]]
    """Each clip's metrics, with its source and first frame."""
    protocol: EvaluationProtocol
    """How they were measured."""


def evaluate(checkpoint: str | Path, config: EvaluateConfig, *, output: str | Path | None = None) -> Evaluation:
    """Reconstruct clips of `config.data` from the mode of their posterior and measure PSNR, SSIM and LPIPS.

    Args:
        checkpoint: A run's folder (its last checkpoint), a checkpoint's, or that of a saved autoencoder.
        config: What is measured.
        output: A folder for metrics.json (means), clips.json (each clip) and protocol.json (how they were measured).

    Returns:
        The means over clips, each clip's figures, and the protocol.

    Raises:
        ValueError: If the checkpoint, the data or a size does not fit.
    """
    device = pick_device(config.device)
    model = CausalVAE.from_pretrained(find_model(checkpoint, config.weights)).to(device).eval()
    clip_config = clip_settings(Path(checkpoint), config)
    model.check_clip(clip_config.num_frames, clip_config.height, clip_config.width)
    infos, _ = index_videos(find_videos(config.data))
    check_length(infos, clip_config)
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
    clips = iterate_validation_clips([whole_video(info) for info in infos], clip_config, config.max_clips)
    per_clip, metrics = measure(model, clips, config.max_clips)
    protocol = _protocol(config, clip_config, metrics)
    evaluation = Evaluation(metrics.compute(), per_clip, protocol)
    if output is not None:
        write(evaluation, Path(output))
    return evaluation


def clip_settings(checkpoint: Path, config: EvaluateConfig) -> ClipConfig:
    """Return the clips of the run that the checkpoint belongs to, with what `config` changes."""
    found = find_checkpoint(checkpoint)
    saved = yaml.safe_load((found / CONFIG_FILE).read_text(encoding="utf-8"))["clips"] if found else {}
    chosen = {name: getattr(config, name) for name in ("num_frames", "height", "width", "stride")}
    given = {name: value for name, value in chosen.items() if value is not None}
    return replace(ClipConfig(**saved), **given, scale_jitter=1.0)


def check_length(infos: Sequence[VideoInfo], clips: ClipConfig) -> None:
    """Raise a `ValueError` unless a video is long enough for a clip."""
    longest = max(infos, key=lambda info: info.num_frames)
    if longest.num_frames < clips.clip_span:
        got = f"at most {longest.num_frames}, in {longest.path}"
        remedy = "Ask for fewer frames or a smaller stride."
        raise argument_error("data", f"videos of at least {clips.clip_span} frames", got, remedy)


@torch.no_grad()
def measure(
    model: CausalVAE, clips: Iterator[Clip], max_clips: int
) -> tuple[list[dict[str, Any]], ReconstructionMetrics]:
    """Reconstruct each clip from its posterior's mode; return each one's figures, and all of them."""
    device = model.last_layer.device
    metrics = ReconstructionMetrics({f"lpips_{net}": LPIPS(net).to(device) for net in ("vgg", "alex")})
    places = []
    for clip in with_progress(clips, "measuring", total=max_clips):
        target = clip["video"][None].to(device)
        metrics.update(reconstruction=model(target, sample_posterior=False).video, target=target)
        places.append({"source": clip["source"], "start": clip["start"]})
    return [place | values for place, values in zip(places, metrics.per_clip(), strict=True)], metrics


def write(evaluation: Evaluation, folder: Path) -> None:
    """Write `metrics.json`, `clips.json` and `protocol.json` into a folder."""
    write_json(folder / "metrics.json", evaluation.metrics)
    write_json(folder / "clips.json", evaluation.per_clip)
    evaluation.protocol.write(folder / "protocol.json")


def _protocol(config: EvaluateConfig, clip_config: ClipConfig, metrics: ReconstructionMetrics) -> EvaluationProtocol:
    return EvaluationProtocol(
        data=config.data,
        num_clips=len(metrics.per_clip()),
        num_frames=clip_config.num_frames,
        height=clip_config.height,
        width=clip_config.width,
        resize="the smallest size that covers the crop, aspect kept, antialiased bicubic",
        crop="center",
        metrics=metrics.names,
        frame_stride=clip_config.stride,
        backbones=tuple((f"lpips_{entry.net}", entry.sha256 or "from torchvision") for entry in listing()),
    )
