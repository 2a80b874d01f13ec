"""The functions that settings name, imported and checked; the perceptual term and the additional terms."""

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.func import functional_call

from telecine.base.checks import argument_error, describe
from telecine.base.imports import check_arguments, choose
from telecine.base.precision import at_least_float32
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
from telecine.losses.perceptual import (
    LPIPS,
    Alignment,
    CustomDistance,
    WeightsSource,
    as_rgb,
    gram,
    pick_frames,
    sample_frame_indices,
)
from telecine.losses.perceptual.frames import in_chunks
from telecine.losses.perceptual.weights import is_default_source
from telecine.objective.batch import Batch
from telecine.objective.eager import eager_backward
from telecine.objective.weights import Weights
from telecine.ops.ranks import with_averaged_gradient
from telecine.settings import ObjectiveConfig, Term

# The built-in terms, which a name alone stands for.
TERMS: dict[str, Callable[..., Any]] = {
    "wavelet": wavelet_l1,
    "temporal": temporal_difference,
    "gram": gram,
    **LATENT_TERMS,
    "alignment": Alignment,
}
_VIDEOS = ("reconstruction", "target", "weight", "mask", "latent", "decode", "generator")
_FEATURES = ("reconstruction_features", "target_features")
_OF_PIXELS = ("reconstruction", "target", "weight")
_OF_PENALTIES = ("discriminator", "real", "fake", "real_logits", "fake_logits", "generator")


class _Functions(NamedTuple):
    recon_loss: Callable[..., Scalar]
    perceptual_net: str | Callable[..., Tensor]
    gan_loss: GANLoss
    penalty: Penalty
    terms: "dict[str, _TermFunction]"

    def modules(self) -> nn.ModuleDict:
        """Return the terms that are modules, named as their losses in the log."""
        modules = {name: t.function for name, t in self.terms.items() if isinstance(t._found, (type, nn.Module))}
        return nn.ModuleDict({f"{name}_loss": cast(nn.Module, module) for name, module in modules.items()})


def functions_of(config: ObjectiveConfig, prefix: str = "") -> _Functions:
    """Import and check the functions that settings name; errors have `prefix` before the names of settings."""
    gan_loss = choose(f"{prefix}gan.loss", config.gan.loss, GAN_LOSSES)
    functions = _Functions(
        choose(f"{prefix}reconstruction.loss", config.reconstruction.loss, RECONSTRUCTION_LOSSES),
        choose(f"{prefix}perceptual.net", config.perceptual.net, {"vgg": "vgg", "alex": "alex"}),
        gan_loss if isinstance(gan_loss, GANLoss) else GANLoss(gan_loss),
        as_penalty(choose(f"{prefix}penalty.kind", config.penalty.kind, GRAD_PENALTIES)),
        {name: _TermFunction(term, f"{prefix}terms.{name}") for name, term in config.named_terms.items()},
    )
    _check_function(f"{prefix}reconstruction.loss", functions.recon_loss, _OF_PIXELS, is_saved=True)
    _check_function(f"{prefix}gan.loss", functions.gan_loss.function, ("real", "fake"))
    _check_function(f"{prefix}penalty.kind", functions.penalty.function, _OF_PENALTIES, takes_all=False)
    return functions


def _check_function(
    setting: str, found: Callable[..., object], names: Sequence[str], *, takes_all: bool = True, is_saved: bool = False
) -> None:
    """Raise a `ValueError` unless a function can be called with these keyword arguments, or with those that it has.

    A module has no weights to train, and no other tensors unless it `is_saved` with the objective.
    """
    if isinstance(found, type):
        raise argument_error(setting, "a function or a module", describe(found), f"Pass `{_name(found)}(...)` instead.")
    held = [*found.parameters(), *found.buffers()] if isinstance(found, nn.Module) else []
    if any(x.requires_grad or not is_saved for x in held):
        contract = "without weights to train" if is_saved else "without parameters and buffers"
        remedy = "Freeze them, or use a term, which is trained." if is_saved else "Use a function."
        raise argument_error(setting, contract, _name(found), remedy)
    signature = inspect.signature(getattr(found, "forward", found))
    try:
        signature.bind(**{name: None for name in names if takes_all or name in signature.parameters})
    except TypeError as error:
        contract, remedy = f"a function of {', '.join(map(repr, names))}", "Give its parameters these names."
        raise argument_error(setting, contract, f"{_name(found)}: {error}", remedy) from error


def check_functions(config: ObjectiveConfig, *, sharding: str) -> None:
    """Import and check the functions that a run's settings name, before it reads any video."""
    decoding = [name for name, term in functions_of(config, "objective.").terms.items() if "decode" in term.arguments]
    if sharding != "none" and decoding:
        remedy = "Leave the term out, or replicate the weights: the decoder alone does not gather sharded ones."
        raise argument_error("sharding", '"none" with terms that decode', f"{sharding} with {decoding[0]}", remedy)


class _TermFunction:
    """The function of an additional term, imported and checked; errors name the `setting`."""

    def __init__(self, term: Term, setting: str = "term") -> None:
        self.params, self.setting = term.params, setting
        self._found = choose(f"{setting}.target", term.target, TERMS)
        if isinstance(self._found, type) and not issubclass(self._found, nn.Module):
            contract = "a function, a module or a class of modules"
            remedy = f"Pass an instance, `{_name(self._found)}(...)`."
            raise argument_error(f"{setting}.target", contract, describe(self._found), remedy)
        check_arguments(f"{setting}.params", self._found, self.params, are_all=isinstance(self._found, type))
        self.arguments = self._checked_arguments()
        self.uses_features = bool(set(_FEATURES) & set(self.arguments))
        """Whether the function compares features of the perceptual network."""

    @cached_property
    def function(self) -> Callable[..., Tensor]:
        """The function with its further arguments, or the module that its class builds."""
        if isinstance(self._found, type):
            with unset_fake_temporarily():  # it may read weights, also where a run is planned without any values
                return cast(Callable[..., Tensor], self._found(**self.params))
        is_module = isinstance(self._found, nn.Module)  # which gets its further arguments in `call`
        return partial(self._found, **self.params) if self.params and not is_module else self._found

    def _checked_arguments(self) -> tuple[str, ...]:
        given = () if isinstance(self._found, type) else self.params
        parameters = [p for p in _signature(self._found).parameters.values() if p.name not in given]
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        available = _FEATURES if set(_FEATURES) & set(names) else _VIDEOS
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        required = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
        contract = f"a function of {', '.join(map(repr, _VIDEOS))}, or of {', '.join(map(repr, _FEATURES))} alone"
        if unknown := [name for name in required if name not in available]:
            remedy = "Give the others default values or `params`, or wrap it in a function with these names."
            got = f"one that needs {', '.join(map(repr, unknown))}"
            raise argument_error(f"{self.setting}.target", contract, got, remedy)
        found = tuple(name for name in available if name in names)
        if not found:
            remedy = "Add a parameter `reconstruction`."
            raise argument_error(f"{self.setting}.target", contract, "one of none of them", remedy)
        return found

    def __call__(self, batch: Batch) -> Scalar:
        if "weight" not in self.arguments and batch.clip_weight is not None:
            contract = "a function with the parameter `weight` if a call has `mask` or `sample_weight`"
            remedy = "Add it, and multiply the error of each clip by it."
            raise argument_error(_name(self.function), contract, "one without", remedy)
        compares_pixels = "reconstruction" in self.arguments
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
        return check_result(self.function, self.call(**given))

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the weights of a module that are not frozen, by name."""
        named = self.function.named_parameters() if isinstance(self.function, nn.Module) else ()
        return {name: weight for name, weight in named if weight.requires_grad}

    def call(self, **given: object) -> Any:
        """Call the function with its arguments. Gradients of a module's weights are averaged over ranks."""
        arguments = {name: given[name] for name in self.arguments}
        arguments |= self.params if isinstance(self._found, nn.Module) else {}
        if weights := {name: with_averaged_gradient(weight) for name, weight in self.trained().items()}:
            return functional_call(cast(nn.Module, self.function), weights, (), arguments)
        return self.function(**arguments)


def check_result(function: Callable[..., object], value: object) -> Scalar:
    """Return the result of a loss function; raise a `ValueError` unless it is a 0-d tensor."""
    if not isinstance(value, Tensor) or value.ndim != 0:
        remedy = "Reduce it with `.mean()`, without `.item()`."
        raise argument_error(f"the result of {_name(function)}", "a 0-d tensor", describe(value), remedy)
    return value


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


class PerceptualTerm(nn.Module):
    """The mean distance over the sampled frames, and additional terms of the same features."""

    def __init__(self, config: ObjectiveConfig, vgg_weights: WeightsSource, functions: _Functions) -> None:
        super().__init__()
        self.config, net = config.perceptual, functions.perceptual_net
        if net != "vgg" and not is_default_source("vgg", vgg_weights):
            contract = 'left out unless `perceptual.net` is "vgg"'
            remedy = "Load another network's weights with `net=LPIPS('alex', weights=...)`."
            raise argument_error("vgg_weights", contract, describe(self.config.net), remedy)
        self.feature_terms = {name: term for name, term in functions.terms.items() if term.uses_features}
        terms = config.all_terms()
        if not any(terms[name].ramp.is_ever_on for name in ("perceptual", *self.feature_terms)):
            self.distance: LPIPS | CustomDistance | None = None
        elif isinstance(net, str):
            self.distance = LPIPS(net, weights=vgg_weights if net == "vgg" else None)
        else:
            self.distance = net if isinstance(net, LPIPS) else CustomDistance(net)
        if self.feature_terms and isinstance(self.distance, CustomDistance):
            contract = "without terms of features for a distance that has none"
            got, remedy = repr(next(iter(self.feature_terms))), 'Use "vgg" or "alex" as `perceptual.net`.'
            raise argument_error("terms", contract, got, remedy)

    def forward(self, batch: Batch, weights: Weights, *, eager: bool) -> dict[str, Scalar]:
        """Return the distance, named "perceptual", and the terms of features; those of weight 0 are left out.

        With `eager`, each chunk's gradient is computed before the next chunk. A chunk then has by default as many
        frames as there are clips.
        """
        config, names = self.config, [n for n in ("perceptual", *self.feature_terms) if weights[n] > 0]
        if not names:
            return {}
        indices = sample_frame_indices(batch.fake, config.num_frames, batch.generator)
        # In float32, as they are compared: the backward of splitting half precision fails under CPU autocast.
        frames, targets = (at_least_float32(pick_frames(video, indices)) for video in (batch.fake, batch.real))
        frames, targets = (as_rgb(each, batch.background) for each in (frames, targets))
        # The weighted sum over the frames is the mean.
        if batch.clip_weight is None:
            weight = torch.full((len(frames),), 1 / len(frames), device=frames.device)
        else:
            weight = (batch.clip_weight / len(frames)).repeat_interleave(indices.shape[1])
        size = (config.chunk_size or len(indices)) if eager else len(frames)
        chunks, trained = [], [p for n in names if n != "perceptual" for p in self.feature_terms[n].trained().values()]
        for x, y, w in zip(frames.split(size), targets.split(size), weight.split(size), strict=True):
            compare = partial(self._compare, target=y, weight=w, names=names)
            chunks.append(eager_backward(compare, x, trained) if eager else compare(x))
        return {name: torch.stack([chunk[name] for chunk in chunks]).sum() for name in names}

    def _compare(self, frames: Tensor, *, target: Tensor, weight: Tensor, names: Sequence[str]) -> dict[str, Scalar]:
        """Return the weighted sum over the frames of each distance."""
        assert self.distance is not None
        terms = [name for name in names if name != "perceptual"]
        functions = [self.feature_terms[name].call for name in terms]
        compare = partial(self.distance, feature_terms=functions) if functions else self.distance
        found = in_chunks(compare, reconstruction=frames, target=target, chunk_size=self.config.chunk_size)
        distances = found if isinstance(found, tuple) else (found,)
        for name, distance in zip(terms, distances[1:], strict=True):
            if distance.shape != frames.shape[:1]:
                contract = f"of shape ({len(frames)},), one value per frame"
                remedy = "Average what belongs to one frame."
                raise argument_error(f"the result of the term {name}", contract, distance, remedy)
        by_name = dict(zip(("perceptual", *terms), distances, strict=True))
        return {name: (weight * by_name[name]).sum() for name in names}

    @staticmethod
    def drop_weights(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
        """Remove the frozen LPIPS from a state dict of the reference; a hook that runs before it is loaded."""
        for key in [key for key in state_dict if key.startswith(f"{prefix}perceptual_model.")]:
            del state_dict[key]
