"""Context parallelism: the autoencoder computes each clip split over processes in height.

The boundary is around the networks: an encoder and a decoder get whole tensors, compute on this process' rows, and
return whole tensors. Between and after them everything is whole on each process of a group, as without the split: the
posterior and its noise, the latent, nested channels, a bottleneck, the reconstruction, and so the objective with
discriminators, LPIPS, the adaptive weight and penalties. Each process of a group computes the objective on whole
clips. The first one alone would need the same memory, and the others would wait for it. The memory that is divided is
that of the autoencoder's activations.

Height is split, not time: causal layers then pad time as always, clips may be images, and each process has the same
work. The rows of a frame are divided in rows of the latent, which need not divide evenly.

Layers are replaced from outside, each as declared here:

- Convolutions over rows pad with rows of the neighbours, whose gradients are sent back and added (`pad_rows`).
- Norms over channels, activations, linear maps of patches, folding and unfolding work on any rows as they are.
- Any other layer is refused by its name.

PyTorch's `DTensor` is not used: its convolution exchanges the last dimension only, with the same padding on both sides
and a stride of 1, and a model would have to be made of its tensors, which FSDP2 shards already.

A replaced layer asks for the group when it is called. In a process without one it computes whole clips. So does a
network that gets fewer rows than processes, such as a decoder for a latent that a term has scaled down.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from telecine.base.checks import argument_error
from telecine.models import causal_blocks, causal_networks, linear
from telecine.models.causal import CausalVAE
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.interface import VideoAutoencoder
from telecine.ops.ranks import ContextGroup, context_group, using_context_group
from telecine.ops.rows import gather_rows, pad_rows, rows_of_ranks, split_rows

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
# Layers whose output rows need no other rows than their own, apart from those that the layers inside them need.
_LAYERS_OF_ROWS = (
    nn.Linear,
    nn.ModuleList,
    nn.Sequential,
    nn.SiLU,
    causal_networks.Decoder,
    causal_networks.Encoder,
    causal_networks.FlowDecoder,
    causal_blocks.CausalConv,
    causal_blocks.CausalSequential,
    causal_blocks.ChannelNorm,
    causal_blocks.Downsample,
    causal_blocks.ResidualBlock,
    causal_blocks.Upsample,
    linear.PatchDecoder,
    linear.PatchEncoder,
)


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
    if not isinstance(model, CausalAutoencoder):
        contract = "1 for a model other than telecine's own and its students"
        got = f"{num_processes} for {type(getattr(model, 'module', model)).__name__}"
        remedy = "Use --temporal_chunk, --model_gradient_checkpointing or smaller clips."
        raise argument_error("context_parallel", contract, got, remedy)
    for height in heights:
        _check_rows(height, model.config.spatial_compression, num_processes)
    rows_per_unit = {}
    # A student's encoder is that of its teacher, which keeps no activations.
    if isinstance(model, CausalVAE):
        rows_per_unit["encoder"] = model.config.spatial_compression
    rows_per_unit["decoder"] = 1
    new = [name for name in rows_per_unit if not _is_split(getattr(model, name))]
    # All layers are checked before any is changed: a model that is refused stays as it is.
    for name in new:
        _check_layers(getattr(model, name), name)
    for name in new:
        _split_network(getattr(model, name), rows_per_unit[name])


def most_processes(model: VideoAutoencoder, height: int) -> int:
    """Return how many processes can share clips of a height; 1 for a model that cannot be split."""
    if not isinstance(model, CausalAutoencoder):
        return 1
    return height // model.config.spatial_compression


def _check_rows(height: int, rows_per_unit: int, num_processes: int) -> None:
    """Check that each process has a part of `height` rows, which are divided at multiples of `rows_per_unit`."""
    num_units = height // rows_per_unit
    if num_units < num_processes:
        contract = f"at most {num_units}, the rows of the latent"
        remedy = "Use fewer processes for each clip, or higher clips."
        raise argument_error("context_parallel", contract, num_processes, remedy)


def _is_split(network: Any) -> bool:
    return getattr(network, "is_split_over_processes", False)


def _check_layers(network: nn.Module, name: str) -> None:
    for layer_name, layer in _layers(network, name):
        kind = parametrize.type_before_parametrizations(layer)
        if issubclass(kind, _CONVOLUTIONS):
            _check_convolution(layer, layer_name)
        elif kind not in _LAYERS_OF_ROWS:
            contract = "1 for a model with a layer that cannot be split"
            remedy = "Use --temporal_chunk, --model_gradient_checkpointing or smaller clips."
            raise argument_error(
                "context_parallel", contract, f"{layer_name}, a {kind.__name__}", remedy
            )


def _check_convolution(layer: Any, name: str) -> None:
    kernel = layer.kernel_size[-2]
    padding = layer.padding[-2]
    keeps_height = layer.stride[-2] == layer.dilation[-2] == 1 and 2 * padding == kernel - 1
    if not keeps_height or layer.padding_mode != "zeros":
        contract = "1 for a model with a convolution that changes the height"
        raise argument_error("context_parallel", contract, f"{name}, {layer}", "Use another model.")


def _split_network(network: Any, rows_per_unit: int) -> None:
    for _, layer in _layers(network):
        if isinstance(layer, _CONVOLUTIONS):
            _split_convolution(layer)
    network.forward = partial(_call_on_rows, network.forward, rows_per_unit)
    network.is_split_over_processes = True


def _layers(network: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    for layer_name, layer in network.named_modules(prefix=name):
        if "parametrizations" in layer_name.split("."):  # they compute weights
            continue
        yield layer_name, layer


def _split_convolution(layer: Any) -> None:
    """Let a convolution that keeps the height pad its rows with those of the neighbours."""
    padding = layer.padding[-2]
    if padding == 0:
        return
    layer.padding = (*layer.padding[:-2], 0, layer.padding[-1])
    layer.forward = partial(_convolve_rows, layer.forward, padding)


def _convolve_rows(convolve: Callable[[Tensor], Tensor], padding: int, rows: Tensor) -> Tensor:
    return convolve(pad_rows(rows, padding, padding))


def _call_on_rows(
    forward: Callable[..., Any], rows_per_unit: int, video: Tensor, *others: Any
) -> Any:
    """Return the whole output of a network, which computes this process' rows of its inputs.

    Args:
        forward: The network's own one.
        rows_per_unit: Rows of the first input in a part that is not divided.
        video: The first input, `(B, C, T, H, W)`.
        *others: Further inputs. Videos among them are split, too.
    """
    group = context_group()
    num_units = video.shape[3] // rows_per_unit
    if num_units < group.size or group.size == 1:
        with using_context_group(ContextGroup()):
            return forward(video, *others)

    def split(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim != 5:
            return value
        return split_rows(value, rows_of_ranks(num_units, value.shape[3] // num_units, group.size))

    def gather(rows: Tensor) -> Tensor:
        num_own = rows_of_ranks(num_units, 1, group.size)[group.rank]
        return gather_rows(rows, rows_of_ranks(num_units, rows.shape[3] // num_own, group.size))

    output = forward(split(video), *[split(value) for value in others])
    if isinstance(output, Tensor):
        return gather(output)
    return tuple(gather(rows) for rows in output)
