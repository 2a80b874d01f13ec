"""Settings of `telecine prune`."""

from typing import Annotated, Literal

from pydantic import Field

from telecine.settings.autoencoder import ConvolutionKind
from telecine.settings.evaluate import MeasuredClips
from telecine.settings.group import Count, Positive, group


@group
class PruneConfig(MeasuredClips):
    """What is removed from a model, and the clips that say what matters."""

    keep: Annotated[Positive, Field(le=1)] = 0.25
    """Largest share of the operations of decoding that stays. All stages lose the same share of their channels."""
    keep_stages: tuple[Annotated[Positive, Field(le=1)], ...] = ()
    """Instead of `keep`: the largest share of its channels that each stage keeps, e.g. [1, 0.5, 0.5], in the order of
    the model's configuration. Neighbouring stages with the same number of channels have one number."""
    blocks: Count | None = None
    """The largest number of residual blocks that each stage keeps. Blocks are removed before channels, and
    count for `keep`; first are those whose removal raises the error on the clips least. Left out, all blocks stay."""
    decoder_convolutions: tuple[ConvolutionKind, ...] = ()
    """Convolutions of the residual blocks of a decoder of telecine, one kind for each level, see
    `causal_vae.decoder_convolutions`: e.g. ["depthwise", "2+1d"]. They are fitted to the clips by least squares after
    channels are removed, and count for `keep`. Left out, they stay. Models of diffusers cannot have others."""
    part: Literal["decoder", "both"] = "decoder"
    """What loses channels: the decoder, so that latents stay as they are, or the encoder as well ("both"). The classes
    of diffusers whose configuration has one number for both can only have "both"."""
    importance: Literal["gradient", "greedy", "weight", "first"] = "gradient"
    """Which channels stay: those whose removal changes the error on the clips most, to first order ("gradient",
    arXiv:1906.10771); those that are left when the ones with the smallest measured error without them are removed, in
    four rounds, which decodes the clips for each channel ("greedy", arXiv:1611.06440); those with the largest weights
    ("weight"); or the first ones, for comparison ("first")."""
