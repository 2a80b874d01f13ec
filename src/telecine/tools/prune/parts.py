"""The part of an autoencoder that is pruned, and how it is built again in another size."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.models import CausalVAE, VideoAutoencoder, load_autoencoder
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.causal_blocks import ResidualBlock
from telecine.models.causal_networks import FlowDecoder, build_decoder
from telecine.models.student import StudentAutoencoder
from telecine.settings import CausalVAEConfig
from telecine.tools.prune.class_widths import (
    CAUSAL_VAE_WIDTHS,
    inner_channels_of_block,
    widths_of,
)
from telecine.tools.prune.widths import Configuration, InnerChannels, Widths


@dataclass(frozen=True)
class Prunable:
    """The part of an autoencoder that is pruned."""

    network: nn.Module
    """The module whose weights are cut."""
    config: Configuration
    widths: Widths
    """Where `config` states the channels of `network`."""
    build: Callable[[Configuration], nn.Module]
    """From a configuration to such a network with random weights."""
    wrap: Callable[[Configuration, dict[str, Tensor]], VideoAutoencoder]
    """From a configuration and the weights of a network to an autoencoder."""
    decode: Callable[[nn.Module, Tensor], object]
    """From such a network and a latent `(1, C, t, h, w)` to its video, for its operations."""


def prunable(model: VideoAutoencoder, name: str, part: str) -> Prunable:
    """Return the part of an autoencoder that is pruned.

    Args:
        model: The autoencoder.
        name: Its name, which a student of it keeps.
        part: "decoder" or "both".

    Raises:
        ValueError: Its configuration cannot state other channels of this part.
    """
    if isinstance(model, CausalAutoencoder):
        return _prunable_of_ours(model, name, part)
    module: Any = getattr(model, "module", None)
    if not hasattr(module, "config"):
        contract = "a CausalVAE, a student, or a model of diffusers"
        remedy = "`telecine distill` trains a small decoder for its latents."
        raise argument_error("model", contract, type(model).__name__, remedy)
    cls = cast(Any, type(module))
    config = {key: value for key, value in module.config.items() if not key.startswith("_")}
    widths = widths_of(cls, config)
    if widths.part != part:
        contract = f"{widths.part} for {cls.__name__}"
        if widths.part == "both":
            contract += ", whose configuration has the same channels for encoder and decoder"
        remedy = f"Use `--part {widths.part}`, or train a decoder with `telecine distill`."
        raise argument_error("part", contract, part, remedy)
    from telecine.models.diffusers import DiffusersAutoencoder
    from telecine.models.diffusers.families import family_of, prepare_for_training
    from telecine.models.diffusers.loading import build_module

    class_name = {"_class_name": cls.__name__}
    family = family_of(module)

    def build(config: Configuration) -> nn.Module:
        return cast(nn.Module, build_module({**config, **class_name}))

    def wrap(config: Configuration, weights: dict[str, Tensor]) -> VideoAutoencoder:
        pruned = build(config)
        pruned.load_state_dict(weights)
        return DiffusersAutoencoder(pruned)

    def decode(network: nn.Module, latent: Tensor) -> object:
        # As the model is called: HunyuanVideo's own setting decodes chunks that overlap.
        prepare_for_training(network, family)
        return family.decode(network, latent)

    return Prunable(module, config, widths, build, wrap, decode)


def _prunable_of_ours(model: CausalAutoencoder, name: str, part: str) -> Prunable:
    config = {field.name: getattr(model.config, field.name) for field in fields(model.config)}
    if part == "decoder":

        def wrap_decoder(config: Configuration, weights: dict[str, Tensor]) -> VideoAutoencoder:
            architecture = CausalVAEConfig(**config)
            student = StudentAutoencoder.of(model, name, load_autoencoder, architecture)
            student.decoder.load_state_dict(weights)
            return student

        return Prunable(
            model.decoder,
            config,
            _widths_of_ours(model.decoder),
            lambda values: build_decoder(CausalVAEConfig(**values)),
            wrap_decoder,
            _decode_once,
        )
    if not isinstance(model, CausalVAE):
        raise argument_error(
            "part", "decoder for a student", part, "Its encoder is that of its teacher."
        )

    def wrap(config: Configuration, weights: dict[str, Tensor]) -> VideoAutoencoder:
        pruned = CausalVAE(CausalVAEConfig(**config))
        pruned.load_state_dict(weights)
        return pruned

    return Prunable(
        model,
        config,
        _widths_of_ours(model),
        lambda values: CausalVAE(CausalVAEConfig(**values)),
        wrap,
        lambda network, latent: _decode_once(cast(CausalVAE, network).decoder, latent),
    )


def _widths_of_ours(network: nn.Module) -> Widths:
    """Return where the configuration states the channels of a network of `CausalVAE`, and its inner channels."""
    inner: list[InnerChannels] = []
    for name, block in network.named_modules():
        if isinstance(block, ResidualBlock):
            inner += inner_channels_of_block(name, block.convolution)
    return replace(CAUSAL_VAE_WIDTHS, inner=tuple(inner))


def _decode_once(decoder: nn.Module, latent: Tensor) -> object:
    """Call a decoder of `CausalVAE` once; the noise of one that generates has the size of its video."""
    if not isinstance(decoder, FlowDecoder):
        return decoder(latent)
    linear = decoder.linear(latent)
    return decoder(latent, torch.zeros_like(linear), latent.new_ones(len(latent)))
