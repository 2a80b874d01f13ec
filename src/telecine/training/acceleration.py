"""Faster networks of the objective: their memory layout, and compilation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from telecine.checks import argument_error
from telecine.objective import VideoAutoencoderLoss


def accelerate_networks(
    loss: VideoAutoencoderLoss, *, channels_last: bool, dynamo_backend: str, device: torch.device
) -> None:
    """Change layout and code of the discriminators and of LPIPS in place; values stay the same up to rounding.

    Args:
        loss: The objective.
        channels_last: Lay weights out with channels last, which convolutions hand on to their outputs.
        dynamo_backend: What `torch.compile` compiles with; "no" for not at all.
        device: Where the objective will run.

    Raises:
        ValueError: If the gradient penalty is a gradient of a gradient, and compiled code or the CPU's channels-last
            convolutions cannot compute it.
    """
    differentiates_twice = loss.weights["grad_penalty_loss_weight"].is_ever_on and loss.grad_penalty.double_backward
    remedy = "Use `objective.grad_penalty: approximate_r1`, or turn the penalty off."
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
        # A term's gradients are taken one by one through the same graph, whose buffers must outlive the first.
        torch._functorch.config.donated_buffer = False


def networks(loss: VideoAutoencoderLoss) -> list[nn.Module]:
    """Return the networks that the objective runs."""
    judges = [critic.module for critic in loss.critics + loss.multiscale_critics]
    return judges if loss.perceptual_model is None else [*judges, loss.perceptual_model.distance]


def _with_channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.ndim]) if tensor.ndim in formats else tensor
