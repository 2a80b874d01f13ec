"""How evenly a discriminator looks at a video: the size of its gradient with respect to each frame."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from telecine.discriminators.output import as_output
from telecine.precision import at_least_float32
from telecine.shapes import Video, check_video


def frame_gradients(module: nn.Module, video: Video) -> Float[Tensor, " time"]:
    """Return the share of each frame in a discriminator's gradient; 1 everywhere is even, and 1 is the mean.

    A share is the 2-norm of `d sum(logits) / d frame_t`, averaged over the batch and divided by the mean over the
    frames. The autoencoder is corrected in proportion to it: a frame with a share of 10 hears ten times as much from
    the discriminator as the average frame.

    Args:
        module: A discriminator of videos, looked at in evaluation mode; it stays as it is.
        video: Videos `(B, C, T, H, W)` in [-1, 1].

    Returns:
        `T` numbers >= 0 in at least float32, detached; all 0 where no frame has a gradient.

    Raises:
        ValueError: If `video` is not a floating-point video.
        TypeError: If the module returns neither logits nor a pair of logits and features.
    """
    check_video("video", video)
    with torch.inference_mode(False), torch.enable_grad():
        parameter = next(module.parameters(), video)
        frames = video.detach().to(parameter.dtype, copy=True).requires_grad_()
        logits = as_output(_evaluated(module, frames)).logits
        (gradient,) = torch.autograd.grad(logits.sum(), frames)
    by_frame = at_least_float32(gradient).transpose(1, 2).flatten(2)
    norms = torch.linalg.vector_norm(by_frame, dim=2).mean(0)
    return norms / norms.mean().clamp_min(torch.finfo(norms.dtype).tiny)


def _evaluated(module: nn.Module, frames: Tensor) -> Any:
    """Return what the module says in evaluation mode, in which nothing in it moves, and give it its mode back."""
    mode = module.training
    try:
        return module.eval()(frames)
    finally:
        module.train(mode)
