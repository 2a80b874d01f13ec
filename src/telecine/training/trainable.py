"""The trained weights of an autoencoder: all, the decoder's, weights of certain names, or LoRA adapters."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

import torch
from torch import nn

from telecine.base.checks import argument_error, nearest
from telecine.models import VideoAutoencoder
from telecine.models.lora import LAYERS, add_low_rank
from telecine.models.pretrained import DECODER
from telecine.models.unwrapping import unwrapped
from telecine.settings import TrainableConfig


def select_trainable(autoencoder: VideoAutoencoder, config: TrainableConfig) -> None:
    """Set `requires_grad` of the chosen weights, and freeze all others.

    Call it before creating wrappers, moving averages and optimizers. Names are as in the wrapped model, without
    `module.` in front. LoRA adapters are part of the autoencoder's `state_dict`, so load weights after it.

    Raises:
        ValueError: If no weight is chosen, a pattern matches none, or a chosen weight has half precision.
    """
    model = unwrapped(autoencoder)
    if config.weights == "lora":
        _select_low_rank(model, autoencoder.last_layer, config)
    else:
        _select_weights(model, config)
    autoencoder.keep_in_eval_mode(_frozen_with_statistics(model))
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.dtype.itemsize < torch.float32.itemsize:
            remedy = (
                "Call `.float()` on the model; `mixed_precision` lets it compute in half precision."
            )
            raise argument_error(
                "the trained weights", "float32", f"{name} in {weight.dtype}", remedy
            )


def trains_encoder(autoencoder: VideoAutoencoder) -> bool:
    """Return whether a trained weight may change the latent: one that is not in the decoder."""
    model = unwrapped(autoencoder)
    return any(
        weight.requires_grad and name.split(".")[0] not in DECODER
        for name, weight in model.named_parameters()
    )


def _select_weights(model: nn.Module, config: TrainableConfig) -> None:
    # Patterns also train weights that a custom module has frozen; without patterns those stay frozen.
    names = [
        name for name, weight in model.named_parameters() if config.patterns or weight.requires_grad
    ]
    if config.weights == "decoder":
        names = _in_decoder(model, names)
    if not names:
        remedy = "Name weights in `patterns`, or set their `requires_grad`."
        got = f"{type(model).__name__}, all of which are frozen"
        raise argument_error("trainable", "a choice of the model's weights", got, remedy)
    chosen = set(_matching(names, config.patterns))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


def _select_low_rank(model: nn.Module, last_layer: nn.Parameter, config: TrainableConfig) -> None:
    """Add LoRA adapters to the chosen layers. If the last layer is one of them, train its weights instead."""
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        has_plain_weight = "weight" in module._parameters  # unlike one of `weight_norm`
        if isinstance(module, LAYERS) and has_plain_weight:
            layers[name] = module
    candidates = list(layers)
    if not config.patterns:
        candidates = _in_decoder(model, layers)
    if not candidates:
        contract = '"all" or "decoder" for a model without linear layers and convolutions'
        remedy = "LoRA adapters need such layers, not transposed or with `weight_norm`; else, set `patterns`."
        raise argument_error("weights", contract, f'"lora" for {type(model).__name__}', remedy)
    low_rank: list[str] = []
    whole: list[nn.Module] = []
    for name in _matching(candidates, config.patterns):
        if layers[name].weight is last_layer:
            whole.append(layers[name])
        else:
            low_rank.append(name)
    add_low_rank(model, low_rank, rank=config.lora_rank, alpha=config.lora_alpha)
    for layer in whole:
        layer.requires_grad_(True)


def _in_decoder(model: nn.Module, names: Iterable[str]) -> list[str]:
    if not isinstance(getattr(model, "decoder", None), nn.Module):
        children = ", ".join(name for name, _ in model.named_children())
        got = f"{type(model).__name__} with {children}"
        raise argument_error(
            "autoencoder", "a model with a module `decoder`", got, "Choose weights by `patterns`."
        )
    return [name for name in names if name.split(".")[0] in DECODER]


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    """Return the names that match a pattern, or all of them without patterns."""
    if not patterns:
        return names
    matching: set[str] = set()
    for pattern in patterns:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            remedy = (
                nearest(pattern, names) or f"The first is `{names[0]}`, the last `{names[-1]}`."
            )
            raise argument_error(
                "patterns", "patterns of names that can be trained", repr(pattern), remedy
            )
        matching.update(matches)
    return [name for name in names if name in matching]


def _frozen_with_statistics(module: nn.Module) -> Iterator[nn.Module]:
    """Yield normalisation and dropout where all weights are frozen: in training mode, statistics would change."""
    weights = list(module.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        for part in module.modules():
            has_buffers = len(list(part.buffers(recurse=False))) > 0
            if has_buffers or isinstance(part, nn.modules.dropout._DropoutNd):
                yield part
        return
    for child in module.children():
        yield from _frozen_with_statistics(child)
