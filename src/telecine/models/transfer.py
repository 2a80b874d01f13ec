"""Weights of a `CausalVAE` for one of another compression or size: the layers that match are copied."""

from collections import Counter
from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from telecine.base.checks import argument_error
from telecine.models.causal import CausalVAE
from telecine.models.causal_blocks import CausalSequential, Downsample, ResidualBlock, Upsample
from telecine.models.load import class_in, folder_without_weights, load_autoencoder
from telecine.models.pretrained import mismatches

_OUTPUT = "output"


def check_source(name: str) -> None:
    """Raise a `ValueError` unless `TrainConfig.init` names a run or weights of a `CausalVAE`, which are not read."""
    kind = class_in(folder_without_weights(name)[1])
    if kind != CausalVAE.__name__:
        got, remedy = f"{name!r}, {f'a {kind}' if kind else 'which is none'}", "To train another model on, use `model`."
        raise argument_error("init", "a run or weights of a CausalVAE", got, remedy)


def copy_from(name: str, model: nn.Module) -> dict[str, tuple[int, int]]:
    """Call `_copy_matching` with the model of a name, see `check_source`; raise a `ValueError` for another `model`."""
    if not isinstance(model, CausalVAE):
        got = f"{name!r} with a {type(model).__name__}"
        raise argument_error("init", "left out for a model that is no CausalVAE", got, "Load its weights yourself.")
    check_source(name)
    return _copy_matching(cast(CausalVAE, load_autoencoder(name)), into=model)


@torch.no_grad()
def _copy_matching(source: CausalVAE, *, into: CausalVAE) -> dict[str, tuple[int, int]]:
    """Copy the weights of all layers that have the same place and the same shapes in another model, which is new.

    Its other layers stay as they are. So does the output layer of a network whose other layers are not all those of the
    source and additional residual blocks: a new one is 0, and the network adds nothing to the linear map at the start.

    Returns:
        The numbers of copied and of all parameters of each module, such as `{"encoder.network": (100, 300)}`.
    """
    old, new = dict(_layers(source)), dict(_layers(into))
    fits = {each for each in old.keys() & new if not mismatches(new[each].state_dict(), old[each].state_dict())}
    is_other = len({each.config.flow.prediction for each in (source, into) if each.sampler is not None}) > 1
    counts: dict[str, tuple[int, int]] = {}
    for place, layer in new.items():
        (module, name, _), is_copied = place, place in fits
        if name == _OUTPUT:
            part = module.removesuffix("network")
            others = {each for each in {**old, **new} if each[0].startswith(part) and each[1] != _OUTPUT} - fits
            is_copied &= all(each not in old and isinstance(new[each], ResidualBlock) for each in others)
        is_copied &= not (is_other and module == "decoder.network" and name == _OUTPUT)
        if is_copied:
            layer.load_state_dict(old[place].state_dict())
        copied, total = counts.get(module, (0, 0))
        size = sum(weight.numel() for weight in layer.parameters())
        counts[module] = copied + size * is_copied, total + size
    return counts


def _layers(model: CausalVAE) -> Iterator[tuple[tuple[str, str, int], nn.Module]]:
    """Yield the layers of the networks and the linear maps by their place, which does not depend on the model's depth.

    A place is the module; the kind of the layer with its number among those of the resolution, counted from the pixels;
    and the side of a position in pixels, of a network.
    """
    for name, module in model.named_modules():
        if name.count(".") != 1 or name.partition(".")[0] not in ("encoder", "decoder"):
            continue
        is_network = isinstance(module, (CausalSequential, nn.ModuleList))
        layers = [*module.children()] if is_network else [module]
        pixels, numbers = model.config.patch_size if is_network else 1, Counter[str]()
        output = layers[-1] if name.endswith(".network") else None
        for layer in reversed(layers) if name == "decoder.network" else layers:
            kind = type(layer).__name__
            yield (name, _OUTPUT if layer is output else f"{kind} {numbers[kind]}", pixels), layer
            numbers[kind] += 1
            if isinstance(layer, (Downsample, Upsample)):
                pixels, numbers = 2 * pixels, Counter()
