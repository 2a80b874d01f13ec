"""What discriminators get and return."""

from typing import Any, Literal, NamedTuple, TypeAlias

from jaxtyping import Float
from torch import Tensor

from telecine.base.checks import argument_error

Sees: TypeAlias = Literal["frames", "video"]
"""A discriminator's attribute `sees`: its input is a batch of frames `(B, C, H, W)`, or of videos `(B, C, T, H, W)`."""


class DiscriminatorOutput(NamedTuple):
    """The output of a discriminator for a batch; it unpacks as `logits, features`.

    Attributes:
        logits: One logit per sample `(B,)`, or a map of logits of patches, `(B, h, w)` of frames and `(B, t, h, w)` of
            videos, or `(B, heads, t, h, w)`. Unbounded; larger means more real.
        features: The output of each block, from first to last, `(B, c, h, w)` or `(B, c, t, h, w)`, for a
            feature-matching loss; empty if there are none. No later layer overwrites them; the graph is kept.
    """

    logits: Float[Tensor, "batch *patch"]
    features: tuple[Tensor, ...]


def as_output(output: object) -> DiscriminatorOutput:
    """Convert the output of any discriminator, custom ones included, to a `DiscriminatorOutput`.

    Raises:
        TypeError: If it is neither a tensor of logits nor a pair of logits and a tuple or list of feature tensors.
        ValueError: If the logits are a single number.
    """
    logits: Any = output
    features: Any = ()
    if isinstance(output, (tuple, list)) and len(output) == 2:
        logits, features = output
    is_sequence = isinstance(features, (tuple, list))
    if (
        not isinstance(logits, Tensor)
        or not is_sequence
        or not all(isinstance(x, Tensor) for x in features)
    ):
        contract = "a tensor of logits, or a pair of logits and a tuple of feature tensors"
        remedy = "Return a `telecine.DiscriminatorOutput`, or only the logits, from the discriminator's `forward`."
        raise argument_error("output", contract, _describe_types(output), remedy, TypeError)
    if logits.ndim == 0:
        remedy = "Keep the axis of the batch: average over the others, as in `.flatten(1).mean(1)`."
        raise argument_error("logits", "one logit per sample, or a map of them", logits, remedy)
    return DiscriminatorOutput(logits, tuple(features))


def _describe_types(value: object) -> str:
    """Return the types inside `value` without the values, which would be pages long for tensors."""
    if isinstance(value, (tuple, list)):
        types = [_describe_types(item) for item in value]
        return f"({', '.join(types)})"
    return type(value).__name__


def check_batch(x: Tensor, sees: Sees, channels: int) -> None:
    """Check the input of a discriminator.

    Args:
        x: The input.
        sees: Whether the discriminator sees frames `(B, C, H, W)` or videos `(B, C, T, H, W)`.
        channels: The number C that it was built for.

    Raises:
        ValueError: `x` has other axes or channels.
    """
    ndim = 4 if sees == "frames" else 5
    if x.ndim == ndim and x.shape[1] == channels:
        return
    remedy = "Build the discriminator with the `channels` of its input."
    if x.ndim != ndim:
        remedy = "Images have 4 axes, videos 5."
    elif sees == "video" and x.shape[2] == channels:
        remedy = "It looks like (B, T, C, H, W): use `.transpose(1, 2)`."
    shape = "(B, C, H, W)" if sees == "frames" else "(B, C, T, H, W)"
    raise argument_error(
        "x", f"of shape {shape} with C = {channels}", f"shape {tuple(x.shape)}", remedy
    )
