"""The optimizers that there are, how a run builds its two, and their states in a checkpoint."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from telecine.base.checks import argument_error
from telecine.base.imports import how_to_install
from telecine.models import VideoAutoencoder
from telecine.objective import VideoAutoencoderLoss
from telecine.settings import OptimizerConfig
from telecine.training.tensor_files import load_into, saved_tensors


def adamw(parameters: Sequence[Any], **options: Any) -> Optimizer:
    """Return AdamW, arXiv:1711.05101."""
    is_fused = adamw_is_fused(_first_weight(parameters).device.type)
    # None: PyTorch chooses.
    return AdamW(parameters, fused=is_fused or None, **options)


def adamw_is_fused(device_type: str) -> bool:
    """Return whether AdamW updates all weights in one kernel, which needs no memory of its own: on CUDA."""
    return device_type == "cuda"


def adamw_8bit(parameters: Sequence[Any], **options: Any) -> Optimizer:
    """Return AdamW with states of 8 bits, arXiv:2110.02861.

    Raises:
        ValueError: If the weights are on a device without kernels.
        ImportError: If bitsandbytes is not installed.
    """
    device = _first_weight(parameters).device.type
    if device not in ("cuda", "cpu"):
        raise argument_error(
            "optimizer.name", f"adamw on {device}", "adamw_8bit", "bitsandbytes has no kernels."
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as missing:
        raise ImportError(
            f"`optimizer.name: adamw_8bit` needs bitsandbytes. {how_to_install('8bit')}"
        ) from missing
    optimizer: Optimizer = AdamW8bit(parameters, **options)
    return optimizer


def _first_weight(parameters: Sequence[Any]) -> Tensor:
    """Return the first weight of a list of weights or of groups."""
    first = parameters[0]
    weight: Tensor = first["params"][0] if isinstance(first, dict) else first
    return weight


# The optimizers by the value of `optimizer.name`.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adamw": adamw, "adamw_8bit": adamw_8bit}


def planned(settings: OptimizerConfig) -> OptimizerConfig:
    """Return settings of the optimizer that a plan of the memory runs: kernels of 8 bits need tensors with values."""
    if settings.name == "adamw_8bit":
        return replace(settings, name="adamw")
    return settings


def build_optimizers(
    settings: OptimizerConfig, model: VideoAutoencoder, objective: VideoAutoencoderLoss
) -> tuple[Optimizer, Optimizer | None]:
    """Return the optimizer of the autoencoder, and the optimizer of the discriminators, `None` without discriminators.

    Args:
        settings: The settings of both.
        model: The autoencoder, whose trained weights are optimized.
        objective: The loss. Parameters that it learns with the autoencoder have no weight decay.
    """
    build = OPTIMIZERS[settings.name]
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in model.parameters() if weight.requires_grad]}
    ]
    learned = objective.get_trainable_autoencoder_parameters()
    if learned:
        groups.append({"params": learned, "weight_decay": 0.0})  # decay would change a variance
    optimizer = build(
        groups, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
    )
    discriminators = objective.get_trainable_parameters()
    if not discriminators:
        return optimizer, None
    disc_optimizer = build(
        discriminators,
        lr=settings.disc_lr,
        betas=settings.disc_betas,
        weight_decay=settings.weight_decay,
    )
    return optimizer, disc_optimizer


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state by "index of the parameter.name"; its hyperparameters are settings of the run."""
    tensors = {}
    for index, parameter in enumerate(parameters_of(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{index}.{name}"] = torch.as_tensor(value)
    return tensors


@torch.no_grad()
def load_optimizer(optimizer: Optimizer, folder: Path, group: str) -> None:
    """Load what `optimizer_tensors` returned into an optimizer of the same parameters; its hyperparameters stay.

    Args:
        optimizer: The optimizer, whose parameters may be sharded.
        folder: The folder of the checkpoint.
        group: The name of the optimizer in the checkpoint.
    """
    parameters = parameters_of(optimizer)
    targets = {}
    for key, saved in saved_tensors(folder, group).items():
        index = key.partition(".")[0]
        parameter = parameters[int(index)]
        if saved.ndim > 0 and saved.shape == parameter.shape:
            # It is sharded as the parameter is.
            targets[key] = torch.empty_like(parameter, dtype=saved.dtype)
        else:
            targets[key] = torch.empty_like(saved, device="cpu")
    load_into(targets, folder, group)
    state: defaultdict[int, dict[str, Tensor | int]] = defaultdict(dict)
    for key, tensor in targets.items():
        index, _, name = key.partition(".")
        # bitsandbytes counts steps as an int, PyTorch as a tensor of floats.
        is_int = tensor.ndim == 0 and not tensor.is_floating_point()
        state[int(index)][name] = int(tensor) if is_int else tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
