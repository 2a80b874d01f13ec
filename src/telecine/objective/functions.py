"""The functions and modules that settings name: imported and checked."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from telecine.base.checks import argument_error, describe
from telecine.base.imports import check_arguments, choose
from telecine.base.shapes import Scalar
from telecine.losses import (
    GAN_LOSSES,
    GRAD_PENALTIES,
    LATENT_TERMS,
    RECONSTRUCTION_LOSSES,
    GANLoss,
    Penalty,
    as_penalty,
    temporal_difference,
    wavelet_l1,
)
from telecine.losses.perceptual import Alignment, gram
from telecine.settings import ObjectiveConfig, Term

# The functions that `terms` can name without a dotted path.
TERMS: dict[str, Callable[..., Any]] = {
    "wavelet": wavelet_l1,
    "temporal": temporal_difference,
    "gram": gram,
    **LATENT_TERMS,
    "alignment": Alignment,
}
# The inputs of a function in `terms`, by the names of its parameters: those of a batch, or those of LPIPS' network.
BATCH_INPUTS = (
    "reconstruction",
    "target",
    "weight",
    "mask",
    "latent",
    "posterior",
    "first_frame_apart",
    "decode",
    "generator",
)
FEATURE_INPUTS = ("reconstruction_features", "target_features")
PENALTY_INPUTS = ("discriminator", "real", "fake", "real_logits", "fake_logits", "generator")


@dataclass(frozen=True)
class NamedFunction:
    """A function, a module or a class of modules that `terms` names, and those of the inputs that it takes."""

    function: Callable[..., Any]
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Functions:
    """Every function that the settings of an objective name."""

    recon_loss: Callable[..., Scalar]
    perceptual_net: str | Callable[..., Tensor]
    gan_loss: GANLoss
    penalty: Penalty
    terms: dict[str, NamedFunction]


def import_functions(config: ObjectiveConfig, prefix: str = "") -> Functions:
    """Import and check the functions that settings name.

    Args:
        config: The settings.
        prefix: What errors put before the name of a setting, such as "objective.".

    Raises:
        ValueError: A function cannot be imported, or does not have the parameters of its kind.
    """
    recon_loss = choose(f"{prefix}reconstruction.loss", config.reconstruction.loss, RECONSTRUCTION_LOSSES)
    perceptual_net = choose(f"{prefix}perceptual.net", config.perceptual.net, {"vgg": "vgg", "alex": "alex"})
    gan_loss = choose(f"{prefix}gan.loss", config.gan.loss, GAN_LOSSES)
    if not isinstance(gan_loss, GANLoss):
        gan_loss = GANLoss(gan_loss)
    penalty = as_penalty(choose(f"{prefix}penalty.kind", config.penalty.kind, GRAD_PENALTIES))
    terms = {name: import_term(term, f"{prefix}terms.{name}") for name, term in config.named_terms.items()}
    _check_function(f"{prefix}reconstruction.loss", recon_loss, ("reconstruction", "target", "weight"), is_saved=True)
    _check_function(f"{prefix}gan.loss", gan_loss.function, ("real", "fake"))
    _check_function(f"{prefix}penalty.kind", penalty.function, PENALTY_INPUTS, takes_all=False)
    return Functions(recon_loss, perceptual_net, gan_loss, penalty, terms)


def check_functions(config: ObjectiveConfig, *, sharding: str) -> None:
    """Import and check the functions that a run's settings name, before it reads any video.

    Raises:
        ValueError: A function does not fit its setting, or a term decodes while weights are sharded.
    """
    for name, term in import_functions(config, "objective.").terms.items():
        if sharding != "none" and "decode" in term.arguments:
            contract = '"none" with terms that decode'
            remedy = "Leave the term out, or replicate the weights: the decoder alone does not gather sharded ones."
            raise argument_error("sharding", contract, f"{sharding} with {name}", remedy)


def import_term(term: Term, setting: str) -> NamedFunction:
    """Import and check the function of a term; errors name the `setting`.

    Raises:
        ValueError: It cannot be imported, or needs other arguments than `BATCH_INPUTS` or `FEATURE_INPUTS`.
    """
    function = choose(f"{setting}.target", term.target, TERMS)
    is_class = isinstance(function, type)
    if isinstance(function, type) and not issubclass(function, nn.Module):
        contract = "a function, a module or a class of modules"
        remedy = f"Pass an instance, `{name_of(function)}(...)`."
        raise argument_error(f"{setting}.target", contract, describe(function), remedy)
    check_arguments(f"{setting}.params", function, term.params, are_all=is_class)
    names, required = [], []
    for parameter in _signature(function).parameters.values():
        is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        is_set = not is_class and parameter.name in term.params
        if is_variadic or is_set:
            continue
        if parameter.kind is not parameter.POSITIONAL_ONLY:
            names.append(parameter.name)
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    available = FEATURE_INPUTS if set(FEATURE_INPUTS) & set(names) else BATCH_INPUTS
    contract = f"a function of {_listed(BATCH_INPUTS)}, or of {_listed(FEATURE_INPUTS)} alone"
    unknown = [name for name in required if name not in available]
    if unknown:
        remedy = "Give the others default values or `params`, or wrap it in a function with these names."
        raise argument_error(f"{setting}.target", contract, f"one that needs {_listed(unknown)}", remedy)
    arguments = tuple(name for name in available if name in names)
    if not arguments:
        raise argument_error(f"{setting}.target", contract, "one of none of them", "Add a parameter `reconstruction`.")
    return NamedFunction(function, arguments)


def check_result(function: Callable[..., object], value: object) -> Scalar:
    """Return the result of a loss function.

    Raises:
        ValueError: It is not a 0-d tensor.
    """
    if not isinstance(value, Tensor) or value.ndim != 0:
        remedy = "Reduce it with `.mean()`, without `.item()`."
        raise argument_error(f"the result of {name_of(function)}", "a 0-d tensor", describe(value), remedy)
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
    tensors = [*function.parameters(), *function.buffers()] if isinstance(function, nn.Module) else []
    if is_saved and any(tensor.requires_grad for tensor in tensors):
        remedy = "Freeze them, or use a term, which is trained."
        raise argument_error(setting, "without weights to train", name_of(function), remedy)
    if not is_saved and tensors:
        raise argument_error(setting, "without parameters and buffers", name_of(function), "Use a function.")
    signature = _signature(function)
    passed = names if takes_all else [name for name in names if name in signature.parameters]
    try:
        signature.bind(**dict.fromkeys(passed))
    except TypeError as error:
        contract = f"a function of {_listed(names)}"
        got = f"{name_of(function)}: {error}"
        raise argument_error(setting, contract, got, "Give its parameters these names.") from error


def _signature(function: Callable[..., object]) -> inspect.Signature:
    """Return the signature of a function, or of the `forward` of a module or a class of modules."""
    if not isinstance(function, type):
        return inspect.signature(getattr(function, "forward", function))
    signature = inspect.signature(function.forward)  # type: ignore[attr-defined]
    without_self = list(signature.parameters.values())[1:]
    return signature.replace(parameters=without_self)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
