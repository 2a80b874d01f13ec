"""How the layers of a network compute rows of frames: what each needs of the rows of other processes.

A replaced layer asks for the group when it is called. In a process without one it computes whole frames.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.ops.group_norm import group_norm_of_rows
from telecine.ops.pass_options import WHOLE_CLIPS, pass_options, using_pass_options
from telecine.ops.rows import gather_rows, pad_rows, split_rows
from telecine.ops.wrap_forward import wrap_forward


class RowNetwork(NamedTuple):
    """A network of a model that computes rows of clips."""

    module: nn.Module
    rows_per_latent_row: int
    """Rows of its first input for each row of the latent."""


@dataclass(frozen=True)
class RowSplit:
    """How a model computes rows of clips: its networks, and what is done with each layer in them."""

    spatial_compression: int
    """Rows of a clip for each row of its latent."""
    networks: Mapping[str, RowNetwork]
    """By name."""
    unchanged: frozenset[type]
    """Classes of layers that compute rows without a change: each output row depends on the same input row, and on what
    layers inside read. Subclasses of PyTorch's convolutions are listed here, too, and get `pad_convolution`."""
    replaced: Mapping[type, Callable[[Any], None]]
    """By class: from a layer, which is changed in place."""


def rows_around(convolution: Any, name: str) -> tuple[int, int]:
    """Return how many rows a convolution needs above and below those that it is called with.

    Args:
        convolution: A 2D or 3D convolution. With a stride, it needs as many rows below as make its output
            `rows / stride` rows high.
        name: Of the layer, for an error.

    Raises:
        ValueError: Its output has another number of rows than its input has, divided by the stride.
    """
    kernel = convolution.kernel_size[-2]
    stride = convolution.stride[-2]
    above = convolution.padding[-2]
    below = kernel - stride - above
    keeps_rows = convolution.dilation[-2] == 1 and (below == above or (stride > 1 and below >= 0))
    if not keeps_rows or convolution.padding_mode != "zeros":
        contract = "1 for a model with a convolution that changes the height"
        got = f"{name}, {convolution}"
        raise argument_error("context_parallel", contract, got, "Use another model.")
    return above, below


def pad_convolution(layer: Any, name: str) -> None:
    """Let a convolution pad its rows with the neighbours' rows.

    Args:
        layer: Changed in place.
        name: Of the layer, for an error.
    """
    above, below = rows_around(layer, name)
    if above == below == 0:
        return
    layer.padding = (*layer.padding[:-2], 0, layer.padding[-1])
    wrap_forward(layer, call_padded, above, below)


def call_padded(
    forward: Callable[..., Tensor], above: int, below: int, *inputs: Tensor | None
) -> Tensor:
    """Return the output of a layer for inputs that are padded with rows of the neighbours.

    Args:
        forward: The layer's own one, which pads no rows.
        above: Rows that are added above, see `pad_rows`.
        below: Rows that are added below.
        *inputs: This process' rows, and perhaps its rows of frames that the layer has kept, or None.
    """
    padded = []
    for rows in inputs:
        if rows is not None:
            rows = pad_rows(rows, above, below)
        padded.append(rows)
    return forward(*padded)


def compute_whole_frames(layer: Any) -> None:
    """Let each process compute a layer for all rows, such as attention, and keep its own."""
    wrap_forward(layer, _call_on_whole_frames)


def _call_on_whole_frames(forward: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    whole = gather_rows(rows)
    with using_pass_options(context_group=WHOLE_CLIPS):
        output = forward(whole)
    return split_rows(output)


def normalise_all_rows(layer: Any) -> None:
    """Let an `nn.GroupNorm` normalise by the statistics of all rows."""
    wrap_forward(layer, _group_norm, layer)


def _group_norm(forward: Callable[[Tensor], Tensor], layer: Any, rows: Tensor) -> Tensor:
    if pass_options().context_group.size == 1:
        return forward(rows)
    return group_norm_of_rows(rows, layer.num_groups, layer.weight, layer.bias, layer.eps)
