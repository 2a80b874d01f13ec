"""Gradient checkpointing that is trusted only after its gradients were compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from telecine.autoencoders.diffusers.passage import clear_caches
from telecine.autoencoders.probe import ClipSizes
from telecine.precision import autocast_off
from telecine.shapes import argument_error

# Relative difference of all gradients that rounding may explain; the wrong ones found are 0.5 and more.
MAX_DIFFERENCE = 1e-2
# A clip of so many frames or a few more passes more than one chunk of the models that work in chunks.
NUM_FRAMES = 5


def enable_checked(module: Any, sizes: ClipSizes) -> None:
    """Turn a diffusers model's gradient checkpointing on if its gradients on a tiny clip stay what they were.

    Raises:
        ValueError: the class refuses, fails, or computes other gradients; checkpointing is off then.
    """
    if not hasattr(module, "enable_gradient_checkpointing"):
        raise refused(module, "one without it")
    plain = gradients(sizes)
    try:
        module.enable_gradient_checkpointing()
    except ValueError as error:
        raise refused(module, "one that refuses") from error
    try:
        difference = relative_difference(gradients(sizes), plain)
    except RuntimeError as error:
        switch_off(module)
        raise refused(module, f"one whose backward fails with it ({type(error).__name__})") from error
    if not difference <= MAX_DIFFERENCE:
        switch_off(module)
        raise refused(module, f"one whose gradients change by {difference:.0%} with it")


def switch_off(module: Any) -> None:
    """Turn checkpointing off and clear what a failed backward left."""
    module.disable_gradient_checkpointing()
    clear_caches(module)


def refused(module: Any, got: str) -> Exception:
    """Build the error of a class that cannot be trained with gradient checkpointing."""
    contract = "a model whose gradients stay the same with gradient checkpointing"
    return argument_error(type(module).__name__, contract, got, "Train it without `gradient_checkpointing`.")


def gradients(sizes: ClipSizes) -> list[Tensor]:
    """Return the gradient of every trained weight for a fixed tiny clip; buffers and random state do not change."""
    passage = sizes.passage
    weights = [parameter for parameter in passage.parameters() if parameter.requires_grad]
    device = weights[0].device
    buffers = {name: buffer.clone() for name, buffer in passage.named_buffers()}
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.enable_grad(), autocast_off(device), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        video = 2 * torch.rand(1, 3, *tiny_clip(sizes)) - 1
        output = functional_call(passage, buffers, (video.to(device),))
        loss = (output * torch.randn(output.shape).to(output)).mean()
        found = torch.autograd.grad(loss, weights, allow_unused=True)
    clear_caches(sizes.model)
    pairs = zip(weights, found, strict=True)
    return [torch.zeros_like(weight) if gradient is None else gradient for weight, gradient in pairs]


def tiny_clip(sizes: ClipSizes) -> tuple[int, int, int]:
    """Return the smallest clip of a few frames, or the smallest of all where only one frame is taken."""
    _, height, width = sizes.smallest
    lengths = range(NUM_FRAMES, 4 * NUM_FRAMES)
    return (next(filter(sizes.lasts, lengths), sizes.smallest[0]), height, width)


def relative_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the norm of the difference of two lists of gradients, relative to that of the second."""
    differences = [(a - b).norm() for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(differences).norm() / torch.stack([b.norm() for b in expected]).norm())
