"""How the networks of some classes of diffusers compute rows of clips, for processes that share each clip.

Every class of layers of diffusers and PyTorch is declared by name, as in `families`. A class of the same name from
elsewhere is not declared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from telecine.base.checks import argument_error
from telecine.models.diffusers.outputs import DiffusersModel
from telecine.models.row_split import (
    RowNetwork,
    RowSplit,
    call_padded,
    compute_whole_frames,
    normalise_all_rows,
)
from telecine.ops.wrap_forward import wrap_forward

_CONTAINERS_AND_ACTIVATIONS = frozenset(
    {"Dropout", "GELU", "Identity", "Linear", "Mish", "ModuleList", "ReLU", "Sequential", "SiLU"}
)
# How an `nn.Upsample` copies values. In other modes it mixes values of neighbouring rows.
_MODES_OF_COPIES = ("nearest", "nearest-exact")


@dataclass(frozen=True)
class RowLayers:
    """The layers of a class of models, by name, see `RowSplit`."""

    unchanged: frozenset[str]
    replaced: Mapping[str, Callable[[Any], None]] = field(default_factory=dict)
    is_patched_outside: bool = False
    """Whether the encoder is called with patches of `config.patch_size`."""


def _pad_wan_convolution(layer: Any) -> None:
    """Let a `WanCausalConv3d`, which pads in its own `forward`, pad rows with the neighbours' rows."""
    left, right, top, bottom, before, after = layer._padding
    if top == bottom == 0:
        return
    layer._padding = (left, right, 0, 0, before, after)
    wrap_forward(layer, call_padded, top, bottom)


def _pad_columns_alone(layer: Any) -> None:
    """Let a `ZeroPad2d` leave rows to the convolution with a stride after it, which pads them itself."""
    left, right, _, _ = layer.padding
    layer.padding = (left, right, 0, 0)


def _remove_padded_row(layer: Any) -> None:
    """Let a `CogVideoXDownsample3D`, whose `forward` adds a row of zeros, leave rows to its convolution."""
    layer.conv.register_forward_pre_hook(_without_last_row)


def _without_last_row(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    (frames,) = inputs
    return (frames[..., :-1, :],)


WAN = RowLayers(
    unchanged=_CONTAINERS_AND_ACTIVATIONS
    | {
        "AvgDown3D",
        "DupUp3D",
        "WanDecoder3d",
        "WanEncoder3d",
        "WanMidBlock",
        "WanRMS_norm",
        "WanResample",
        "WanResidualBlock",
        "WanResidualDownBlock",
        "WanResidualUpBlock",
        "WanUpBlock",
        "WanUpsample",
    },
    replaced={
        "WanAttentionBlock": compute_whole_frames,
        "WanCausalConv3d": _pad_wan_convolution,
        "ZeroPad2d": _pad_columns_alone,
    },
    is_patched_outside=True,
)
LTX = RowLayers(
    unchanged=_CONTAINERS_AND_ACTIVATIONS
    | {
        "LTXVideo095DownBlock3D",
        "LTXVideoCausalConv3d",
        "LTXVideoDecoder3d",
        "LTXVideoDownBlock3D",
        "LTXVideoDownsampler3d",
        "LTXVideoEncoder3d",
        "LTXVideoMidBlock3d",
        "LTXVideoResnetBlock3d",
        "LTXVideoUpBlock3d",
        "LTXVideoUpsampler3d",
        "LayerNorm",
        "PixArtAlphaCombinedTimestepSizeEmbeddings",
        "RMSNorm",
        "TimestepEmbedding",
        "Timesteps",
    }
)
COGVIDEOX = RowLayers(
    unchanged=_CONTAINERS_AND_ACTIVATIONS
    | {
        "CogVideoXCausalConv3d",
        "CogVideoXDecoder3D",
        "CogVideoXDownBlock3D",
        "CogVideoXEncoder3D",
        "CogVideoXMidBlock3D",
        "CogVideoXResnetBlock3D",
        "CogVideoXSafeConv3d",
        "CogVideoXSpatialNorm3D",
        "CogVideoXUpBlock3D",
        "CogVideoXUpsample3D",
    },
    replaced={
        "CogVideoXDownsample3D": _remove_padded_row,
        "GroupNorm": normalise_all_rows,
    },
)


def row_split_of(module: DiffusersModel, layers: RowLayers, spatial_compression: int) -> RowSplit:
    """Return how several processes share a clip.

    Args:
        module: The model.
        layers: Those of its class.
        spatial_compression: Rows of a clip for each row of its latent.

    Raises:
        ValueError: An option of the model depends on whole frames.
    """
    _check_options(module)
    rows_per_latent_row = spatial_compression
    if layers.is_patched_outside:
        rows_per_latent_row //= module.config.patch_size or 1
    classes = _library_classes(module)
    return RowSplit(
        spatial_compression=spatial_compression,
        networks={
            "encoder": RowNetwork(module.encoder, rows_per_latent_row),
            "decoder": RowNetwork(module.decoder, 1),
        },
        unchanged=frozenset(cls for cls in classes if cls.__name__ in layers.unchanged),
        replaced={
            cls: layers.replaced[cls.__name__] for cls in classes if cls.__name__ in layers.replaced
        },
    )


def _library_classes(module: DiffusersModel) -> set[type]:
    """Return the classes of a model's layers that are of diffusers or PyTorch."""
    classes = {parametrize.type_before_parametrizations(layer) for layer in module.modules()}
    return {cls for cls in classes if cls.__module__.startswith(("diffusers.", "torch.nn."))}


def _check_options(module: DiffusersModel) -> None:
    """Raise a `ValueError` if rows of a clip would not get the values that they have in whole frames."""
    name = type(module).__name__
    if module.use_tiling:
        remedy = "Call its `disable_tiling()`."
        raise argument_error("context_parallel", "1 for a model with tiling", name, remedy)
    if any(getattr(module.config, "decoder_inject_noise", ())):
        contract = "1 for a model with `decoder_inject_noise`, which is drawn for whole frames"
        remedy = "Use --temporal_chunk, --model_gradient_checkpointing or smaller clips."
        raise argument_error("context_parallel", contract, name, remedy)
    for layer_name, layer in module.named_modules():
        if isinstance(layer, nn.Dropout) and layer.p > 0:
            remedy = "Set `dropout` to 0 in its configuration."
            raise argument_error("context_parallel", "1 for a model with dropout", name, remedy)
        if isinstance(layer, nn.Upsample) and layer.mode not in _MODES_OF_COPIES:
            contract = "1 for a model with an upsampling that reads neighbouring rows"
            got = f"{layer_name}, a {type(layer).__name__} with `mode` {layer.mode!r}"
            remedy = f"Set its `mode` to one of {', '.join(_MODES_OF_COPIES)}."
            raise argument_error("context_parallel", contract, got, remedy)
