"""Memory layout and compilation of the objective's networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from telecine.checks import argument_error
from telecine.objective import VideoAutoencoderLoss


def accelerate_networks(
    loss: VideoAutoencoderLoss, *, channels_last: bool, dynamo_backend: str, device: torch.device
) -> None:
    """Change the layout of the discriminators and of LPIPS in place, and compile them; results change by rounding only.

    Args:
        loss: The objective.
        channels_last: Store weights with channels last; convolutions then return outputs in this layout.
        dynamo_backend: Backend of `torch.compile`; "no" compiles nothing.
        device: The device of the objective.

    Raises:
        ValueError: The gradient penalty needs a double backward, which compiled code, and convolutions with channels
            last on the CPU, do not support.
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
        # Gradients of several terms are computed through the same graph, so the first must not free its buffers.
        torch._functorch.config.donated_buffer = False


def networks(loss: VideoAutoencoderLoss) -> list[nn.Module]:
    """Return the networks of the objective: discriminators, and LPIPS if it is used."""
    discriminators = [critic.module for critic in loss.critics + loss.multiscale_critics]
    return discriminators if loss.perceptual_model is None else [*discriminators, loss.perceptual_model.distance]


def _with_channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.ndim]) if tensor.ndim in formats else tensor
