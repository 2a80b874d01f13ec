"""What the `encode` and the `decode` of diffusers' autoencoders return, read as posteriors and video."""

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor

from telecine.base.checks import argument_error, describe
from telecine.base.shapes import Video
from telecine.models.latent import DeterministicPosterior, DiagonalGaussian

DiffusersModel: TypeAlias = Any
"""An `nn.Module` whose `encode` and `decode` are called as those of diffusers' autoencoders; diffusers is untyped."""

LatentPosterior: TypeAlias = DiagonalGaussian | DeterministicPosterior
Decoded: TypeAlias = tuple[Video, dict[str, Tensor]]
"""The output of a decoder, and the losses of a quantizer inside it by name, 0-d."""
UNSUPPORTED_REMEDY = (
    "Wrap the model in a module whose `forward` maps (B, 3, T, H, W) to the same shape."
)


def read_posterior(output: object) -> LatentPosterior:
    """Return the posterior in the output of `encode`; 0-d tensors that follow it are a quantizer's losses.

    Raises:
        ValueError: The output is something else.
    """
    first: Any = output
    others: Sequence[object] = ()
    if isinstance(output, tuple):
        first = output[0]
        others = output[1:]
    for name in ("latent_dist", "latents", "latent"):
        first = getattr(first, name, first)
    if isinstance(getattr(first, "logvar", None), Tensor):
        # Only the moments are used: diffusers' own class sums the KL divergence of videos over the wrong axes.
        return DiagonalGaussian(mean=first.mean, logvar=first.logvar)
    if not isinstance(first, Tensor) and hasattr(first, "mode"):
        first = first.mode()
    if not isinstance(first, Tensor):
        contract = "a posterior (`latent_dist`), a latent, or a tuple that starts with one"
        raise argument_error(
            "the output of `encode`", contract, describe(output), UNSUPPORTED_REMEDY
        )
    losses = [extra for extra in others if _is_loss(extra)]
    if not losses:
        return DeterministicPosterior(first)
    return DeterministicPosterior(first, {"quantizer_loss": torch.stack(losses).sum()})


def _is_loss(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()


def read_decoded(output: object) -> Decoded:
    """Return the video in the output of `decode`: an object with `sample`, a tensor, or a tuple of one and more.

    Raises:
        ValueError: The output is something else.
    """
    first = output[0] if isinstance(output, tuple) else output
    video = getattr(first, "sample", first)
    if not isinstance(video, Tensor):
        contract = "a video (`sample`) or a tensor"
        raise argument_error(
            "the output of `decode`", contract, describe(output), UNSUPPORTED_REMEDY
        )
    loss = getattr(first, "commit_loss", None)
    if loss is None:
        return video, {}
    return video, {"commit_loss": loss.mean()}
