"""The auxiliary losses that an autoencoder brings along: a quantizer's, or the divergence of its posterior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from telecine.losses import posterior_kl
from telecine.objective.schedule import Ramp
from telecine.objective.terms import Log, total
from telecine.shapes import Scalar, argument_error, describe, nearest


def named_aux_losses(
    aux_losses: Any,
    regularization_log: Mapping[str, Any] | None,
    device: Any,
    kl_reduction: Literal["mean", "sum"] = "mean",
) -> Log:
    """Return the auxiliary losses by name as 0-d tensors in at least float32; the graph is kept.

    Args:
        aux_losses: A tensor of one element, a number, a posterior with `mean` and `logvar` (as diffusers has), `None`,
            or a mapping of names to such.
        regularization_log: What an sgm-style engine logs of its regulariser; where `aux_losses` is `None`, its
            entries whose name ends in "loss" or starts with "loss/" stand in.
        device: Where numbers become tensors.
        kl_reduction: How a posterior's divergence is reduced.

    Raises:
        ValueError: If an auxiliary loss has more than one element or is of another type.
    """
    if aux_losses is None:
        log = regularization_log or {}
        aux_losses = {name: value for name, value in log.items() if _is_loss(name)}
    if not isinstance(aux_losses, Mapping):
        aux_losses = {"kl_loss" if _is_posterior(aux_losses) else "": aux_losses}
    return {str(name): _as_scalar(name, value, device, kl_reduction) for name, value in aux_losses.items()}


def weighted_sum(aux: Log, weights: Mapping[str, Ramp], step: int, *, like: Tensor) -> Scalar:
    """Return the sum of the auxiliary losses, each times its weight at `step`, which is 1 where none is given.

    Raises:
        ValueError: If a weight is given for a loss that is not there.
    """
    for name in weights:
        if name not in aux:
            contract = f"weights of auxiliary losses that are passed, {sorted(aux)}"
            remedy = nearest(name, aux) or "Pass that loss in the dict `aux_losses`, or leave its weight out."
            raise argument_error("aux_loss_weights", contract, repr(name), remedy)
    weight_of = {name: weights[name].at(step) if name in weights else 1.0 for name in aux}
    # A loss of weight 0 is left out: 0 times NaN would count.
    return total((weight_of[name] * loss for name, loss in aux.items() if weight_of[name] != 0), like=like)


def _is_loss(name: str) -> bool:
    return name.endswith("loss") or name.startswith("loss/")


def _is_posterior(value: Any) -> bool:
    return not isinstance(value, (Tensor, int, float, str)) and hasattr(value, "mean")


def _as_scalar(name: str, value: Any, device: Any, kl_reduction: Literal["mean", "sum"]) -> Tensor:
    argument = f"aux_losses[{name!r}]" if name else "aux_losses"
    contract = "a number, a floating-point tensor of one element, or a posterior with `mean` and `logvar`"
    if _is_posterior(value):
        return posterior_kl(value, reduction=kl_reduction)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.full((), float(value), device=device)  # `torch.tensor` would wait for the device
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise argument_error(argument, contract, describe(value), "Pass a dict to name several losses.")
    if value.numel() != 1:
        raise argument_error(argument, contract, value, "Reduce it first, for instance with `.mean()`.")
    return value.reshape(()).to(device, torch.promote_types(value.dtype, torch.float32))
