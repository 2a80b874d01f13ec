"""Where diffusers models keep the statistics of their latent, and how to replace them after training the encoder.

Pipelines read them from the model: `(z - latents_mean) / latents_std` for each channel, or `z * scaling_factor`.
"""

from enum import Enum, auto

import torch

from telecine.models.diffusers.outputs import DiffusersModel
from telecine.models.latent import (
    MEAN_KEY,
    SCALE_KEY,
    SHIFT_KEY,
    STD_KEY,
    LatentStatistics,
    Normalisation,
)


class Normalised(Enum):
    """How the pipelines of a class normalise the latent."""

    CHANNELS = auto()
    """By `latents_mean` and `latents_std` of the configuration. The `scaling_factor` is 1 and stays."""
    BUFFERS = auto()
    """By buffers `latents_mean` and `latents_std`, saved with the weights. The `scaling_factor` is 1 and stays."""
    BATCH_NORM = auto()
    """By the statistics of the batch norm `bn`, of each channel at each position of a patch, saved with the weights."""
    FACTOR = auto()
    """By `scaling_factor` of the configuration, and `shift_factor` if that is a number; or by `latents_mean` and
    `latents_std` of the configuration, if they are set."""
    INSIDE = auto()
    """By `encode`, whose latent is normalised already. The encoder stays as it is."""
    NONE = auto()
    """Pipelines do not normalise the latent."""


def read_normalisation(module: DiffusersModel, kind: Normalised) -> Normalisation:
    """Return the present numbers by name; of a batch norm, mean and deviation of each of its channels."""
    if kind == Normalised.BUFFERS:
        return {
            MEAN_KEY: module.get_buffer(MEAN_KEY).tolist(),
            STD_KEY: module.get_buffer(STD_KEY).tolist(),
        }
    if kind == Normalised.BATCH_NORM:
        std = (module.bn.running_var + module.bn.eps).sqrt()
        return {MEAN_KEY: module.bn.running_mean.tolist(), STD_KEY: std.tolist()}
    keys: list[str] = []
    if kind == Normalised.FACTOR:
        keys += [SCALE_KEY, SHIFT_KEY]
    if kind == Normalised.CHANNELS or (kind == Normalised.FACTOR and _has_channels(module)):
        keys += [MEAN_KEY, STD_KEY]
    normalisation: Normalisation = {}
    for name in keys:
        value = module.config.get(name)
        normalisation[name] = list(value) if isinstance(value, tuple) else value
    return normalisation


def write_normalisation(
    module: DiffusersModel, kind: Normalised, statistics: LatentStatistics
) -> None:
    """Replace the numbers, in memory; `save_pretrained` writes them.

    The positions of a patch, which a batch norm keeps apart, get the same numbers: their channel's.

    Args:
        module: The model.
        kind: How its pipelines normalise the latent.
        statistics: The new numbers.
    """
    if kind == Normalised.BUFFERS:
        module.get_buffer(MEAN_KEY).copy_(torch.tensor(statistics.mean, dtype=torch.float64))
        module.get_buffer(STD_KEY).copy_(torch.tensor(statistics.std, dtype=torch.float64))
    elif kind == Normalised.BATCH_NORM:
        mean = torch.tensor(statistics.mean, dtype=torch.float64)
        variance = torch.tensor(statistics.std, dtype=torch.float64).square() - module.bn.eps
        positions = module.bn.num_features // len(mean)
        module.bn.running_mean.copy_(mean.repeat_interleave(positions))
        module.bn.running_var.copy_(variance.clamp(min=0).repeat_interleave(positions))
    elif kind == Normalised.CHANNELS or (kind == Normalised.FACTOR and _has_channels(module)):
        module.register_to_config(**{MEAN_KEY: statistics.mean, STD_KEY: statistics.std})
    elif kind == Normalised.FACTOR:
        module.register_to_config(scaling_factor=1 / statistics.overall_std)
        if module.config.get(SHIFT_KEY) is not None:
            module.register_to_config(shift_factor=statistics.overall_mean)


def _has_channels(module: DiffusersModel) -> bool:
    """Return whether the configuration has numbers of each channel, which pipelines of SDXL use if they are set."""
    return module.config.get(MEAN_KEY) is not None and module.config.get(STD_KEY) is not None
