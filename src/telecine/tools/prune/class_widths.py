"""Where the configuration of each class states its channels, and which classes are not pruned."""

from telecine.base.checks import argument_error
from telecine.models.diffusers.family import class_names
from telecine.settings.autoencoder import ConvolutionKind
from telecine.tools.prune.widths import Configuration, Grouping, InnerChannels, Widths

_SETS = {"time_conv": 2, "to_qkv": 3}
_BLOCKS = "block_out_channels"
_DECODER_BLOCKS = "decoder_block_out_channels"
_SHARED = Widths(
    _BLOCKS,
    part="both",
    norm_groups_setting="norm_num_groups",
    blocks_setting="layers_per_block",
)


def _tied_if_residual(config: Configuration) -> Grouping:
    return "all" if config["is_residual"] else "size"


CAUSAL_VAE_WIDTHS = Widths(
    "base_channels",
    multipliers="channel_multipliers",
    grouping="all",
    channel_sets={"modulation": 2},
    blocks_setting="blocks_per_level",
)
"""Of the encoder and the decoder of `CausalVAE`, and of the decoder of a student; without `inner`, see below."""


def inner_channels_of_block(block: str, kind: ConvolutionKind) -> list[InnerChannels]:
    """Return the inner channels of a residual block of `CausalVAE`.

    Args:
        block: Its name in the network.
        kind: That of its convolutions, see `residual_convolution`.
    """
    first = f"{block}.branch.2"
    norm = f"{block}.branch.3"
    second = f"{block}.branch.5"
    if kind == "depthwise":
        # The first layer of each pair has a kernel for each channel of its input, and outputs the same channels.
        return [InnerChannels(block, (f"{first}.1", norm, f"{second}.0"), (f"{second}.1",))]
    if kind == "2+1d":
        # The second convolution has no earlier frames, and stays a single layer.
        between = InnerChannels(block, (f"{first}.1", norm), (second,))
        return [between, InnerChannels(first, (f"{first}.0",), (f"{first}.1",))]
    return [InnerChannels(block, (first, norm), (second,))]


WIDTHS = {
    "AsymmetricAutoencoderKL": Widths(
        "up_block_out_channels",
        prefix="decoder.",
        norm_groups_setting="norm_num_groups",
        grouping="all",  # its encoder of masks has channels of the first stage, doubled up to those of the last one
        blocks_setting="layers_per_up_block",
    ),
    "AutoencoderKL": _SHARED,
    "AutoencoderKLAllegro": Widths(
        _BLOCKS,
        part="both",
        norm_groups_setting="norm_num_groups",
        channel_sets={"temp_conv_up.conv1.2": 2},
        inner=(),
        blocks_setting="layers_per_block",
    ),
    "AutoencoderKLCogVideoX": _SHARED,
    "AutoencoderKLCosmos": Widths("decode_block_out_channels", prefix="decoder."),
    "AutoencoderKLFlux2": Widths(
        _DECODER_BLOCKS,
        fallback="block_out_channels",
        prefix="decoder.",
        norm_groups_setting="norm_num_groups",
    ),
    "AutoencoderKLHunyuanVideo": _SHARED,
    "AutoencoderKLKVAE": Widths(
        "channels",
        multipliers="ch_mult",
        part="both",
        grouping="size",
        norm_groups=32,
        inner=(),
    ),
    "AutoencoderKLKVAEVideo": Widths(
        "ch",
        multipliers="ch_mult",
        part="both",
        grouping="size",
        norm_groups=32,
        inner=(),
        blocks_setting="num_res_blocks",
    ),
    "AutoencoderKLLTXVideo": Widths(
        _DECODER_BLOCKS,
        prefix="decoder.",
        grouping="all",
        mixing_shortcuts="upsample_residual",
        channel_sets={
            "decoder.time_embedder.timestep_embedder.linear_2": 2,
            "timestep_embedder.linear_2": 4,
        },
        inner=(),
        blocks_setting="decoder_layers_per_block",
    ),
    "AutoencoderKLMagvit": _SHARED,
    "AutoencoderKLMochi": Widths(_DECODER_BLOCKS, prefix="decoder.", norm_groups=32),
    "AutoencoderKLQwenImage": Widths(
        "base_dim",
        multipliers="dim_mult",
        part="both",
        grouping="size",
        channel_sets=_SETS,
        blocks_setting="num_res_blocks",
    ),
    "AutoencoderKLQwenImage21": Widths(
        "decoder_base_dim",
        multipliers="dim_mult",
        prefix="decoder.",
        grouping=_tied_if_residual,
        channel_sets=_SETS,
    ),
    "AutoencoderKLTemporalDecoder": Widths(
        _BLOCKS,
        part="both",
        norm_groups=32,
        inner=(),
        blocks_setting="layers_per_block",
    ),
    "AutoencoderKLWan": Widths(
        "decoder_base_dim",
        multipliers="dim_mult",
        fallback="base_dim",
        prefix="decoder.",
        grouping=_tied_if_residual,
        channel_sets=_SETS,
    ),
    "AutoencoderTiny": Widths(
        _DECODER_BLOCKS,
        prefix="decoder.",
        blocks_setting="num_decoder_blocks",
    ),
    "AutoencoderVidTok": Widths(
        "ch",
        multipliers="ch_mult",
        part="both",
        grouping="size",
        inner=(),
        blocks_setting="num_res_blocks",
    ),
    "Kandinsky6SRVAE": Widths(_DECODER_BLOCKS, prefix="decoder."),
    "VQModel": _SHARED,
}
"""The classes of diffusers that are pruned."""
_MIXES = "whose shortcuts between stages mix channels"
NOT_PRUNED = {
    "AutoencoderDC": "whose attention has heads that several weights share",
    "AutoencoderKLHunyuanImage": _MIXES,
    "AutoencoderKLHunyuanImageRefiner": _MIXES,
    "AutoencoderKLHunyuanVideo15": _MIXES,
    "AutoencoderKLLTX2Video": _MIXES,
    "AutoencoderKLMiniMaxH3": "whose decoder is a transformer",
    "AutoencoderRAE": "whose decoder is a transformer",
}
"""Classes that are not pruned, with the reason."""


def widths_of(cls: type, config: Configuration) -> Widths:
    """Return where the configuration of a model of diffusers states its channels.

    Raises:
        ValueError: Its channels cannot be removed, or telecine does not know where they are stated.
    """
    names = class_names(cls)
    widths = next((WIDTHS[name] for name in names if name in WIDTHS), None)
    contract = f"a CausalVAE, a student, or one of {', '.join(WIDTHS)}"
    remedy = "`telecine distill` trains a small decoder for the latents of any model."
    if widths is None:
        got = names[0]
        if got in NOT_PRUNED:
            got += f", {NOT_PRUNED[got]}"
        raise argument_error("model", contract, got, remedy)
    if widths.mixing_shortcuts is not None and any(config[widths.mixing_shortcuts]):
        raise argument_error("model", contract, f"{names[0]}, {_MIXES}", remedy)
    return widths
