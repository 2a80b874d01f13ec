"""Context parallelism: the autoencoder computes each clip split over processes in height.

The boundary is around the networks: an encoder and a decoder get whole tensors, compute on this process' rows, and
return whole tensors. Between and after them everything is whole on each process of a group, as without the split: the
posterior and its noise, the latent, nested channels, a bottleneck, the reconstruction, and so the objective with
discriminators, LPIPS, the adaptive weight and penalties. Each process of a group computes the objective on whole
clips. The first one alone would need the same memory, and the others would wait for it. The memory of the
autoencoder's activations is divided.

Height is split, not time: causal layers then pad time as always, clips may be images, and each process has the same
work. The rows of a frame are divided in rows of the latent, which need not divide evenly.

A model declares its networks and their layers in its `row_split`, and the layers are replaced from outside:

- Convolutions over rows pad with rows of the neighbours, whose gradients are sent back and added (`pad_convolution`).
- Attention is computed for whole frames by each process (`compute_whole_frames`).
- Group norms have the statistics of all rows (`normalise_all_rows`).
- Norms over channels, activations, resampling by copies and means, linear maps of patches, folding and unfolding work
  on any rows as they are.
- A class of layers that is not declared is refused by its name.

PyTorch's `DTensor` is not used: its convolution exchanges the last dimension only, with the same padding on both sides
and a stride of 1, and a model would have to be made of its tensors, which FSDP2 shards already.

A network that gets fewer rows than processes, such as a decoder for a latent that a term has scaled down, computes
whole clips on each process.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from telecine.base.checks import argument_error
from telecine.models.interface import VideoAutoencoder
from telecine.models.row_split import RowNetwork, RowSplit, pad_convolution, rows_around
from telecine.ops.pass_options import WHOLE_CLIPS, pass_options, using_pass_options
from telecine.ops.rows import gather_rows, split_rows
from telecine.ops.wrap_forward import wrap_forward

_REMEDY = "Use --temporal_chunk, --model_gradient_checkpointing or smaller clips."


def split_over_processes(
    model: VideoAutoencoder, num_processes: int, heights: Iterable[int]
) -> None:
    """Let an autoencoder compute its encoder and its decoder on rows of clips; see the module's docstring.

    All processes of a group then have to call the model together.

    Args:
        model: Changed in place. Names and values of its weights stay. A network that is split already stays as it is,
            for groups of any size.
        num_processes: The size of a group. With 1 the model stays as it is.
        heights: Rows of the clips that it will get.

    Raises:
        ValueError: The model, one of its layers, or a height cannot be split.
    """
    if num_processes == 1:
        return
    split = model.row_split()
    if split is None:
        contract = "1 for this class of models"
        got = f"{num_processes} for {type(getattr(model, 'module', model)).__name__}"
        raise argument_error("context_parallel", contract, got, _REMEDY)
    for height in heights:
        _check_height(height, split, num_processes)
    networks = _whole_networks(split)
    # All layers are checked before any is changed: a model that is refused stays as it is.
    _check_layers(networks, split)
    for name, network in networks.items():
        for layer_name, layer in _layers(network.module, name):
            _replace_layer(layer, layer_name, split)
    for network in networks.values():
        _replace_network(network)


def most_processes(model: VideoAutoencoder, height: int) -> int:
    """Return how many processes can share clips of a height; 1 for a model that cannot be split."""
    try:
        split = model.row_split()
        if split is None:
            return 1
        _check_layers(_whole_networks(split), split)
    except ValueError:
        return 1
    return height // split.spatial_compression


def _check_height(height: int, split: RowSplit, num_processes: int) -> None:
    latent_rows = height // split.spatial_compression
    if latent_rows < num_processes:
        contract = f"at most {latent_rows}, the rows of the latent"
        remedy = "Use fewer processes for each clip, or higher clips."
        raise argument_error("context_parallel", contract, num_processes, remedy)


def _whole_networks(split: RowSplit) -> dict[str, RowNetwork]:
    """Return the networks that are not split already, by name."""
    return {
        name: network
        for name, network in split.networks.items()
        if not getattr(network.module, "is_split_over_processes", False)
    }


def _check_layers(networks: Mapping[str, RowNetwork], split: RowSplit) -> None:
    for name, network in networks.items():
        for layer_name, layer in _layers(network.module, name):
            _check_layer(layer, layer_name, split)


def _layers(network: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    for layer_name, layer in network.named_modules(prefix=name):
        if "parametrizations" in layer_name.split("."):  # they compute weights
            continue
        yield layer_name, layer


def _is_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d | nn.Conv3d)


def _check_layer(layer: nn.Module, name: str, split: RowSplit) -> None:
    cls = parametrize.type_before_parametrizations(layer)
    if cls in split.replaced:
        return
    # A subclass of a convolution may read other rows.
    if cls not in split.unchanged and cls not in (nn.Conv2d, nn.Conv3d):
        contract = "1 for a model with a layer that cannot be split"
        raise argument_error("context_parallel", contract, f"{name}, a {cls.__name__}", _REMEDY)
    if _is_convolution(layer):
        rows_around(layer, name)


def _replace_layer(layer: nn.Module, name: str, split: RowSplit) -> None:
    cls = parametrize.type_before_parametrizations(layer)
    if cls in split.replaced:
        split.replaced[cls](layer)
    elif _is_convolution(layer):
        pad_convolution(layer, name)


def _replace_network(network: RowNetwork) -> None:
    module: Any = network.module
    wrap_forward(module, _call_on_rows, network.rows_per_latent_row)
    module.is_split_over_processes = True


def _call_on_rows(
    forward: Callable[..., Any],
    rows_per_latent_row: int,
    video: Tensor,
    *others: Any,
    **keywords: Any,
) -> Any:
    """Return the whole output of a network, which computes this process' rows of its inputs.

    Args:
        forward: The network's own one.
        rows_per_latent_row: Of the first input.
        video: The first input, `(B, C, T, H, W)`.
        *others: Further inputs. Videos among them are split, too.
        **keywords: Inputs that are not split, such as the frames that layers keep between chunks.
    """
    group = pass_options().context_group
    latent_rows = video.shape[3] // rows_per_latent_row
    if latent_rows < group.size:
        group = WHOLE_CLIPS
    with using_pass_options(context_group=group._replace(latent_rows=latent_rows)):
        rows = [_of_videos(split_rows, value) for value in (video, *others)]
        output = forward(*rows, **keywords)
        if isinstance(output, tuple):
            return tuple(_of_videos(gather_rows, value) for value in output)
        return gather_rows(output)


def _of_videos(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return `change(value)` for a video `(B, C, T, H, W)`, and anything else as it is."""
    if isinstance(value, Tensor) and value.ndim == 5:
        return change(value)
    return value
