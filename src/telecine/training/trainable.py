"""Which weights of an autoencoder are trained: all, the decoder's, those of certain names, or low-rank updates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from telecine.autoencoders.lora import LAYERS, add_low_rank
from telecine.checks import argument_error, check_count, describe, nearest

# What turns a latent into video; everything else an autoencoder has shapes its latents.
DECODER = ("decoder", "post_quant_conv")


@dataclass(frozen=True)
class TrainableConfig:
    """What is trained; the rest keeps its values."""

    weights: Literal["all", "decoder", "lora"] = "all"
    """All weights, but those that a module of one's own keeps frozen; those of the decoder, so that the latents stay as
    they are and models trained on them go on working; or low-rank updates of the decoder's convolutions and linear
    layers, which are merged into the weights when they are saved. The last layer, which the adaptive weight needs, is
    trained as a whole then."""
    patterns: tuple[str, ...] = ()
    """Of these only the ones whose name matches one of these patterns, e.g. "decoder.up_blocks.*", whether the module
    keeps them frozen or not; for "lora" names of layers anywhere in the model."""
    lora_rank: int = 16
    """Rank of the updates."""
    lora_alpha: float = 16.0
    """Scale of the updates, times 1 / rank."""

    def __post_init__(self) -> None:
        if self.weights not in ("all", "decoder", "lora"):
            raise argument_error("weights", '"all", "decoder" or "lora"', describe(self.weights), "Choose one.")
        check_count("lora_rank", self.lora_rank)


def select_trainable(autoencoder: Any, config: TrainableConfig) -> list[nn.Parameter]:
    """Let the chosen weights be trained, freeze all others, and return the chosen ones.

    Call it before wrappers, moving averages and optimizers are made. What is frozen behaves as in eval mode and keeps
    its buffers, whatever mode the whole is in. Low-rank updates are part of the autoencoder's `state_dict`; a run that
    goes on selects first and loads its state then.

    Args:
        autoencoder: A `CausalVAE`, a `DiffusersAutoencoder`, or a module of one's own; names are those of the diffusers
            model, without `module.` before them.
        config: What to choose.

    Raises:
        ValueError: A pattern matches nothing (the nearest name is given), there is no decoder, all weights are frozen,
            or one that is to be trained is in half precision.
    """
    model = getattr(autoencoder, "module", autoencoder)
    chosen = choose(model, autoencoder, config)
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.dtype.itemsize < torch.float32.itemsize:
            remedy = "Call its `.float()`; `mixed_precision` makes it compute in half precision."
            raise argument_error("the weights that are trained", "float32", f"{name} in {weight.dtype}", remedy)
    return chosen


def choose(model: nn.Module, autoencoder: Any, config: TrainableConfig) -> list[nn.Parameter]:
    """Do what `select_trainable` says, and look at no precision."""
    if config.weights == "lora":
        return select_low_rank(model, autoencoder.last_layer, config)
    # A name that is asked for is trained; without names, what a module of one's own keeps frozen stays so.
    names = [name for name, weight in model.named_parameters() if weight.requires_grad or config.patterns]
    if config.weights == "decoder":
        names = of_decoder(model, names)
    if not names:
        remedy = "Name the ones to train by `patterns`, or set their `requires_grad`."
        got = f"{type(model).__name__}, all of which are frozen"
        raise argument_error("trainable", "a choice of the model's weights", got, remedy)
    train_only(model, matching(names, config.patterns))
    return trained(model)


def select_low_rank(model: nn.Module, last_layer: nn.Parameter, config: TrainableConfig) -> list[nn.Parameter]:
    """Add low-rank updates to the chosen layers; the last layer is trained as a whole where it is among them.

    Raises:
        ValueError: there is no layer that can have one.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    candidates = list(layers) if config.patterns else of_decoder(model, list(layers))
    if not candidates:
        contract = '"all" or "decoder" for a model without a linear layer or a convolution that is not transposed'
        remedy = "Low-rank updates are for these; without `patterns`, for those of the decoder."
        raise argument_error("weights", contract, f'"lora" for {type(model).__name__}', remedy)
    names = matching(candidates, config.patterns)
    last = [name for name in names if layers[name].weight is last_layer]
    add_low_rank(model, [name for name in names if name not in last], rank=config.lora_rank, alpha=config.lora_alpha)
    for name in last:
        layers[name].requires_grad_(True)
    hold_still(model)
    return trained(model)


def of_decoder(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return those names that belong to the decoder.

    Raises:
        ValueError: the model has no `decoder`.
    """
    if not isinstance(getattr(model, "decoder", None), nn.Module):
        children = ", ".join(name for name, _ in model.named_children())
        remedy = "Choose its weights by `patterns`."
        got = f"{type(model).__name__} with {children}"
        raise argument_error("autoencoder", "a model whose decoder is called `decoder`", got, remedy)
    return [name for name in names if name.split(".")[0] in DECODER]


def matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    """Return the names that match one of the patterns, all if there are none.

    Raises:
        ValueError: a pattern matches none of them; the nearest name is given.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            remedy = nearest(pattern, names) or f"The first is `{names[0]}`, the last `{names[-1]}`."
            raise argument_error("patterns", "patterns of names that can be trained", repr(pattern), remedy)
    return [name for name in names if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)]


def train_only(model: nn.Module, names: Iterable[str]) -> None:
    """Let the weights of these names be trained, and no others."""
    chosen = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    hold_still(model)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def hold_still(module: nn.Module) -> None:
    """Keep normalisations and dropout in eval mode where all weights are frozen: their statistics would drift."""
    weights = list(module.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        for part in module.modules():
            if any(True for _ in part.buffers(recurse=False)) or isinstance(part, nn.modules.dropout._DropoutNd):
                part.register_forward_pre_hook(to_eval)
        return
    for child in module.children():
        hold_still(child)


def to_eval(module: nn.Module, args: object) -> None:
    """Put a module into eval mode just before it is called; a function of the file, so that copies keep it."""
    module.eval()
