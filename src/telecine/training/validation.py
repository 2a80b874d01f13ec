"""Validation: the quality of the averaged weights on held-out clips, and the files that show it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from telecine.data import Clip, bytes_from_video
from telecine.evaluation import ReconstructionMetrics
from telecine.evaluation.latent_measures import code_usage, latent_summary
from telecine.evaluation.metrics import mean_over_clips
from telecine.models import VideoAutoencoder
from telecine.models.interface import decoding_options
from telecine.ops.ranks import num_ranks
from telecine.report.clips import ValidationClip, at_one_rate, side_by_side
from telecine.training.distributed import rank

T = TypeVar("T")

# Clips in the side-by-side video.
_NUM_SHOWN = 4
# Clips that are kept for the report.
_NUM_KEPT = 16


@dataclass(frozen=True)
class Validation:
    """The result of one validation."""

    metrics: dict[str, float]  # the mean of each over the clips
    per_clip: list[dict[str, float]]  # in order
    latent: dict[str, float]  # see `latent_summary` and `code_usage`; empty if the model offers none
    picture: Tensor  # side-by-side video of a few clips, uint8 `(T, H, W, 3)`, each at its own speed
    fps: float  # of the picture: that of its fastest clip
    clips: list[ValidationClip]  # up to `_NUM_KEPT` for the report


@torch.no_grad()
def validate_model(
    model: VideoAutoencoder,
    clips: Sequence[Clip],
    perceptual: Mapping[str, nn.Module],
    bit_depth: Literal[8, 16] = 8,
    *,
    before_each: Callable[[], None] = lambda: None,
) -> Validation:
    """Reconstruct every clip from the mode of its posterior, and measure it; every process has to call this.

    The processes share the clips: all get the metrics of all, and pictures of their own. `before_each` is called before
    each clip, equally often on every process; its errors end the validation. A decoder that generates is measured in
    one step and, unless it was trained for one, under names such as `psnr_4_steps`, in four.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    metrics = ReconstructionMetrics(perceptual)
    decodings = model.validation_decodings()
    more_metrics = {suffix: ReconstructionMetrics(perceptual) for suffix in decodings}
    indices = _clips_of_rank(len(clips), rank(), num_ranks())
    kept = set(_evenly_spaced(len(indices), _NUM_KEPT))
    shown, latents = list[ValidationClip](), list[Tensor]()
    try:
        for position, index in enumerate(indices):
            before_each()
            clip = clips[index]
            target = clip["video"][None].to(device)
            output = model(target, sample_posterior=False)
            latents += [] if output.latent is None else [output.latent[0]]
            metrics.update(reconstruction=output.video, target=target)
            for suffix, options in decodings.items():
                with decoding_options(model, **options):
                    reconstruction = model(target, sample_posterior=False).video
                more_metrics[suffix].update(reconstruction=reconstruction, target=target)
            if position in kept:
                of_input, of_output = (bytes_from_video(each[0], bit_depth).cpu() for each in (target, output.video))
                found = metrics.per_clip()[-1]
                shown.append(ValidationClip(of_input, of_output, found, clip["source"], clip["start"], clip["fps"]))
    finally:
        model.train(was_training)
    of_rank = metrics.per_clip()
    for suffix, metrics_of_suffix in more_metrics.items():
        for of_clip, values in zip(of_rank, metrics_of_suffix.per_clip(), strict=True):
            of_clip |= {f"{name}_{suffix}": value for name, value in values.items()}
    per_clip = _of_all_clips(indices, of_rank)
    few = [shown[position] for position in _evenly_spaced(len(shown), _NUM_SHOWN)]
    rates = [clip.fps for clip in few]
    inputs, outputs = [clip.target for clip in few], [clip.reconstruction for clip in few]
    picture = side_by_side(inputs=at_one_rate(inputs, rates), reconstructions=at_one_rate(outputs, rates))
    latent = {}
    if latents:
        every_latent = torch.stack(_of_all_clips(indices, [each.cpu() for each in latents]))
        latent = latent_summary(every_latent) | code_usage(model.codebook, every_latent.to(device))
    return Validation(mean_over_clips(per_clip), per_clip, latent, picture, max(rates), shown)


def _clips_of_rank(num_clips: int, rank: int, num_ranks: int) -> list[int]:
    """Return the indices of the clips that a process measures, equally many each: sharded models compute together."""
    # If the clips do not divide evenly, some are measured on two processes; `_of_all_clips` has them once.
    return [index % num_clips for index in range(rank, num_ranks * -(-num_clips // num_ranks), num_ranks)]


def _of_all_clips(indices: Sequence[int], values: Sequence[T]) -> list[T]:
    """Return one value for each clip, in order, from those that each process has for clips of its `indices`."""
    found: dict[int, T] = dict(gather_object(list(zip(indices, values, strict=True))))
    return [found[index] for index in sorted(found)]


def _evenly_spaced(total: int, count: int) -> list[int]:
    return [index * total // min(total, count) for index in range(min(total, count))]
