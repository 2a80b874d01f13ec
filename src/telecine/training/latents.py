"""Statistics of the latent over training clips, which a checkpoint's models carry if the encoder is trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator

from telecine.autoencoders import VideoAutoencoder
from telecine.autoencoders.latent import ChannelMoments, LatentStatistics
from telecine.data import ClipDataset

# Numbers of a channel-wise value that a line shows.
NUM_SHOWN = 4


@torch.no_grad()
def measure_latents(
    model: VideoAutoencoder, clips: ClipDataset, num_clips: int, accelerator: Accelerator
) -> LatentStatistics | None:
    """Return the statistics of the posterior's mode over the first `num_clips` clips of a run.

    The processes share the clips, and the result is the same for any number of processes. Every process has to call
    this. The model is in eval mode meanwhile; its random state and its weights stay the same.

    Args:
        model: The autoencoder. Its whole `forward` runs, because sharded weights are gathered there only.
        clips: The training clips.
        num_clips: How many of them.
        accelerator: Of this process.

    Returns:
        None if the model does not offer its latent, as some custom modules.
    """
    was_training = model.training
    model.eval()
    moments, world = ChannelMoments(), accelerator.num_processes
    try:
        # As many on each process: sharded models compute together.
        for index in range(accelerator.process_index, -(-num_clips // world) * world, world):
            video = clips[index % num_clips]["video"][None].to(accelerator.device)
            latent = model(video, sample_posterior=False).latent
            if latent is None:
                return None
            if index >= num_clips:
                latent = latent[:0]  # counted by another process
            moments.add(latent)
    finally:
        model.train(was_training)
    if world > 1:
        moments.sums = accelerator.reduce(moments.sums.to(accelerator.device), "sum").cpu()
    return moments.statistics()


def describe_change(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """Return what changed in a model's normalisation of the latent, in one line."""
    changes = [
        f"{name} {_shown(before.get(name))} -> {_shown(value)}"
        for name, value in after.items()
        if value != before.get(name)
    ]
    return "; ".join(changes) or "nothing"


def _shown(value: object) -> str:
    if not isinstance(value, (list, tuple)):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    more = " ..." if len(value) > NUM_SHOWN else ""
    return " ".join(f"{number:.3g}" for number in value[:NUM_SHOWN]) + more
