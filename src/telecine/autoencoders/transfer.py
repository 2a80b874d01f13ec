"""Weights of a `CausalVAE` for one of another compression or size: the layers that match are copied."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import nn

from telecine.autoencoders.causal import CausalVAE
from telecine.autoencoders.causal_blocks import CausalSequential, Downsample, ResidualBlock, Upsample
from telecine.autoencoders.load import class_in, folder_without_weights, load_model_or_run
from telecine.base.checks import argument_error

_OUTPUT = "output"


class _Place(NamedTuple):
    """The place of a layer, which does not depend on the depth of the model."""

    module: str  # such as "encoder.network"
    name: str  # the kind of the layer, and its number among those of the resolution, counted from the pixels
    pixels: int  # the side of a position


def check_source(name: str) -> None:
    """Raise a `ValueError` unless `TrainConfig.init` names a run or weights of a `CausalVAE`, which are not read."""
    kind = class_in(folder_without_weights(name)[1])
    if kind != CausalVAE.__name__:
        got, remedy = f"{name!r}, {f'a {kind}' if kind else 'which is none'}", "To train another model on, use `model`."
        raise argument_error("init", "a run or weights of a CausalVAE", got, remedy)


def copy_from(name: str, model: nn.Module) -> dict[str, tuple[int, int]]:
    """Call `copy_matching` with the model of a name, see `check_source`; raise a `ValueError` for another `model`."""
    if not isinstance(model, CausalVAE):
        got = f"{name!r} with a {type(model).__name__}"
        raise argument_error("init", "left out for a model that is no CausalVAE", got, "Load its weights yourself.")
    check_source(name)
    return copy_matching(cast(CausalVAE, load_model_or_run(name)), into=model)


@torch.no_grad()
def copy_matching(source: CausalVAE, *, into: CausalVAE) -> dict[str, tuple[int, int]]:
    """Copy the weights of all layers that have the same place and the same shapes in another model, which is new.

    Its other layers stay as they are. So does the output layer of a network whose other layers are not all those of the
    source and additional residual blocks: a new one is 0, and the network adds nothing to the linear map at the start.

    Returns:
        The numbers of copied and of all parameters of each module, such as `{"encoder.network": (100, 300)}`.
    """
    old, new = dict(_layers(source)), dict(_layers(into))
    fits = {place for place, layer in new.items() if place in old and _shapes(old[place]) == _shapes(layer)}
    for part in ("encoder.", "decoder."):
        inner = {place for place in {**old, **new} if place.module.startswith(part) and place.name != _OUTPUT}
        lost = {each for each in inner - fits if each in old or not isinstance(new[each], ResidualBlock)}
        fits -= {each for each in fits if lost and each.module.startswith(part) and each.name == _OUTPUT}
    counts: dict[str, tuple[int, int]] = {}
    for place, layer in new.items():
        copied, total = counts.get(place.module, (0, 0))
        size = sum(weight.numel() for weight in layer.parameters())
        counts[place.module] = copied + size * (place in fits), total + size
        if place in fits:
            layer.load_state_dict(old[place].state_dict())
    return counts


def _shapes(layer: nn.Module) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in layer.named_parameters()}


def _layers(model: CausalVAE) -> Iterator[tuple[_Place, nn.Module]]:
    """Yield the layers of the networks and the linear maps, those of a module from the pixels to the latent."""
    for part in ("encoder", "decoder"):
        for name, child in model.get_submodule(part).named_children():
            module = f"{part}.{name}"
            if not isinstance(child, (CausalSequential, nn.ModuleList)):
                yield _Place(module, type(child).__name__, 0), child
                continue
            layers, pixels, numbers = list(child), model.config.patch_size, Counter[str]()
            output = layers[-1] if name == "network" else None
            for layer in reversed(layers) if module == "decoder.network" else layers:
                kind = type(layer).__name__
                yield _Place(module, _OUTPUT if layer is output else f"{kind} {numbers[kind]}", pixels), layer
                numbers[kind] += 1
                if isinstance(layer, (Downsample, Upsample)):
                    pixels, numbers = 2 * pixels, Counter()
