"""The functions and modules that settings name for the pixel loss, LPIPS, the GAN and the penalty: imported, checked.

`terms.py` imports the functions of `terms`.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from telecine.base.checks import argument_error, describe
from telecine.base.imports import choose
from telecine.base.shapes import Scalar
from telecine.losses import (
    GAN_LOSSES,
    GRAD_PENALTIES,
    RECONSTRUCTION_LOSSES,
    GANLoss,
    JointGANLoss,
    Penalty,
    SeparableGANLoss,
    as_penalty,
)
from telecine.losses.penalty import PENALTY_INPUTS
from telecine.settings import ObjectiveConfig


@dataclass(frozen=True)
class Functions:
    """The functions that the settings of an objective name, apart from `terms`."""

    recon_loss: Callable[..., Scalar]
    perceptual_net: str | Callable[..., Tensor]
    gan_loss: GANLoss
    penalty: Penalty


def import_functions(config: ObjectiveConfig, prefix: str = "") -> Functions:
    """Import and check the functions that settings name, apart from `terms`.

    Args:
        config: The settings.
        prefix: What errors put before the name of a setting, such as "objective.".

    Raises:
        ValueError: A function cannot be imported, or does not have the parameters of its kind.
    """
    recon_loss = choose(
        f"{prefix}reconstruction.loss", config.reconstruction.loss, RECONSTRUCTION_LOSSES
    )
    perceptual_net = choose(
        f"{prefix}perceptual.net", config.perceptual.net, {"vgg": "vgg", "alex": "alex"}
    )
    gan_loss = choose(f"{prefix}gan.loss", config.gan.loss, GAN_LOSSES)
    if not isinstance(gan_loss, SeparableGANLoss | JointGANLoss):
        gan_loss = JointGANLoss(gan_loss)
    penalty = as_penalty(choose(f"{prefix}penalty.kind", config.penalty.kind, GRAD_PENALTIES))
    _check_function(
        f"{prefix}reconstruction.loss",
        recon_loss,
        ("reconstruction", "target", "weight"),
        is_saved=True,
    )
    if isinstance(gan_loss, JointGANLoss):
        _check_function(f"{prefix}gan.loss", gan_loss.function, ("real", "fake"))
    _check_function(f"{prefix}penalty.kind", penalty.function, PENALTY_INPUTS, takes_all=False)
    return Functions(recon_loss, perceptual_net, gan_loss, penalty)


def check_result(function: Callable[..., object], value: object) -> Scalar:
    """Return the result of a loss function.

    Raises:
        ValueError: It is not a 0-d tensor.
    """
    if not isinstance(value, Tensor) or value.ndim != 0:
        remedy = "Reduce it with `.mean()`, without `.item()`."
        raise argument_error(
            f"the result of {name_of(function)}", "a 0-d tensor", describe(value), remedy
        )
    return value


def name_of(function: Callable[..., object]) -> str:
    """Return the name of a function, or of the class of a module."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _check_function(
    setting: str,
    function: Callable[..., object],
    names: Sequence[str],
    *,
    takes_all: bool = True,
    is_saved: bool = False,
) -> None:
    """Raise a `ValueError` unless a function can be called with these keyword arguments, or with those that it has.

    A module has no weights to train, and no other tensors unless it `is_saved` with the objective.
    """
    if isinstance(function, type):
        remedy = f"Pass `{name_of(function)}(...)` instead."
        raise argument_error(setting, "a function or a module", describe(function), remedy)
    tensors: list[Tensor] = []
    if isinstance(function, nn.Module):
        tensors = [*function.parameters(), *function.buffers()]
    if is_saved and any(tensor.requires_grad for tensor in tensors):
        remedy = "Freeze them, or use a term, which is trained."
        raise argument_error(setting, "without weights to train", name_of(function), remedy)
    if not is_saved and tensors:
        raise argument_error(
            setting, "without parameters and buffers", name_of(function), "Use a function."
        )
    signature = signature_of(function)
    passed = names
    if not takes_all:
        passed = [name for name in names if name in signature.parameters]
    try:
        signature.bind(**dict.fromkeys(passed))
    except TypeError as error:
        contract = f"a function of {listed(names)}"
        got = f"{name_of(function)}: {error}"
        raise argument_error(setting, contract, got, "Give its parameters these names.") from error


def signature_of(function: Callable[..., object]) -> inspect.Signature:
    """Return the signature of a function, or of the `forward` of a module or a class of modules."""
    if not isinstance(function, type):
        return inspect.signature(getattr(function, "forward", function))
    signature = inspect.signature(function.forward)  # type: ignore[attr-defined]
    without_self = list(signature.parameters.values())[1:]
    return signature.replace(parameters=without_self)


def listed(names: Sequence[str]) -> str:
    """Return quoted names for an error."""
    return ", ".join(map(repr, names))
