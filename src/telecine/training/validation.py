"""Validation: the quality of the averaged weights on held-out clips, and the files that show it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from telecine.base.precision import tf32
from telecine.data import Clip, bytes_from_video
from telecine.evaluation import ReconstructionMetrics
from telecine.evaluation.latent_statistics import code_usage, latent_summary
from telecine.evaluation.metrics import mean_over_clips
from telecine.models import VideoAutoencoder
from telecine.models.interface import decoding_options
from telecine.ops.ranks import data_rank, num_data_ranks
from telecine.report.clips import ReconstructedClip, at_one_rate
from telecine.video.panes import side_by_side

T = TypeVar("T")

# Clips in the side-by-side video.
NUM_SHOWN = 4
# Clips that are kept for the report.
NUM_KEPT = 16


@dataclass(frozen=True)
class Validation:
    """The result of one validation."""

    metrics: dict[str, float]
    """The mean of each metric over the clips."""
    per_clip: list[dict[str, float]]
    """The metrics of each clip, in order."""
    latent: dict[str, float]
    """See `latent_summary` and `code_usage`; empty if the model offers no latent."""
    picture: Tensor
    """Side-by-side video of a few clips, uint8 `(T, H, W, 3)`, each at its own speed."""
    fps: float
    """Of the picture, from its fastest clip."""
    clips: list[ReconstructedClip]
    """Up to `NUM_KEPT` clips for the report."""


@tf32(False)
@torch.no_grad()
def validate_model(
    model: VideoAutoencoder,
    clips: Sequence[Clip],
    perceptual: Mapping[str, nn.Module],
    bit_depth: Literal[8, 16] = 8,
    *,
    before_each: Callable[[], None] = lambda: None,
) -> Validation:
    """Reconstruct every clip from the mode of its posterior, and measure it, without TF32. Every process calls this.

    A model may have further ways to decode, whose metrics have names such as `psnr_4_steps`.

    Args:
        model: The autoencoder, on any device.
        clips: The held-out clips, which the processes share.
        perceptual: The perceptual metrics by name.
        bit_depth: Of the clips that are kept for the report.
        before_each: Called before each clip, equally often on every process. Its errors end the validation.

    Returns:
        The metrics of all clips, and pictures of this process' clips.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    metrics = ReconstructionMetrics(perceptual, range_is_known=True)
    decodings = model.validation_decodings()
    more_metrics = {}
    for suffix in decodings:
        more_metrics[suffix] = ReconstructionMetrics(perceptual, range_is_known=True)
    indices = _clips_of_rank(len(clips), data_rank(), num_data_ranks())
    positions_kept = _starts_of_parts(len(indices), NUM_KEPT)
    kept: list[ReconstructedClip] = []
    latents: list[Tensor] = []
    try:
        for position, index in enumerate(indices):
            before_each()
            clip = clips[index]
            target = clip["video"][None].to(device)
            output = model(target, sample_posterior=False)
            if output.latent is not None:
                latents.append(output.latent[0].cpu())
            metrics.update(reconstruction=output.video, target=target)
            for suffix, options in decodings.items():
                with decoding_options(model, **options):
                    reconstruction = model(target, sample_posterior=False).video
                more_metrics[suffix].update(reconstruction=reconstruction, target=target)
            if position in positions_kept:
                kept.append(
                    ReconstructedClip(
                        bytes_from_video(target[0], bit_depth).cpu(),
                        bytes_from_video(output.video[0], bit_depth).cpu(),
                        metrics.per_clip()[-1],
                        clip["source"],
                        clip["start"],
                        clip["fps"],
                    )
                )
    finally:
        model.train(was_training)

    clips_of_rank = metrics.per_clip()
    for suffix, metrics_of_decoding in more_metrics.items():
        for values, more_values in zip(clips_of_rank, metrics_of_decoding.per_clip(), strict=True):
            values |= {f"{name}_{suffix}": value for name, value in more_values.items()}
    per_clip = _gather_clips(indices, clips_of_rank)
    latent: dict[str, float] = {}
    if latents:
        all_latents = torch.stack(_gather_clips(indices, latents))
        latent = latent_summary(all_latents) | code_usage(model.codebook, all_latents.to(device))
    shown = [kept[position] for position in _starts_of_parts(len(kept), NUM_SHOWN)]
    rates = [clip.fps for clip in shown]
    picture = side_by_side(
        inputs=at_one_rate([clip.target for clip in shown], rates),
        reconstructions=at_one_rate([clip.reconstruction for clip in shown], rates),
    )
    return Validation(mean_over_clips(per_clip), per_clip, latent, picture, max(rates), kept)


def _clips_of_rank(num_clips: int, rank: int, num_ranks: int) -> list[int]:
    """Return the indices of the clips that a process measures, equally many each: sharded models compute together."""
    # If the clips do not divide evenly, some are measured on two processes; `_gather_clips` has them once.
    clips_per_rank = math.ceil(num_clips / num_ranks)
    return [index % num_clips for index in range(rank, num_ranks * clips_per_rank, num_ranks)]


def _gather_clips(indices: Sequence[int], values: Sequence[T]) -> list[T]:
    """Return one value for each clip, in order, from those that each process has for clips of its `indices`."""
    by_index: dict[int, T] = dict(gather_object(list(zip(indices, values, strict=True))))
    return [by_index[index] for index in sorted(by_index)]


def _starts_of_parts(total: int, count: int) -> list[int]:
    """Divide the indices from 0 to `total - 1` into at most `count` equal parts, and return the first of each."""
    count = min(total, count)
    return [index * total // count for index in range(count)]
