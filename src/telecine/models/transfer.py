"""Weights of a `CausalVAE` for one of another compression or size: the layers that match are copied."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from telecine.base.checks import argument_error
from telecine.models.causal import CausalVAE
from telecine.models.causal_blocks import CausalSequential, Downsample, ResidualBlock, Upsample
from telecine.models.load import class_in, folder_without_weights, load_autoencoder
from telecine.models.pretrained import mismatches

_OUTPUT = "output"


@dataclass(frozen=True)
class _LayerPosition:
    """Where a layer is, which does not depend on the model's depth."""

    module: str
    """The module that holds it, such as "encoder.network"."""
    name: str
    """The kind of the layer with its number among those of the resolution, counted from the pixels; or "output"."""
    pixels: int
    """The side of a position in pixels, of a network; else 1."""


def check_source(name: str) -> None:
    """Check that `TrainConfig.init` names a run or weights of a `CausalVAE`; the weights are not read.

    Raises:
        ValueError: It does not.
    """
    kind = class_in(folder_without_weights(name))
    if kind != CausalVAE.__name__:
        what = f"a {kind}" if kind else "which has no configuration of a model"
        remedy = "To train another model on, use `model`."
        raise argument_error("init", "a run or weights of a CausalVAE", f"{name!r}, {what}", remedy)


def load_source(name: str, into: nn.Module) -> CausalVAE:
    """Return the model that `TrainConfig.init` names, see `check_source`, for a model that `copy_matching` copies into.

    Raises:
        ValueError: The name or the model is not that of a `CausalVAE`.
    """
    if not isinstance(into, CausalVAE):
        got = f"{name!r} with a {type(into).__name__}"
        raise argument_error(
            "init", "left out for a model that is no CausalVAE", got, "Load its weights yourself."
        )
    check_source(name)
    return cast(CausalVAE, load_autoencoder(name))


@torch.no_grad()
def copy_matching(source: CausalVAE, *, into: CausalVAE) -> dict[str, tuple[int, int]]:
    """Copy the weights of all layers that have the same position and the same shapes in another model, which is new.

    The other layers keep their weights. The output layer of a network is copied only if all layers before it are copied
    or are residual blocks that the source does not have. A new output layer is 0: the network then adds nothing to the
    linear map at the start.

    Returns:
        The numbers of copied and of all parameters of each module, such as `{"encoder.network": (100, 300)}`.
    """
    old_layers = _layers(source)
    new_layers = _layers(into)
    matching: set[_LayerPosition] = set()
    for position, layer in new_layers.items():
        if position in old_layers and not mismatches(
            layer.state_dict(), old_layers[position].state_dict()
        ):
            matching.add(position)
    predicts_same = True
    if source.generates and into.generates:
        predicts_same = source.config.flow.prediction == into.config.flow.prediction
    counts: dict[str, tuple[int, int]] = {}
    for position, layer in new_layers.items():
        is_copied = position in matching
        if is_copied and position.name == _OUTPUT:
            is_copied = _feeds_output_alike(position, old_layers, new_layers, matching)
            if position.module == "decoder.network" and not predicts_same:
                is_copied = False
        if is_copied:
            layer.load_state_dict(old_layers[position].state_dict())
        copied, total = counts.get(position.module, (0, 0))
        size = sum(weight.numel() for weight in layer.parameters())
        if is_copied:
            copied += size
        counts[position.module] = (copied, total + size)
    return counts


def _feeds_output_alike(
    output: _LayerPosition,
    old: Mapping[_LayerPosition, nn.Module],
    new: Mapping[_LayerPosition, nn.Module],
    matching: set[_LayerPosition],
) -> bool:
    """Return whether each layer before an output is one of the source, or an additional residual block."""
    part = output.module.removesuffix("network")
    for position in old.keys() | new.keys():
        is_before = position.module.startswith(part) and position.name != _OUTPUT
        if not is_before or position in matching:
            continue
        if position in old or not isinstance(new[position], ResidualBlock):
            return False
    return True


def _layers(model: CausalVAE) -> dict[_LayerPosition, nn.Module]:
    """Return the layers of the networks and the linear maps by their position."""
    layers: dict[_LayerPosition, nn.Module] = {}
    for name, module in model.named_modules():
        is_part = name.count(".") == 1 and name.startswith(("encoder.", "decoder."))
        if is_part and isinstance(module, (CausalSequential, nn.ModuleList)):
            layers |= _layers_of_network(name, list(module), model.config.patch_size)
        elif is_part:
            layers[_LayerPosition(name, f"{type(module).__name__} 0", pixels=1)] = module
    return layers


def _layers_of_network(
    name: str, network: list[nn.Module], pixels: int
) -> dict[_LayerPosition, nn.Module]:
    """Return the layers of a network by their position.

    Args:
        name: The network's.
        network: Its layers, in the order of their calls.
        pixels: The side of a position at the highest resolution, in pixels.
    """
    output = network[-1] if name.endswith(".network") else None
    from_pixels = reversed(network) if name == "decoder.network" else network
    layers: dict[_LayerPosition, nn.Module] = {}
    numbers: Counter[str] = Counter()
    for layer in from_pixels:
        kind = type(layer).__name__
        place_name = _OUTPUT if layer is output else f"{kind} {numbers[kind]}"
        layers[_LayerPosition(name, place_name, pixels)] = layer
        numbers[kind] += 1
        if isinstance(layer, (Downsample, Upsample)):
            pixels *= 2
            numbers = Counter()
    return layers
