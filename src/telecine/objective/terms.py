"""Additional terms of the autoencoder's loss: a function of the videos or of the latent, and its weight."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from telecine.base.checks import argument_error, describe, suggestion
from telecine.base.imports import import_allowed
from telecine.base.shapes import Scalar
from telecine.losses import (
    equivariance,
    latent_masking,
    latent_noise,
    local_correlation,
    scale_equivariance,
    temporal_difference,
    wavelet_l1,
)
from telecine.objective.batch import Batch
from telecine.objective.running import with_averaged_gradient
from telecine.perceptual import Alignment, gram
from telecine.settings import ObjectiveConfig, Term

# The built-in terms, which a name alone stands for.
TERMS: dict[str, Callable[..., Any]] = {
    "wavelet": wavelet_l1,
    "temporal": temporal_difference,
    "gram": gram,
    "equivariance": equivariance,
    "scale_equivariance": scale_equivariance,
    "local_correlation": local_correlation,
    "latent_masking": latent_masking,
    "latent_noise": latent_noise,
    "alignment": Alignment,
}
VIDEOS = ("reconstruction", "target", "weight", "mask", "latent", "decode", "generator")
FEATURES = ("reconstruction_features", "target_features")


class TermFunction:
    """The function of a `Term`, which is imported and checked.

    Args:
        term: Its settings.

    Raises:
        ValueError: If there is no such function, or it needs an argument that no call has.
    """

    def __init__(self, term: Term) -> None:
        self.target, self.params = term.target, term.params
        self.arguments  # noqa: B018 - checks the function

    @cached_property
    def function(self) -> Callable[..., Tensor]:
        """The function with its further arguments, or the module that its class builds."""
        found = self._found
        if isinstance(found, type):
            return cast(Callable[..., Tensor], found(**self.params))
        return partial(found, **self.params) if self.params else found

    @cached_property
    def _found(self) -> Callable[..., Any]:
        """The function or class without its further arguments, which are checked."""
        assert self.target is not None
        found = self.target if callable(self.target) else _import(self.target)
        if isinstance(found, type) and not issubclass(found, nn.Module):
            remedy = f"Pass an instance, `{found.__name__}(...)`."
            raise argument_error("target", "a function, a module or a class of modules", describe(found), remedy)
        parameters = inspect.signature(found).parameters if isinstance(found, type) else _signature(found).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name, value in self.params.items():
            if name not in parameters and not takes_any:
                contract = f"a parameter of {_name(found)}"
                raise argument_error(f"params.{name}", contract, describe(value), suggestion(name, parameters))
        if isinstance(found, type):
            for name, parameter in parameters.items():
                if parameter.default is parameter.empty and name not in self.params and not takes_any:
                    got = f"params without {name!r}"
                    raise argument_error("params", f"the arguments of {_name(found)}", got, f"Add `params.{name}`.")
        return found

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The names of what the function is called with."""
        signature = _signature(self._found)
        given = () if isinstance(self._found, type) else self.params
        parameters = [p for p in signature.parameters.values() if p.name not in given]
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        available = FEATURES if set(FEATURES) & set(names) else VIDEOS
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        required = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
        contract = f"a function of {', '.join(map(repr, VIDEOS))}, or of {', '.join(map(repr, FEATURES))} alone"
        if unknown := [name for name in required if name not in available]:
            remedy = "Give the others default values or `params`, or wrap it in a function with these names."
            raise argument_error("target", contract, f"one that needs {', '.join(map(repr, unknown))}", remedy)
        found = tuple(name for name in available if name in names)
        if not found:
            remedy = "Add a parameter `reconstruction`."
            raise argument_error("target", contract, "one of none of them", remedy)
        return found

    @property
    def uses_features(self) -> bool:
        """Whether the function compares features of the perceptual network."""
        return bool(set(FEATURES) & set(self.arguments))

    @property
    def is_module(self) -> bool:
        """Whether the function is a module, which may have weights of its own."""
        return isinstance(self._found, (type, nn.Module))

    @property
    def decodes(self) -> bool:
        """Whether the function decodes a latent."""
        return "decode" in self.arguments

    def __call__(self, batch: Batch) -> Scalar:
        """Return the term of a batch, a 0-d tensor with its graph.

        Raises:
            ValueError: If the function returns anything else, cannot take the mask or the weights of this call, or
                needs a latent or a decoder that this call does not have.
        """
        if "weight" not in self.arguments and batch.clip_weight is not None:
            contract = "a function with the parameter `weight` if a call has `mask` or `sample_weight`"
            remedy = "Add it, and multiply the error of each clip by it."
            raise argument_error(_name(self.function), contract, "one without", remedy)
        compares_pixels = bool({"reconstruction", "target"} & set(self.arguments))
        given = {
            "reconstruction": batch.fake,
            "target": batch.real,
            "weight": batch.sample_weight if "mask" in self.arguments or not compares_pixels else batch.clip_weight,
            "mask": batch.mask,
            "latent": batch.latent,
            "decode": batch.decode,
            "generator": batch.generator,
        }
        for name in ("latent", "decode"):
            if name in self.arguments and given[name] is None:
                remedy = f"Pass `{name}=` of the autoencoder. A custom module returns its latent, and has a `decode`."
                raise argument_error(name, f"given for {_name(self.function)}", "None", remedy)
        value = self._call({name: given[name] for name in self.arguments})
        if not isinstance(value, Tensor) or value.ndim != 0:
            remedy = "Reduce it with `.mean()`, without `.item()`."
            raise argument_error(f"the result of {_name(self.function)}", "a 0-d tensor", describe(value), remedy)
        return value

    def _call(self, given: Mapping[str, object]) -> object:
        """Call the function. Gradients of a module's weights are averaged over ranks."""
        function = self.function
        if not isinstance(function, nn.Module):
            return function(**given)
        trained = [(name, weight) for name, weight in function.named_parameters() if weight.requires_grad]
        weights = {name: with_averaged_gradient(weight) for name, weight in trained}
        return functional_call(function, weights, (), dict(given)) if weights else function(**given)


def _signature(function: Callable[..., object]) -> inspect.Signature:
    """Return the signature of a function, or of the `forward` of a module or a class of modules."""
    if isinstance(function, type):
        bound = inspect.signature(function.forward)  # type: ignore[attr-defined]
        return bound.replace(parameters=list(bound.parameters.values())[1:])  # without `self`
    return inspect.signature(function.forward if isinstance(function, nn.Module) else function)


def _name(function: Callable[..., object]) -> str:
    if isinstance(function, partial):
        return _name(function.func)
    return getattr(function, "__name__", type(function).__name__)


def _import(path: str) -> Callable[..., Any]:
    if path in TERMS:
        return TERMS[path]
    if "." not in path:
        contract = f"one of {', '.join(map(repr, TERMS))}, or the dotted path of a function"
        raise argument_error("target", contract, repr(path), suggestion(path, TERMS))
    found = import_allowed(path, "target")
    if not callable(found):
        raise argument_error("target", "the dotted path of a function", f"{path!r}, {describe(found)}", "Correct it.")
    return found


def functions_of(config: ObjectiveConfig) -> dict[str, TermFunction]:
    """Return the additional terms by name. Each call builds new modules.

    Raises:
        ValueError: If a term has no function, or one that needs other arguments.
    """
    return {name: TermFunction(term) for name, term in config.named_terms.items()}


def modules_of(terms: Mapping[str, TermFunction]) -> nn.ModuleDict:
    """Return the terms that are modules, named as their losses in the log."""
    modules = {name: term.function for name, term in terms.items() if term.is_module}
    return nn.ModuleDict({f"{name}_loss": cast(nn.Module, module) for name, module in modules.items()})


def total(terms: Iterable[Scalar], *, like: Tensor) -> Scalar:
    """Return the sum of the terms, 0 on `like`'s device if there are none."""
    terms = list(terms)
    return torch.stack(terms).sum() if terms else torch.zeros((), device=like.device)


def mean(terms: Iterable[Scalar], *, like: Tensor) -> Scalar:
    """Return the mean of the terms, 0 on `like`'s device if there are none."""
    terms = list(terms)
    return total(terms, like=like) / max(len(terms), 1)


def weighted(*terms: tuple[float, Scalar | None]) -> Scalar | float:
    """Return the sum of weight times term. Skip zero weights: 0 * NaN is NaN."""
    return sum((weight * term for weight, term in terms if term is not None and weight != 0), 0.0)
