"""What the trainer needs of an autoencoder: any `nn.Module` with these members can be trained."""

from __future__ import annotations

from os import PathLike
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from telecine.randomness import Generators
from telecine.shapes import Scalar, Video

Model = TypeVar("Model", covariant=True)


class Reconstruction(NamedTuple):
    """What one forward pass returns."""

    video: Video
    """The reconstruction, of the input's shape; near [-1, 1] but not clamped, so that gradients live everywhere."""
    aux: dict[str, Tensor]
    """Auxiliary losses by name, 0-d and float32, e.g. `{"kl_loss": ...}`; the objective gives them their weights."""


@runtime_checkable
class Posterior(Protocol):
    """The distribution of latents that an encoder predicts."""

    def sample(self, generator: Generators = None) -> Tensor:
        """Return a latent drawn with gradients to the encoder."""

    def mode(self) -> Tensor:
        """Return the most likely latent, the same at every call."""

    def kl(self) -> Scalar:
        """Return the divergence from the prior, averaged over every element."""


@runtime_checkable
class VideoAutoencoder(Protocol):
    """An `nn.Module` that compresses video `(B, 3, T, H, W)` in [-1, 1] and restores it."""

    def forward(self, video: Video, sample_posterior: bool = True, generator: Generators = None) -> Reconstruction:
        """Encode, sample and decode inside this one call: DDP synchronises only what its `forward` sees.

        `generator` is one, or one for each clip.
        """

    def encode(self, video: Video) -> Posterior:
        """Return the posterior of the latents `(B, C, t, h, w)`."""

    def decode(self, latent: Tensor) -> Video:
        """Return the video of a latent, not clamped."""

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the last convolution, where the adaptive weight compares gradients."""

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` that names the nearest accepted value, e.g. 17 frames where 4k+1 are needed."""

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest (frames, rows, columns) that `check_clip` accepts and that cover these."""

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write configuration and weights into `folder`."""

    def load_weights(self, folder: str | PathLike[str]) -> None:
        """Copy the weights that `save_pretrained` wrote into this model, as a run that goes on does."""

    @classmethod
    def from_pretrained(cls: type[Model], folder: str | PathLike[str]) -> Model:
        """Return the model that `save_pretrained` wrote."""
