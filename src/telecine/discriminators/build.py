"""Discriminators from what a user or a YAML file gives: a module, constructor arguments, or a target with params."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from telecine.discriminators.image import Discriminator
from telecine.discriminators.video import Discriminator3D, Discriminator3DWithfirstframe
from telecine.shapes import argument_error, describe, nearest

CLASSES: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (Discriminator, Discriminator3D, Discriminator3DWithfirstframe)
}
# Where configurations written for CogVideo say that the classes are; `sgm` need not be installed.
REFERENCE_MODULE = "sgm.modules.autoencoding.losses.video_loss"


def build_discriminator(spec: Any, *, default: type[nn.Module], name: str) -> nn.Module:
    """Build the discriminator that `spec` describes.

    Args:
        spec: An `nn.Module` (returned as it is), a mapping of constructor arguments of `default`, or
            `{"target": "<dotted class>", "params": {...}}`. Mappings may come from YAML or OmegaConf.
        default: The class for a mapping without a target.
        name: The argument's name, for errors.

    Raises:
        TypeError: If `spec` is none of these.
        ValueError: If the class cannot be found or does not take the arguments; the nearest name is suggested.
    """
    if isinstance(spec, nn.Module):
        return spec
    if not isinstance(spec, Mapping):
        contract = 'an nn.Module, a dict of arguments, or {"target": ..., "params": ...}'
        raise TypeError(f"`{name}` must be {contract}, but got {spec!r} ({type(spec).__name__}).")
    if "target" not in spec:
        return _construct(default, spec, name)
    extra = set(spec) - {"target", "params"}
    if extra:
        raise ValueError(f"`{name}` must hold only `target` and `params`, but got {sorted(extra)} too.")
    params = spec.get("params") or {}
    if not isinstance(params, Mapping):
        raise argument_error(
            f"{name}.params", "a dict of arguments", describe(params), "Write `key: value` under `params`."
        )
    return _construct(resolve_class(spec["target"], name), params, f"{name}.params")


def resolve_class(target: str, name: str) -> type[nn.Module]:
    """Return the class at a dotted path; CogVideo's own paths mean telecine's classes.

    Raises:
        ValueError: If there is no such class, or it is not an `nn.Module`.
    """
    module_name, _, class_name = str(target).rpartition(".")
    if module_name.removeprefix("sat.") == REFERENCE_MODULE:
        if class_name not in CLASSES:
            raise ValueError(
                f"`{name}.target` {target!r} has no discriminator {class_name!r}. {suggestion(class_name, CLASSES)}"
            )
        return CLASSES[class_name]
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        hint = "Name a class by its full dotted path, such as 'telecine.Discriminator3D'."
        raise ValueError(f"`{name}.target` must be importable, but {target!r} is not: {error}. {hint}") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"`{name}.target` must be a subclass of nn.Module, but {target!r} is {found!r}.")
    return found


def _construct(cls: type[nn.Module], params: Mapping[Any, Any], name: str) -> nn.Module:
    accepted = inspect.signature(cls).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    for key in params:
        if key not in accepted and not takes_any:
            raise ValueError(f"`{name}` has no argument {key!r} for {cls.__name__}. {suggestion(str(key), accepted)}")
    try:
        inspect.signature(cls).bind(**params)
    except TypeError as error:
        raise ValueError(f"`{name}` does not fit {cls.__name__}: {error}.") from error
    return cls(**params)


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return a sentence that offers the nearest known word, or lists them all."""
    known = list(known)
    return nearest(word, known) or f"It takes: {', '.join(known)}."
