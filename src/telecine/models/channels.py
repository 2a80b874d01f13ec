"""Weights of an autoencoder for other channels than it was trained with: the first and the last layer change."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error

# How pixels of a number of channels are seen as RGB, and made from it. Alpha is not seen, and its row of zeros gets a
# bias of 1, opaque. Grey is seen as three equal colours, and made as their mean.
_AS_RGB = {1: torch.ones(3, 1), 3: torch.eye(3), 4: torch.eye(3, 4)}
_FROM_RGB = {1: torch.full((1, 3), 1 / 3), 3: torch.eye(3), 4: torch.eye(4, 3)}


@torch.no_grad()
def change_channels(
    weights: Mapping[str, Tensor], into: nn.Module, old: int, new: int, *, has_patches: bool, opaque: str = ""
) -> None:
    """Copy the weights of a model of `old` channels into the same model of `new` ones.

    The encoder then sees grey as RGB with equal colours and ignores alpha; the decoder's grey is the mean of its RGB,
    and its alpha opaque: 1 is added to biases whose names contain `opaque`. From grey, all colours are the same. Only
    with `has_patches` may a layer see several values of a channel, which are then together. Raises a `ValueError` for
    other numbers and shapes.
    """
    if old not in (1, 3) or new not in _AS_RGB:
        contract = "1, 3 or 4 for a model that has 1 or 3"
        raise argument_error("clips.channels", contract, f"{new} for one of {old}", "Use another model.")
    seen, made = _FROM_RGB[old] @ _AS_RGB[new], _FROM_RGB[new] @ _AS_RGB[old]
    state = dict(weights)
    for name, expected in into.state_dict().items():
        weight = state[name]
        sizes = [size for size, other in zip(weight.shape, expected.shape, strict=True) if size != other]
        if any(size % old or (size > old and not has_patches) for size in sizes):
            contract, got = "one that sees pixels, to change their channels", f"of shape {tuple(weight.shape)}"
            raise argument_error(f"the layer {name}", contract, got, "Use another model.")
        if weight.ndim > 1 and weight.shape[1] != expected.shape[1]:
            weight = _mapped(weight, seen.T, dim=1)
        if weight.ndim > 0 and weight.shape[0] != expected.shape[0]:
            weight = _mapped(weight, made, dim=0)
            if new == 4 and weight.ndim == 1 and opaque in name:
                weight.unflatten(0, (4, -1))[3] += 1
        state[name] = weight
    into.load_state_dict(state)


def of_colours_and_alpha(
    function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, *, dim: int
) -> Tensor:
    """Return a linear `function` of RGBA values, ordered by channel along `dim`, as a sum over colours and alpha.

    A longer sum would be rounded in another order: with weights of 0 for alpha, this is the function of RGB to the bit.
    """
    colours, alpha = (part.contiguous() for part in x.tensor_split([x.shape[dim] // 4 * 3], dim))
    weights, of_alpha = (part.contiguous() for part in weight.tensor_split([weight.shape[1] // 4 * 3], 1))
    return function(colours, weights, bias) + function(alpha, of_alpha, None)


class RGBAConv3d(nn.Conv3d):
    """A convolution of patches of RGBA, see `of_colours_and_alpha`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return of_colours_and_alpha(super()._conv_forward, input, weight, bias, dim=1)


def _mapped(weight: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """Multiply the blocks of a weight along `dim`, one for each channel, by a matrix."""
    blocks = weight.unflatten(dim, (matrix.shape[1], -1))
    return torch.tensordot(matrix.to(weight), blocks.movedim(dim, 0), dims=1).movedim(0, dim).flatten(dim, dim + 1)
