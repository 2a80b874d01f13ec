"""What every discriminator returns: logits, and the features that a feature-matching loss compares."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

from jaxtyping import Float
from torch import Tensor

from telecine.shapes import argument_error

Sees: TypeAlias = Literal["frames", "video"]
"""A discriminator's attribute `sees`: its input is a batch of frames `(B, C, H, W)`, or of videos `(B, C, T, H, W)`."""

LogitMap: TypeAlias = Float[Tensor, "batch *patch"]


class DiscriminatorOutput(NamedTuple):
    """The verdict on a batch; it unpacks as `logits, features`.

    Attributes:
        logits: One logit a sample `(B,)`, or a map of logits of patches, `(B, h, w)` of frames and `(B, t, h, w)` of
            videos. Unbounded; larger means more real.
        features: The output of each block, from first to last, `(B, c, h, w)` or `(B, c, t, h, w)`; empty where a
            discriminator has none to show. Nothing writes to them after they are handed out; the graph is kept.
    """

    logits: LogitMap
    features: tuple[Tensor, ...]


def as_output(output: Any) -> DiscriminatorOutput:
    """Return what any discriminator returned, one of the user's own included, as a `DiscriminatorOutput`.

    Args:
        output: A tensor of logits (there are no features then), or a pair of logits and a tuple or list of features,
            which a `DiscriminatorOutput` is too.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(output, Tensor):
        return DiscriminatorOutput(output, ())
    if isinstance(output, (tuple, list)) and len(output) == 2:
        logits, features = output
        are_tensors = isinstance(features, (tuple, list)) and all(isinstance(feature, Tensor) for feature in features)
        if isinstance(logits, Tensor) and are_tensors:
            return DiscriminatorOutput(logits, tuple(features))
    contract = "a tensor of logits, or a pair of logits and a tuple of feature tensors"
    remedy = "Let the discriminator's `forward` return a `telecine.DiscriminatorOutput`, or its logits alone."
    raise argument_error("output", contract, _kinds(output), remedy, TypeError)


def _kinds(value: Any) -> str:
    """Name the types of what came, without the values: tensors' would fill pages."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_kinds, value))})"
    return type(value).__name__
