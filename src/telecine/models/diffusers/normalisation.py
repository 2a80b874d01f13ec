"""Where each diffusers class keeps the statistics of its latent, and how to replace them after training the encoder.

Pipelines read them from the model: `(z - latents_mean) / latents_std` for each channel, or `z * scaling_factor`.
"""

import torch

from telecine.models.diffusers.families import CLASSES, DiffusersModel
from telecine.models.latent import CHANNEL_KEYS, FACTOR_KEYS, LatentStatistics, Normalisation

# How the pipelines of each class normalise the latent, by the words of `classes.yaml`.
_NORMALISATIONS: dict[str, str] = {name: kind for kind, names in CLASSES["normalisation"].items() for name in names}


def _normalisation_of(module: DiffusersModel) -> str:
    """Return how latents of a model are normalised: by its class or a base class, "NONE" for an unknown one."""
    names = (parent.__name__ for parent in type(module).__mro__)
    return next((_NORMALISATIONS[name] for name in names if name in _NORMALISATIONS), "NONE")


def read_normalisation(module: DiffusersModel) -> Normalisation:
    """Return the present numbers by name; of a batch norm, mean and deviation of each of its channels."""
    kind = _normalisation_of(module)
    if kind == "BUFFERS":
        return {name: module.get_buffer(name).tolist() for name in CHANNEL_KEYS}
    if kind == "BATCH_NORM":
        values = module.bn.running_mean, (module.bn.running_var + module.bn.eps).sqrt()
        return {name: value.tolist() for name, value in zip(CHANNEL_KEYS, values, strict=True)}
    keys = {"CHANNELS": CHANNEL_KEYS, "FACTOR": FACTOR_KEYS}.get(kind, ())
    more = CHANNEL_KEYS if kind == "FACTOR" and _has_channels(module) else ()
    found = {name: module.config.get(name) for name in (*keys, *more)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def write_normalisation(module: DiffusersModel, statistics: LatentStatistics) -> None:
    """Replace the numbers, in memory; `save_pretrained` writes them.

    The positions of a patch, which a batch norm keeps apart, get the same: those of their channel.
    """
    kind = _normalisation_of(module)
    per_channel = dict(zip(CHANNEL_KEYS, (statistics.mean, statistics.std), strict=True))
    if kind == "BUFFERS":
        for name, values in per_channel.items():
            module.get_buffer(name).copy_(torch.tensor(values, dtype=torch.float64))
    elif kind == "BATCH_NORM":
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in per_channel.values())
        positions = module.bn.num_features // len(mean)
        module.bn.running_mean.copy_(mean.repeat_interleave(positions))
        module.bn.running_var.copy_((std.square() - module.bn.eps).clamp(min=0).repeat_interleave(positions))
    elif kind == "CHANNELS" or (kind == "FACTOR" and _has_channels(module)):
        module.register_to_config(**per_channel)
    elif kind == "FACTOR":
        shift = {} if module.config.get("shift_factor") is None else {"shift_factor": statistics.overall_mean}
        module.register_to_config(scaling_factor=1 / statistics.overall_std, **shift)


def _has_channels(module: DiffusersModel) -> bool:
    """Return whether the configuration has numbers of each channel, which pipelines of SDXL use if they are set."""
    return all(module.config.get(name) is not None for name in CHANNEL_KEYS)
