"""Memory layout and compilation of the objective's networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error

if TYPE_CHECKING:
    from telecine.objective import VideoAutoencoderLoss


def accelerate_networks(
    loss: VideoAutoencoderLoss, *, channels_last: bool, dynamo_backend: str, device: torch.device
) -> None:
    """Change the memory layout of discriminators and LPIPS and compile them, in place; values change by rounding only.

    Args:
        loss: The objective.
        channels_last: Use the channels-last layout for weights; convolutions then use it for their outputs.
        dynamo_backend: Backend of `torch.compile`; "no" does not compile.
        device: Where the objective will run.

    Raises:
        ValueError: If the gradient penalty needs a double backward, which compiled code and the CPU's channels-last
            convolutions do not support.
    """
    differentiates_twice = loss.weights.is_ever_on("grad_penalty") and loss.penalty.double_backward
    remedy = "Use `objective.penalty.kind: approximate_r1`, or turn the penalty off."
    if channels_last:
        if differentiates_twice and device.type == "cpu":
            # PyTorch 2.13 with oneDNN corrupts the heap there, with several threads and odd batches of three and more.
            raise argument_error("channels_last", "false on the CPU with an exact gradient penalty", "true", remedy)
        loss._apply(_with_channels_last)
    if dynamo_backend != "no":
        if differentiates_twice:
            raise argument_error("dynamo_backend", "no with an exact gradient penalty", dynamo_backend, remedy)
        for network in networks(loss):
            network.compile(backend=dynamo_backend)
        # The gradients of several terms are taken through the same graph, so its buffers must outlive the first.
        torch._functorch.config.donated_buffer = False


def networks(loss: VideoAutoencoderLoss) -> list[nn.Module]:
    """Return the networks that the objective runs."""
    discriminators = [d.module for d in loss.discriminators + loss.multiscale_discriminators]
    perceptual = loss.perceptual.distance
    return discriminators if perceptual is None else [*discriminators, perceptual.distance]


def _with_channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.ndim]) if tensor.ndim in formats else tensor
