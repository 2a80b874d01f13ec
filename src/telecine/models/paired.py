"""The encoder of one autoencoder with the decoder of another one."""

from os import PathLike
from typing import Any

from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.randomness import Generators
from telecine.base.shapes import Video
from telecine.models.frozen_encoder import FrozenEncoderModel
from telecine.models.interface import VideoAutoencoder
from telecine.models.latent import LatentGrid


class PairedAutoencoder(FrozenEncoderModel):
    """Encodes with one autoencoder and decodes with another one: what does this decoder make of those latents?

    It is for evaluation; it is neither trained nor saved.

    Args:
        encoder: The autoencoder that encodes.
        decoder: The autoencoder that decodes.
    """

    def __init__(self, encoder: VideoAutoencoder, decoder: VideoAutoencoder) -> None:
        super().__init__()
        self._encoder = encoder
        self._decoder = decoder

    @property
    def encoder_model(self) -> VideoAutoencoder:
        """The autoencoder whose encoder computes the latent."""
        return self._encoder.encoder_model

    @property
    def decoder_model(self) -> VideoAutoencoder:
        """The autoencoder whose decoder makes the video."""
        return self._decoder

    @property
    def in_channels(self) -> int:
        """Channels of the video."""
        return self._encoder.in_channels

    @property
    def first_frame_apart(self) -> bool:
        """Whether the first latent frame encodes the first frame alone."""
        return self._encoder.first_frame_apart

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last layer."""
        return self.decoder_model.last_layer

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Check that both autoencoders accept clips of this size, and that they divide them alike.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.

        Raises:
            ValueError: They do not.
        """
        super().check_clip(num_frames, height, width)
        self.decoder_model.check_clip(num_frames, height, width)
        grid = self.latent_grid(num_frames, height, width)
        expected = self.decoder_model.latent_grid(num_frames, height, width)
        if grid is not None and expected is not None and grid != expected:
            contract = f"a model with the latents of the measured one, {tuple(grid)}"
            remedy = "Use the teacher that its encoder was trained for."
            raise argument_error("decoder", contract, str(tuple(expected)), remedy)

    def latent_grid(self, num_frames: int, height: int, width: int) -> LatentGrid | None:
        """Return how the latent divides clips of a size; None if that is not known or is not even.

        Args:
            num_frames: Frames of the clips.
            height: Height in pixels.
            width: Width in pixels.
        """
        return self._encoder.latent_grid(num_frames, height, width)

    def decode(self, latent: Tensor, *, generator: Generators = None) -> Video:
        """Return the video that the model that decodes makes of a latent.

        Args:
            latent: `(B, C, t, h, w)`.
            generator: None: a decoder that draws noise takes it from its sampler.
        """
        return self.decoder_model.decode(latent)

    def describe_decoding(self) -> dict[str, object]:
        """Return the options of the model that decodes."""
        return self.decoder_model.describe_decoding()

    def set_decoding(self, **options: Any) -> None:
        """Change options of the model that decodes.

        Raises:
            ValueError: It does not have such an option, or its value is wrong.
        """
        self.decoder_model.set_decoding(**options)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Save nothing.

        Raises:
            ValueError: Always: both models are saved already.
        """
        raise argument_error(
            "model",
            "a single autoencoder",
            "the encoder of one and the decoder of another",
            "Save both.",
        )
