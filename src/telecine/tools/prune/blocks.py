"""Residual blocks of a model that are removed whole, where its configuration states their number."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.terminal import with_progress
from telecine.models.removed_blocks import RemovedBlocks
from telecine.tools.prune.widths import Configuration, Widths


@dataclass(frozen=True)
class RemovableBlocks:
    """Neighbouring layers of a network of the same shapes, of which any can be removed."""

    container: str
    """The list of layers that has them, by its name in the network."""
    indices: tuple[int, ...]
    """Their places in the list."""
    num_kept: int


def with_fewer_blocks(config: Configuration, widths: Widths, num_blocks: int) -> dict[str, Any]:
    """Return a configuration with at most this many blocks in each stage.

    Raises:
        ValueError: It cannot state them, or has no more.
    """
    setting = widths.blocks_setting
    if setting is None:
        contract = (
            "left out for this class, whose configuration has no number of blocks of what is pruned"
        )
        raise argument_error("blocks", contract, num_blocks, "Remove channels: use `--keep`.")
    value = config[setting]
    numbers = [value] if isinstance(value, int) else list(value)
    if num_blocks >= max(numbers):
        contract = f"below {max(numbers)}, the largest number of blocks of a stage"
        raise argument_error("blocks", contract, num_blocks, "Leave it out to keep all blocks.")
    fewer = [min(number, num_blocks) for number in numbers]
    return {**config, setting: fewer[0] if isinstance(value, int) else fewer}


def find_removable_blocks(network: nn.Module, smaller: nn.Module) -> list[RemovableBlocks]:
    """Return the layers of a network of which some are missing in a smaller one with fewer blocks.

    Layers correspond by their shapes, in order. A layer that changes the number of channels, such as the first block of
    a stage, has other shapes than its neighbours, and stays; all of its neighbours may be missing.

    Args:
        network: The network.
        smaller: The network of the smaller configuration, whose weights are not read.

    Raises:
        ValueError: The layers of the two networks do not correspond.
    """
    removable = []
    others = dict(smaller.named_modules())
    for name, container in network.named_modules():
        if not isinstance(container, (nn.ModuleList, nn.Sequential)):
            continue
        other = others.get(name)
        if not isinstance(other, (nn.ModuleList, nn.Sequential)) or len(other) == len(container):
            continue
        remaining = _kinds(other)
        for kind, indices in _neighbours_of_kinds(container):
            num_kept = 0
            while num_kept < len(indices) and remaining[num_kept : num_kept + 1] == [kind]:
                num_kept += 1
            remaining = remaining[num_kept:]
            if num_kept < len(indices):
                removable.append(RemovableBlocks(name, indices, num_kept))
        if remaining:
            contract = "a model whose stages have blocks of the same shapes"
            got = f"one with others in {name}"
            raise argument_error("model", contract, got, "Leave out `--blocks`.")
    return removable


def _kinds(container: nn.Module) -> list[object]:
    """Return the class and the shapes of each layer."""
    kinds: list[object] = []
    for layer in container.children():
        shapes = tuple((name, tuple(x.shape)) for name, x in layer.state_dict().items())
        kinds.append((type(layer).__name__, shapes))
    return kinds


def _neighbours_of_kinds(container: nn.Module) -> list[tuple[object, tuple[int, ...]]]:
    """Return the neighbouring layers of each kind, with their places in the list."""
    kinds = _kinds(container)
    places = range(len(kinds))
    return [(kind, tuple(members)) for kind, members in groupby(places, key=kinds.__getitem__)]


def choose_removed_blocks(
    network: nn.Module, removable: list[RemovableBlocks], loss: Callable[[], float]
) -> RemovedBlocks:
    """Return the blocks whose removal raises a loss least.

    They are chosen one after the other: the loss is measured without each of the others that can be removed.

    Args:
        network: The network.
        removable: Where blocks can be removed, and how many stay.
        loss: Measures the loss with the network as it is.
    """
    removed: dict[str, list[int]] = {blocks.container: [] for blocks in removable}
    for blocks in with_progress(removable, "measuring without each block"):
        container = network.get_submodule(blocks.container)
        assert isinstance(container, (nn.ModuleList, nn.Sequential))
        remaining = list(blocks.indices)
        handles = []
        while len(remaining) > blocks.num_kept:
            losses = []
            for index in remaining:
                handle = container[index].register_forward_hook(_return_input)
                losses.append(loss())
                handle.remove()
            index = remaining.pop(losses.index(min(losses)))
            handles.append(container[index].register_forward_hook(_return_input))
            removed[blocks.container].append(index)
        for handle in handles:
            handle.remove()
    return RemovedBlocks({name: sorted(indices) for name, indices in removed.items()})


def _return_input(layer: nn.Module, inputs: tuple[Any, ...], output: object) -> object:
    if isinstance(output, tuple):  # with what it keeps for the next chunk
        return (inputs[0], *output[1:])
    return inputs[0]


def without_blocks(weights: Mapping[str, Tensor], removed: RemovedBlocks) -> dict[str, Tensor]:
    """Return a state dict without the weights of removed blocks, named as in the pruned model."""
    kept = {}
    for name, tensor in weights.items():
        pruned_name = removed.to_pruned(name)
        if pruned_name is not None:
            kept[pruned_name] = tensor
    return kept
