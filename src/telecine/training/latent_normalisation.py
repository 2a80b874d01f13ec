"""Mean and standard deviation of the latent over training clips, which a checkpoint carries."""

import math
from collections.abc import Callable, Mapping

import torch
from accelerate import Accelerator

from telecine.data import DataError, TrainingClips
from telecine.models import VideoAutoencoder
from telecine.models.latent import ChannelMoments, LatentStatistics
from telecine.ops.ranks import data_rank, num_data_ranks

# Numbers of a channel-wise value that a line shows.
_NUM_SHOWN = 4


@torch.no_grad()
def measure_latents(
    model: VideoAutoencoder,
    clips: TrainingClips,
    num_clips: int,
    accelerator: Accelerator,
    stop_together: Callable[[Exception | None], None],
) -> LatentStatistics | None:
    """Return statistics of the posterior's mode over the first clips; None if the model offers no latent.

    The processes share the clips, and the result is the same for any number of processes. Every process has to call
    this. The whole `forward` runs: sharded weights are gathered there only.

    Args:
        model: The autoencoder.
        clips: The clips to train on.
        num_clips: The number of clips to measure.
        accelerator: The device and the processes.
        stop_together: Called after reading each clip, with the error if that failed, which has to raise one everywhere.
    """
    was_training = model.training
    model.eval()
    moments = ChannelMoments()
    num_ranks = num_data_ranks()
    # Equally many clips on each process: sharded models compute together.
    num_steps = math.ceil(num_clips / num_ranks)
    try:
        for index in range(data_rank(), num_steps * num_ranks, num_ranks):
            error: DataError | OSError | None = None
            try:
                number = index % num_clips
                video = clips[number]["video"][None].to(accelerator.device)
            except (DataError, OSError) as unreadable:
                error = unreadable
            stop_together(error)
            latent = model(video, sample_posterior=False).latent
            if latent is None:
                return None
            if index >= num_clips:
                latent = latent[:0]  # counted by another process
            moments.add(latent)
    finally:
        model.train(was_training)
    if accelerator.num_processes > 1:
        # Processes that share a clip count it several times, which changes neither means nor variances.
        moments.sums = accelerator.reduce(moments.sums.to(accelerator.device), "sum").cpu()
    return moments.statistics()


def describe_change(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """Return the changes of a model's normalisation of the latent, in one line."""
    changes: list[str] = []
    for name, value in after.items():
        if value != before.get(name):
            changes.append(f"{name} {_short(before.get(name))} -> {_short(value)}")
    return "; ".join(changes) or "nothing"


def _short(value: object) -> str:
    """Return a number, the first numbers of a channel-wise value, or "none"."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if not isinstance(value, (list, tuple)):
        return str(value)
    text = " ".join(f"{number:.3g}" for number in value[:_NUM_SHOWN])
    return f"{text} ..." if len(value) > _NUM_SHOWN else text
