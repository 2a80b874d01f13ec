"""Settings of `telecine prune`."""

from typing import Annotated, Literal

from pydantic import Field

from telecine.settings.evaluate import MeasuredClips
from telecine.settings.group import Positive, group


@group
class PruneConfig(MeasuredClips):
    """What is removed from a model, and the clips that say what matters."""

    keep: Annotated[Positive, Field(le=1)] = 0.25
    """Largest share of the operations of decoding that stays. All stages lose the same share of their channels."""
    part: Literal["decoder", "both"] = "decoder"
    """What loses channels: the decoder, so that latents stay as they are, or the encoder as well ("both"). The classes
    of diffusers whose configuration has one number for both can only have "both"."""
    importance: Literal["gradient", "weight", "first"] = "gradient"
    """Which channels stay: those whose removal changes the error on the clips most, to first order ("gradient",
    arXiv:1906.10771); those with the largest weights ("weight"); or the first ones, for comparison ("first")."""
