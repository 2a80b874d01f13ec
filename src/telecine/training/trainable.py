"""The trained weights of an autoencoder: all, the decoder's, those of certain names, or LoRA updates."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import nn

from telecine.base.checks import argument_error, nearest
from telecine.models import VideoAutoencoder
from telecine.models.lora import LAYERS, add_low_rank
from telecine.models.pretrained import DECODER
from telecine.settings import TrainableConfig


def select_trainable(autoencoder: VideoAutoencoder, config: TrainableConfig) -> None:
    """Set `requires_grad` of the chosen weights, and freeze all others.

    Call it before creating wrappers, moving averages and optimizers. Names are those of the wrapped model, without
    `module.` in front. LoRA updates are part of the autoencoder's `state_dict`, so load weights after it.
    """
    model: nn.Module = getattr(autoencoder, "module", autoencoder)
    if config.weights == "lora":
        _select_low_rank(model, autoencoder.last_layer, config)
    else:
        _select_weights(model, config)
    _keep_frozen_in_eval_mode(model)
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.dtype.itemsize < torch.float32.itemsize:
            remedy = "Call `.float()` on the model; `mixed_precision` lets it compute in half precision."
            raise argument_error("the trained weights", "float32", f"{name} in {weight.dtype}", remedy)


def trains_encoder(autoencoder: VideoAutoencoder) -> bool:
    """Return whether a trained weight may change the latent: one that is not in the decoder."""
    model: nn.Module = getattr(autoencoder, "module", autoencoder)
    return any(weight.requires_grad and name.split(".")[0] not in DECODER for name, weight in model.named_parameters())


def _select_weights(model: nn.Module, config: TrainableConfig) -> None:
    # Patterns also train weights that a custom module has frozen; without patterns those stay frozen.
    names = [name for name, weight in model.named_parameters() if weight.requires_grad or config.patterns]
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
    """Add LoRA updates to the chosen layers. If the last layer is one of them, train its weights instead."""
    layers = {name: each for name, each in model.named_modules() if isinstance(each, LAYERS)}
    layers = {name: each for name, each in layers.items() if "weight" in each._parameters}  # not one of `weight_norm`
    candidates = list(layers) if config.patterns else _in_decoder(model, layers)
    if not candidates:
        contract = '"all" or "decoder" for a model without linear layers and convolutions'
        remedy = "LoRA updates need such layers, not transposed or with `weight_norm`; else, set `patterns`."
        raise argument_error("weights", contract, f'"lora" for {type(model).__name__}', remedy)
    names = _matching(candidates, config.patterns)
    last = [name for name in names if layers[name].weight is last_layer]
    add_low_rank(model, [name for name in names if name not in last], rank=config.lora_rank, alpha=config.lora_alpha)
    for name in last:
        layers[name].requires_grad_(True)


def _in_decoder(model: nn.Module, names: Iterable[str]) -> list[str]:
    if not isinstance(getattr(model, "decoder", None), nn.Module):
        children = ", ".join(name for name, _ in model.named_children())
        got = f"{type(model).__name__} with {children}"
        raise argument_error("autoencoder", "a model with a module `decoder`", got, "Choose weights by `patterns`.")
    return [name for name in names if name.split(".")[0] in DECODER]


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            remedy = nearest(pattern, names) or f"The first is `{names[0]}`, the last `{names[-1]}`."
            raise argument_error("patterns", "patterns of names that can be trained", repr(pattern), remedy)
    return [name for name in names if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)]


def _keep_frozen_in_eval_mode(module: nn.Module) -> None:
    """Keep normalisation and dropout in eval mode where all weights are frozen: statistics would change otherwise."""
    weights = list(module.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        for part in module.modules():
            if any(True for _ in part.buffers(recurse=False)) or isinstance(part, nn.modules.dropout._DropoutNd):
                part.register_forward_pre_hook(_to_eval)
        return
    for child in module.children():
        _keep_frozen_in_eval_mode(child)


def _to_eval(module: nn.Module, args: object) -> None:
    """Switch to eval mode before a call. It is a module-level function so that copies of the model keep the hook."""
    module.eval()
