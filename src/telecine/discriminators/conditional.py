"""Discriminators of pairs: a video together with the input of the autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error, describe
from telecine.base.shapes import check_same_shape
from telecine.discriminators.base import DiscriminatorOutput, GradientCheckpointing, Sees, as_output


class ConditionalDiscriminator(nn.Module):
    """Tells the pair of an input with itself from that of an input and its reconstruction, as pix2pix does.

    The condition is concatenated to the video along the channels (Isola et al., arXiv:1611.07004, section 3). An
    unconditional discriminator rewards any detail that looks real; this one only detail that may belong to this input.
    As an autoencoder's real sample is its input, the real pair is two equal videos: a learned distance, which is
    recognised more easily than real videos are.

    Args:
        network: A discriminator of frames or of videos with twice the channels, such as
            `PatchDiscriminator3D(channels=6)`.
    """

    conditional = True

    def __init__(self, network: GradientCheckpointing) -> None:
        super().__init__()
        self.network = network

    @property
    def sees(self) -> Sees:
        """That of the network."""
        sees: Sees = self.network.sees  # type: ignore[assignment]
        return sees

    @property
    def samples_are_independent(self) -> bool:
        """Whether the network declares it."""
        return bool(getattr(self.network, "samples_are_independent", False))

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations inside the network's blocks in the backward."""
        self.network.enable_gradient_checkpointing()

    def forward(self, x: Tensor, condition: Tensor) -> DiscriminatorOutput:
        """Map a batch in [-1, 1] and the inputs that it belongs to, of the same shape, to what the network returns.

        Raises:
            ValueError: If the shapes differ.
        """
        return as_output(self.network(torch.cat([x, check_condition(condition, x)], 1)))


def check_condition(condition: Tensor | None, x: Tensor) -> Tensor:
    """Return the condition of `x` in its precision; raise a `ValueError` unless it is there and of the same shape."""
    if condition is None:
        remedy = "Pass the input of the autoencoder, as `VideoAutoencoderLoss` does."
        raise argument_error("condition", "given to a conditional discriminator", describe(condition), remedy)
    check_same_shape("condition", condition, "x", x, remedy="Pass the input of the autoencoder.")
    return condition.to(x.dtype)
