"""Weights of cheaper convolutions, fitted to a convolution by least squares on real activations.

A convolution of a residual block is a kernel of time x height x width for each pair of an input and an output channel.
On the inputs that it has for clips, the cheaper ones are fitted to its outputs, in closed form:

- "2+1d": the kernels of each frame give `time * C` maps of each frame of the input. Their `C` principal components are
  linear in the kernels, and are the kernels over space. The kernels over time are fitted to the output.
- "2d": the kernels of the frames are added up. Each output channel has a factor for each frame, which is fitted.
- "depthwise": the kernel of an input channel is the first singular vector of its kernels for all output channels. The
  map of the channels is fitted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error

# Positions of a fit are at most this many, drawn at random: those of a fixed stride are often all in a few columns.
_MAX_POSITIONS = 20_000
# Added to the diagonal of the normal equations, over its mean: inputs may be linearly dependent.
_RIDGE = 1e-6


@dataclass(frozen=True)
class Activations:
    """What a convolution over frames got and returned."""

    padded: Tensor
    """Its inputs with the earlier frames in front, `(B, C, time - 1 + T, H, W)`."""
    output: Tensor
    """`(B, C, T, H, W)`."""


def fit_space_and_time(weight: Tensor, activations: Activations) -> tuple[list[Tensor], Tensor]:
    """Return kernels over space, kernels over time, and the bias.

    Args:
        weight: Kernels `(out, in, time, height, width)`.
        activations: Those of the convolution.
    """
    num_outputs, _, time, _, _ = weight.shape
    kernels = _kernels_of_frames(weight)
    values = _positions(convolve_frames(activations.padded, kernels)).double()
    components = torch.linalg.eigh(values.T @ values).eigenvectors[:, -num_outputs:].float()
    spatial = torch.einsum("ko,kithw->oithw", components, kernels)
    maps = convolve_frames(activations.padded, spatial)
    num_frames = activations.output.shape[2]
    frames = []
    for offset in range(time):
        frames.append(maps[:, :, offset : offset + num_frames])
    inputs = _positions(torch.cat(frames, dim=1))
    matrix, bias = _least_squares(inputs, _positions(activations.output))
    temporal = matrix.view(time, num_outputs, num_outputs).permute(2, 1, 0)
    return [spatial, temporal[..., None, None]], bias


def fit_space(weight: Tensor, activations: Activations) -> tuple[list[Tensor], Tensor]:
    """Return kernels over space and the bias; the arguments are those of `fit_space_and_time`."""
    num_outputs, _, time, _, _ = weight.shape
    current = activations.padded[:, :, time - 1 :]
    maps = _positions(convolve_frames(current, _kernels_of_frames(weight)))
    by_output = maps.view(-1, time, num_outputs).permute(2, 0, 1)
    targets = _positions(activations.output).T[..., None]
    factors, bias = _least_squares(by_output, targets)  # (out, time, 1) and (out, 1)
    kernels = torch.einsum("ot,oithw->oihw", factors[..., 0], weight)
    return [kernels.unsqueeze(2)], bias[:, 0]


def fit_depthwise(weight: Tensor, activations: Activations) -> tuple[list[Tensor], Tensor]:
    """Return a kernel of each channel, a map of the channels, and the bias; see `fit_space_and_time`."""
    num_inputs = weight.shape[1]
    by_input = weight.transpose(0, 1).flatten(2)  # (in, out, time * height * width)
    kernels = torch.linalg.svd(by_input, full_matrices=False).Vh[:, 0]
    kernels = kernels.view(num_inputs, 1, *weight.shape[2:])
    maps = convolve_frames(activations.padded, kernels, groups=num_inputs)
    matrix, bias = _least_squares(_positions(maps), _positions(activations.output))
    return [kernels, matrix.T[..., None, None, None]], bias


def _kernels_of_frames(weight: Tensor) -> Tensor:
    """Return the kernels of all frames as those of more outputs, `(time * out, in, 1, height, width)`."""
    return weight.permute(2, 0, 1, 3, 4).flatten(0, 1).unsqueeze(2)


def convolve_frames(video: Tensor, kernels: Tensor, groups: int = 1) -> Tensor:
    """Return a convolution that pads height and width with 0, and does not pad time."""
    padding = (0, kernels.shape[3] // 2, kernels.shape[4] // 2)
    return F.conv3d(video, kernels, padding=padding, groups=groups)


def _positions(video: Tensor) -> Tensor:
    """Return the channels `(N, C)` of positions of a video `(B, C, T, H, W)`, the same ones of all videos of a size."""
    positions = video.movedim(1, -1).flatten(0, -2)
    if len(positions) <= _MAX_POSITIONS:
        return positions
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
    return positions[order[:_MAX_POSITIONS]]


def _least_squares(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrix `(..., in, out)` and the bias `(..., out)` of the best affine map, computed in float64.

    Args:
        inputs: `(..., N, in)`.
        outputs: `(..., N, out)`.

    Raises:
        ValueError: There are fewer positions than unknowns of an output.
    """
    num_positions, num_inputs = inputs.shape[-2:]
    if num_positions <= num_inputs:
        contract = f"clips with at least {num_inputs + 1} positions for the fit of a convolution"
        remedy = (
            "Raise `max_clips`, half of which are fitted to, `num_frames`, or `height` and `width`."
        )
        raise argument_error("data", contract, str(num_positions), remedy)
    x = inputs.double()
    y = outputs.double()
    mean_x = x.mean(-2, keepdim=True)
    mean_y = y.mean(-2, keepdim=True)
    x = x - mean_x
    gram = x.mT @ x
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    ridge = _RIDGE * diagonal.mean(-1, keepdim=True) + torch.finfo(gram.dtype).tiny
    diagonal.add_(ridge)
    matrix = torch.linalg.solve(gram, x.mT @ (y - mean_y))
    bias = mean_y - mean_x @ matrix
    return matrix.float(), bias.squeeze(-2).float()
