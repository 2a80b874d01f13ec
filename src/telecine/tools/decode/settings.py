"""Settings of `telecine decode`."""

from typing import Literal

from telecine.settings.evaluate import ModelUse
from telecine.settings.group import Count, group


@group
class DecodeConfig(ModelUse):
    """How latents are decoded."""

    model: str | None = None
    """The run, checkpoint or saved autoencoder that decodes; its encoder must be the one that encoded, as that of a
    student is. Default: the model that encoded, by its name in manifest.json."""
    format: Literal["mp4", "mkv"] = "mp4"
    """Files of videos: H.264 of RGB, or FFV1 without loss, also of grey and RGBA. Images become PNG."""
    chunk_frames: Count = 17
    """Largest number of frames that the decoder computes at once, as far as the model has a choice."""
