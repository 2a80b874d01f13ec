"""Weights of an autoencoder for other channels than it was trained with: the first and the last layer change."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.shapes import RGBA
from telecine.settings.data import channels_named

# Matrices from pixels of a number of channels to RGB, and back. Grey becomes three equal colours, and is their mean.
# Alpha is left out, and comes back as 0; a bias of 1 then makes it opaque.
_AS_RGB = {1: torch.ones(3, 1), 3: torch.eye(3), RGBA: torch.eye(3, RGBA)}
_FROM_RGB = {1: torch.full((1, 3), 1 / 3), 3: torch.eye(3), RGBA: torch.eye(RGBA, 3)}


@torch.no_grad()
def change_channels(
    weights: Mapping[str, Tensor],
    into: nn.Module,
    old: int,
    new: int,
    *,
    has_patches: bool,
    opaque: str = "",
) -> None:
    """Copy the weights of a model into the same model of other channels.

    The encoder then sees grey as RGB with equal colours and ignores alpha; the decoder's grey is the mean of its RGB,
    and its alpha opaque. From grey, all colours are the same.

    Args:
        weights: The state of the model of `old` channels.
        into: The model of `new` channels.
        old: 1 or 3.
        new: 1, 3 or 4.
        has_patches: Whether a layer may see several values of a channel, which are then together.
        opaque: 1 is added to biases of alpha whose names contain this.

    Raises:
        ValueError: Other numbers of channels, or a layer that cannot be changed.
    """
    if old not in (1, 3) or new not in _AS_RGB:
        contract = "1, 3 or 4 for a model that has 1 or 3"
        remedy = f"Set `--clips.channels {channels_named(old)}` to train the model as it is."
        raise argument_error("clips.channels", contract, f"{new} for one of {old}", remedy)
    seen = _FROM_RGB[old] @ _AS_RGB[new]
    made = _FROM_RGB[new] @ _AS_RGB[old]
    state = dict(weights)
    for name, expected in into.state_dict().items():
        weight = state[name]
        if not _sees_pixels(weight, expected, old, has_patches):
            got = f"of shape {tuple(weight.shape)}"
            contract = "one that sees pixels, to change their channels"
            raise argument_error(f"the layer {name}", contract, got, "Use another model.")
        if weight.ndim > 1 and weight.shape[1] != expected.shape[1]:
            weight = _mapped(weight, seen.T, dim=1)
        if weight.ndim > 0 and weight.shape[0] != expected.shape[0]:
            weight = _mapped(weight, made, dim=0)
            if new == RGBA and weight.ndim == 1 and opaque in name:
                of_alpha = weight.unflatten(0, (RGBA, -1))[-1]
                of_alpha += 1
        state[name] = weight
    into.load_state_dict(state)


def _sees_pixels(weight: Tensor, expected: Tensor, channels: int, has_patches: bool) -> bool:
    """Return whether each size of a weight that changes counts channels of pixels, or values of patches."""
    for size, expected_size in zip(weight.shape, expected.shape, strict=True):
        if size == expected_size:
            continue
        if size % channels or (size > channels and not has_patches):
            return False
    return True


def of_colours_and_alpha(
    function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, *, dim: int
) -> Tensor:
    """Return a linear function of RGBA values as a sum over colours and alpha.

    A longer sum would be rounded in another order: with weights of 0 for alpha, this is the function of RGB to the bit.

    Args:
        function: Called with values, weight and bias, such as `torch.nn.functional.linear`.
        x: The values, ordered by channel along `dim`.
        weight: Its second dimension has the values.
        bias: Added once.
        dim: That of the values.
    """
    colours, alpha = x.tensor_split([x.shape[dim] // RGBA * 3], dim)
    colour_weight, alpha_weight = weight.tensor_split([weight.shape[1] // RGBA * 3], 1)
    of_colours = function(colours.contiguous(), colour_weight.contiguous(), bias)
    return of_colours + function(alpha.contiguous(), alpha_weight.contiguous(), None)


class RGBAConv3d(nn.Conv3d):
    """A convolution of patches of RGBA, see `of_colours_and_alpha`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return of_colours_and_alpha(super()._conv_forward, input, weight, bias, dim=1)


def _mapped(weight: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """Multiply the blocks of a weight along `dim`, one for each channel, by a matrix."""
    blocks = weight.unflatten(dim, (matrix.shape[1], -1)).movedim(dim, 0)
    mapped = torch.tensordot(matrix.to(weight), blocks, dims=1).movedim(0, dim)
    return mapped.flatten(dim, dim + 1)
