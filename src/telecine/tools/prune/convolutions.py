"""Cheaper convolutions in the decoder of `CausalVAE`, in place of its own ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.shapes import Video
from telecine.base.terminal import with_progress
from telecine.models import VideoAutoencoder
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.causal_blocks import (
    CausalConv,
    ResidualBlock,
    residual_convolution,
)
from telecine.models.pretrained import mismatches
from telecine.models.unwrapping import class_name
from telecine.settings.autoencoder import ConvolutionKind
from telecine.tools.prune.least_squares import (
    Activations,
    convolve_frames,
    fit_depthwise,
    fit_space,
    fit_space_and_time,
)
from telecine.tools.prune.parts import Prunable

# Clips are at most this many, evenly spread: all activations of a layer are held at once.
_MAX_CLIPS = 32


@dataclass(frozen=True)
class ConvolutionFit:
    """A convolution that was replaced, and how well others compute the same.

    An error is the squared one over the variance of the convolution's output: 1 for a constant. It is that of every
    second clip, which the fit does not see.
    """

    layer: str
    """Its name in the decoder."""
    kind: ConvolutionKind
    """See `CausalVAEConfig.decoder_convolutions`."""
    operations: float
    """Multiplications at a position over those of the replaced one."""
    error: float | None
    """Of the fit; None with one clip alone, which the fit sees."""
    error_trivial: float
    """Without a fit: of the kernel summed over time, which is exact for still videos; for "depthwise" also over space,
    which is exact for flat ones."""
    error_random: float
    """Of weights as PyTorch draws them."""


@dataclass(frozen=True)
class ReplacedConvolution:
    """A convolution of a model, and what a student has in its place."""

    name: str
    kind: ConvolutionKind
    layer: CausalConv
    new: nn.Module


def check_convolutions(model: VideoAutoencoder, kinds: Sequence[ConvolutionKind]) -> None:
    """Check that the decoder of a model can have other convolutions.

    Raises:
        ValueError: Its class has no setting for them, they do not fit its levels, or a level has cheaper ones already.
    """
    if not isinstance(model, CausalAutoencoder):
        contract = (
            f"left out for {class_name(model)}, whose configuration has no kind of convolution"
        )
        remedy = (
            "`telecine distill --student SETTINGS.yaml` trains a decoder of telecine with them."
        )
        raise argument_error("decoder_convolutions", contract, list(kinds), remedy)
    replace(model.config, decoder_convolutions=tuple(kinds))  # raises if they do not fit its levels
    present = model.config.decoder_convolutions
    if any(old not in ("3d", new) for old, new in zip(present, kinds, strict=False)):
        contract = f'{list(present)}, those of the model, with others in place of "3d" alone'
        remedy = "Leave it out to keep them, or prune the model that this one was made of."
        raise argument_error("decoder_convolutions", contract, list(kinds), remedy)


@torch.no_grad()
def with_convolutions(
    model: CausalAutoencoder,
    target: Prunable,
    kinds: Sequence[ConvolutionKind],
    videos: Sequence[Video],
) -> tuple[CausalAutoencoder, list[ConvolutionFit]]:
    """Return a model whose decoder has other convolutions, which are fitted, and what was replaced.

    Args:
        model: The model, in evaluation mode.
        target: Its part that is pruned.
        kinds: The kind of each level, see `CausalVAEConfig.decoder_convolutions`.
        videos: Clips `(1, C, T, H, W)` in [-1, 1].

    Raises:
        ValueError: The clips have fewer positions than a fit has unknowns.
    """
    config = {**target.config, "decoder_convolutions": tuple(kinds)}
    student = cast(CausalAutoencoder, target.wrap(config, target.build(config).state_dict()))
    student.to(videos[0].device).eval()
    shapes = {name: tensor.shape for name, tensor in student.state_dict().items()}
    weights = model.state_dict()
    same = {name: weights[name] for name in weights if shapes.get(name) == weights[name].shape}
    student.load_state_dict(same, strict=False)
    some_videos = videos[:: math.ceil(len(videos) / _MAX_CLIPS)]
    fits = []
    for replaced in with_progress(replaced_convolutions(model, student), "fitting convolutions"):
        activations = record_convolution(model, replaced.layer, some_videos[::2])
        set_fitted(replaced, activations)
        if len(some_videos) == 1:
            fits.append(replace(measure_fit(replaced, activations), error=None))
            continue
        unseen = record_convolution(model, replaced.layer, some_videos[1::2])
        fits.append(measure_fit(replaced, unseen))
    return student, fits


def replaced_convolutions(
    model: CausalAutoencoder, student: CausalAutoencoder
) -> list[ReplacedConvolution]:
    """Return the convolutions of a model's decoder that have other shapes in a student."""
    convolutions = []
    for name, block in student.decoder.named_modules():
        if not isinstance(block, ResidualBlock):
            continue
        for index, new in block.branch.named_children():
            layer_name = f"{name}.branch.{index}"
            layer = model.decoder.get_submodule(layer_name)
            if isinstance(layer, CausalConv) and mismatches(layer.state_dict(), new.state_dict()):
                convolutions.append(ReplacedConvolution(layer_name, block.convolution, layer, new))
    return convolutions


def record_convolution(
    model: CausalAutoencoder, layer: CausalConv, videos: Sequence[Video]
) -> Activations:
    """Return what a convolution gets and returns when a model decodes clips.

    Args:
        model: The model.
        layer: A convolution of its decoder.
        videos: Clips `(1, C, T, H, W)` of one size.
    """
    inputs = []
    outputs = []

    def record(conv: nn.Module, padded: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(padded[0].cpu())
        outputs.append(output.cpu())

    handle = layer.conv.register_forward_hook(record)
    try:
        for video in videos:
            model.decode_with_losses(model.encode(video).mode())
    finally:
        handle.remove()
    return Activations(torch.cat(inputs), torch.cat(outputs))


def set_fitted(replaced: ReplacedConvolution, activations: Activations) -> None:
    """Set the weights of new convolutions to those with the least squared error of the replaced one's output."""
    conv = replaced.layer.conv
    weight = conv.weight.cpu()
    if replaced.kind == "2+1d":
        weights, bias = fit_space_and_time(weight, activations)
    elif replaced.kind == "2d":
        weights, bias = fit_space(weight, activations)
    else:
        weights, bias = fit_depthwise(weight, activations)
    convolutions = [layer.conv for layer in replaced.new.modules() if isinstance(layer, CausalConv)]
    for new, values in zip(convolutions, weights, strict=True):
        new.weight.copy_(values)
    last = convolutions[-1].bias
    assert last is not None
    last.copy_(bias)


def measure_fit(replaced: ReplacedConvolution, activations: Activations) -> ConvolutionFit:
    """Return the error of fitted convolutions, of the trivial ones and of random ones."""
    layer = replaced.layer
    weight = layer.conv.weight.cpu()
    num_channels = len(weight)
    time = weight.shape[2]
    video = activations.padded[:, :, time - 1 :]
    summed = weight.sum(2, keepdim=True)
    if replaced.kind == "depthwise":
        summed = summed.sum((3, 4), keepdim=True)
    trivial = convolve_frames(video, summed)
    bias = layer.conv.bias
    if bias is not None:
        trivial = trivial + bias.cpu().view(-1, 1, 1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random = residual_convolution(num_channels, time, replaced.kind)
    num_weights = 0
    for parameter in random.parameters():
        if parameter.ndim == 5:
            num_weights += parameter.numel()
    output = activations.output
    device = layer.conv.weight.device
    return ConvolutionFit(
        layer=replaced.name,
        kind=replaced.kind,
        operations=num_weights / weight.numel(),
        error=_relative_error(replaced.new(video.to(device)).cpu(), output),
        error_trivial=_relative_error(trivial, output),
        error_random=_relative_error(random(video), output),
    )


def _relative_error(approximation: Tensor, output: Tensor) -> float:
    """Return the squared error over the variance of the output; 0 for an output that is constant and met."""
    variance = output.var((0, 2, 3, 4), correction=0).mean()
    error = (approximation - output).square().mean()
    return float(error / variance.clamp_min(torch.finfo(variance.dtype).tiny))
