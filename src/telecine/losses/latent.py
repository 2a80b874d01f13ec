"""Regularisers of the latent, which make it easier to generate.

All but the local correlation cost a second pass of the decoder.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import (
    argument_error,
    check_choice,
    check_count,
    check_fraction,
    check_positive,
    describe,
)
from telecine.base.imports import choose
from telecine.base.precision import at_least_float32, autocast_off
from telecine.base.randomness import Generators, numbers_for_batch, rand, randn
from telecine.base.shapes import Scalar, Video, check_same_shape, check_video
from telecine.losses.reconstruction import (
    RECONSTRUCTION_LOSSES,
    mean_of_counted,
    weighted_mean,
)
from telecine.ops.eager_gradients import attach_gradients, differentiate
from telecine.ops.unit_vectors import inverse_norms

# Of a norm and a standard deviation that may be 0.
_EPSILON = 1e-6

Decode: TypeAlias = Callable[[Tensor], Tensor]
"""A decoder: from a latent `(B, C, t, h, w)` of any height and width to its video `(B, 3, T, H, W)`, not clamped."""

Encode: TypeAlias = Callable[[Tensor], Tensor]
"""An encoder: from a video `(B, 3, T, H, W)` to the mode of its latent's posterior, `(B, C, t, h, w)`."""


def equivariance(
    *,
    latent: Tensor,
    decode: Decode,
    target: Video,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    generator: Generators = None,
    min_scale: float = 0.25,
    flip: bool = False,
    num_orientations: int = 1,
    loss: str = "mse",
) -> Scalar:
    """Return the error of the decoded latent, rotated and down-scaled, against the video, changed in the same way.

    EQ-VAE (Kouzelis et al., arXiv:2502.09509): `d(tau(x), D(tau(z)))`. Here `d` is a pixel loss alone, and the pair
    without a change, which the paper trains on in half of the steps, is the objective's reconstruction: with a weight
    of 1 both count the same, as in the paper. `tau` is one for the whole batch: one to three quarter turns, and
    independent scales of height and width. The decoder's pass over the scaled latent costs 37 % of a full one on
    average with `min_scale` 1/4.

    Args:
        latent, decode: z, `(B, C, t, h, w)`, and D; the graph is kept.
        target: x, `(B, 3, T, H, W)` in [-1, 1].
        sample_weight: Non-negative weights of the clips `(B,)`, see `weighted_mean`.
        mask: Bool, broadcasts to `target`. A pixel counts if all pixels that it was made of do.
        generator: Source of the transformation; of several, the first's seed. One on an accelerator costs a host sync.
        min_scale: Smallest scale, in (0, 1]. The largest is just below 1; with 1, nothing is scaled.
        flip: `tau` is one of all seven other orientations of a square, with flips, which the paper leaves out.
        num_orientations: How many different orientations are decoded, each in a pass of its own, and averaged: at most
            3, or 7 with `flip`. The paper has one. More of them have the same mean with less noise.
        loss: The pixel loss, by its name in `RECONSTRUCTION_LOSSES`.

    Raises:
        ValueError: An argument is out of range, or the decoded video is not a scaled `target`.
    """
    check_video("latent", latent)
    if not isinstance(min_scale, (int, float)) or not 0 < min_scale <= 1:
        raise argument_error(
            "min_scale",
            "above 0 and at most 1",
            describe(min_scale),
            "Use 0.25, as the paper does.",
        )
    num_others = 7 if flip else 3
    if check_count("num_orientations", num_orientations) > num_others:
        remedy = "Use fewer." if flip else "Set `flip` for more."
        raise argument_error("num_orientations", f"at most {num_others}", num_orientations, remedy)
    # With one generator per clip, two terms with this function draw the same numbers.
    turn, draw_height, draw_width = numbers_for_batch("equivariance", count=3, generator=generator)
    first = int(num_others * turn)
    errors = []
    for index in range(num_orientations):
        orientation = 1 + (first + index) % num_others
        turned = _oriented(latent, orientation)
        height = _random_side(turned.shape[-2], min_scale, draw_height)
        width = _random_side(turned.shape[-1], min_scale, draw_width)
        decoded = decode(resized(turned, [height, width]).to(latent.dtype))
        turned_target = _oriented(target, orientation)
        turned_mask = None
        if mask is not None:
            turned_mask = _oriented(mask.expand_as(target), orientation)
        errors.append(_compare(decoded, turned_target, turned_mask, sample_weight, loss))
    return torch.stack(errors).mean()


def scale_equivariance(
    *,
    latent: Tensor,
    decode: Decode,
    target: Video,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    generator: Generators = None,
    factors: Sequence[int] = (2, 4),
    loss: str = "mse",
) -> Scalar:
    """Return the error of the decoded down-scaled latent against the down-scaled video.

    "Improving the Diffusability of Autoencoders" (Skorokhodov et al., arXiv:2502.14831). Height and width are divided
    by one of `factors`, whole numbers, drawn for the whole batch; a latent smaller than its factor becomes one
    position. It costs a pass of the decoder over a latent of 1/4 or 1/16 of the size.

    Args:
        latent, decode, target, sample_weight, mask, generator, loss: See `equivariance`.
        factors: Whole numbers, at least one.

    Raises:
        ValueError: As `equivariance`, or `factors` are something else.
    """
    check_video("latent", latent)
    if not isinstance(factors, (list, tuple)) or not factors:
        raise argument_error(
            "factors",
            "a list of whole numbers",
            describe(factors),
            "Use [2, 4], as the paper does.",
        )
    for factor in factors:
        check_count("factors", factor)
    (draw,) = numbers_for_batch("scale_equivariance", count=1, generator=generator)
    factor = factors[int(len(factors) * draw)]
    height, width = latent.shape[-2:]
    small = resized(latent, [max(height // factor, 1), max(width // factor, 1)])
    return _compare(decode(small.to(latent.dtype)), target, mask, sample_weight, loss)


def latent_masking(
    *,
    latent: Tensor,
    decode: Decode,
    target: Video,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    generator: Generators = None,
    max_ratio: float = 0.75,
    block: int = 1,
    loss: str = "mse",
) -> Scalar:
    """Return the error of the video that is decoded from a latent with masked positions.

    The latent masked reconstruction of SSVAE (Liu et al., arXiv:2512.05394), which draws ratios of 0, 1/4, 1/2 and 3/4.
    Here each clip has a ratio from 0 to `max_ratio`, each position is masked with that probability, and a masked one
    gets the clip's mean of its channel, where the paper learns a token. It costs a full pass of the decoder.

    Args:
        latent, decode, target, sample_weight, mask, generator, loss: See `equivariance`.
        max_ratio: The largest ratio, from 0 to below 1.
        block: Side of the cubes of positions that are masked together.

    Raises:
        ValueError: An argument is out of range, or the decoded video is not a scaled `target`.
    """
    check_video("latent", latent)
    check_fraction("max_ratio", max_ratio, remedy="Use 0.75, as the paper does.")
    check_count("block", block)
    batch = len(latent)
    device = latent.device
    ratio = max_ratio * rand((batch, 1, 1, 1, 1), generator=generator, device=device)
    num_blocks = [math.ceil(size / block) for size in latent.shape[2:]]
    is_masked = rand((batch, 1, *num_blocks), generator=generator, device=device) < ratio
    for axis in (2, 3, 4):
        is_masked = is_masked.repeat_interleave(block, axis).narrow(axis, 0, latent.shape[axis])
    mean, _ = _channel_statistics(latent)
    masked = torch.where(is_masked, mean.to(latent.dtype), latent)
    return _compare(decode(masked), target, mask, sample_weight, loss)


def latent_noise(
    *,
    latent: Tensor,
    decode: Decode,
    target: Video,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    generator: Generators = None,
    scale: float = 0.2,
    loss: str = "mse",
) -> Scalar:
    """Return the error of the video that is decoded from a latent with noise, as a generator's latents have it.

    The noise-augmented decoding of "Diffusion Transformers with Representation Autoencoders" (Zheng et al.,
    arXiv:2510.11690): the noise of each clip has a standard deviation `|n|` with `n ~ N(0, scale^2)`, in units of the
    standard deviation of each channel of the clip. It costs a full pass of the decoder.

    Args:
        latent, decode, target, sample_weight, mask, generator, loss: See `equivariance`.
        scale: Above 0; 0.8 in the paper, whose latents are of high dimension.

    Raises:
        ValueError: An argument is out of range, or the decoded video is not a scaled `target`.
    """
    check_video("latent", latent)
    check_positive("scale", scale, remedy="Set the term's weight to 0 for no noise.")
    draw = partial(randn, generator=generator, device=latent.device, dtype=latent.dtype)
    _, std = _channel_statistics(latent)
    size = scale * draw((len(latent), 1, 1, 1, 1)).abs()
    noisy = latent + size * std.to(latent.dtype) * draw(latent.shape)
    return _compare(decode(noisy), target, mask, sample_weight, loss)


def round_trip(
    *,
    latent: Tensor,
    decode: Decode,
    encode: Encode,
    sample_weight: Tensor | None = None,
    trains: Literal["decoder", "both"] = "decoder",
) -> Scalar:
    """Return the mean absolute difference between a latent and the latent of its decoded video, `|E(D(z)) - z|`.

    The latent consistency of H3AE (arXiv:2504.10567). It costs a full pass of the decoder and of the encoder.
    A latent of smaller values has a smaller loss: with "both", something else has to keep its scale, such as the KL
    divergence.

    Args:
        latent: z, `(B, C, t, h, w)`.
        decode, encode: D and E. The decoded video is not clamped.
        sample_weight: Non-negative weights of the clips `(B,)`, see `weighted_mean`.
        trains: "decoder": the gradient passes through the encoder and reaches the decoder alone; it is computed with
            the value, without second derivatives. "both": it reaches the weights of both, and the latent.

    Raises:
        ValueError: `trains` is something else, the encoded latent has another shape, or "decoder" is to be trained and
            gradients do not pass through the encoder.
    """
    check_choice("trains", trains, ("decoder", "both"))
    if trains == "both":
        return weighted_mean(_absolute_difference(encode(decode(latent)), latent), sample_weight)
    z = latent.detach()
    decoded = decode(z)
    if not decoded.requires_grad:
        return weighted_mean(_absolute_difference(encode(decoded), z), sample_weight)
    leaf = decoded.detach().requires_grad_()
    value = weighted_mean(_absolute_difference(encode(leaf), z), sample_weight)
    # Scaled by the number of values: small gradients would underflow in half precision.
    (gradient,) = differentiate(z.numel() * value, [leaf])
    if gradient is None:
        contract = "an encoder through which gradients pass"
        remedy = "Remove `torch.no_grad` and `detach` from it, or leave the term out."
        raise argument_error("encode", contract, "one that returns a latent without them", remedy)
    return attach_gradients(value, [decoded], [at_least_float32(gradient) / z.numel()])


def _absolute_difference(encoded: Tensor, latent: Tensor) -> Tensor:
    """Return the absolute difference of two latents of one shape, in at least float32."""
    check_same_shape(
        "the encoded latent", encoded, "latent", latent, remedy="Pass the encoder of this latent."
    )
    return (at_least_float32(encoded) - at_least_float32(latent)).abs()


def local_correlation(
    *,
    latent: Tensor,
    sample_weight: Tensor | None = None,
    threshold: float = 0.75,
    first_frame_apart: bool = True,
) -> Scalar:
    """Return how far the correlation of neighbouring latent positions is below `threshold`.

    The local correlation regularisation of SSVAE (Liu et al., arXiv:2512.05394): channels are normalised over the
    clip, and positions correlated (Pearson, over channels) with the others of their window of 2 x 2 x 2, or 2 x 2 in
    the first frame, whose mean counts as much as that of the others. The paper correlates posterior means, has no
    gradient of the normalisation, and trains with one clip to a batch; here `latent` may be a sample, the gradient is
    exact, and each clip is compared.

    Args:
        latent: `(B, C, t, h, w)` with h and w at least 2; the graph is kept. Incomplete windows are left out.
        sample_weight: Non-negative weights of the clips `(B,)`, see `weighted_mean`.
        threshold: From 0 to below 1; 0.75 in the paper. The result is in [0, 1 + threshold], at least float32.
        first_frame_apart: Whether the first latent frame has windows of its own: it encodes one frame alone. Without
            it, its windows reach over time, as in the other frames. Training passes what the autoencoder says.

    Raises:
        ValueError: The latent is too small, or an argument is out of range.
    """
    check_video("latent", latent)
    check_fraction("threshold", threshold, remedy="Use 0.75, as the paper does.")
    if min(latent.shape[-2:]) < 2:
        raise argument_error(
            "latent", "at least 2 positions high and wide", latent, "Use larger clips."
        )
    mean, std = _channel_statistics(latent)
    with autocast_off(latent.device):
        z = (at_least_float32(latent) - mean) / std
        parts = []
        rest = z
        if first_frame_apart:
            parts.append(_window_correlation(z[:, :, :1], 1))
            rest = z[:, :, 1:]
        if rest.shape[2] > 0:
            parts.append(_window_correlation(rest, min(2, rest.shape[2])))
        return weighted_mean(torch.relu(threshold - torch.stack(parts).mean(0)), sample_weight)


def _window_correlation(latent: Tensor, num_frames: int) -> Tensor:
    """Return the mean correlation `(B,)` of pairs of positions in windows of `num_frames` x 2 x 2."""
    # (B, C, t, h, w, n, 2, 2)
    windows = latent.unfold(2, num_frames, num_frames).unfold(3, 2, 2).unfold(4, 2, 2)
    vectors = windows.movedim(1, -1).flatten(1, 3).flatten(2, -2)  # (B, window, position, C)
    vectors = vectors - vectors.mean(-1, keepdim=True)
    unit = vectors * inverse_norms(vectors, _EPSILON, dim=-1)
    n = unit.shape[2]
    # Of the n^2 products, the n of a position with itself are left out.
    products = unit.sum(2).square().sum(-1) - unit.square().sum((2, 3))
    return products.mean(1) / (n * (n - 1))


def _channel_statistics(latent: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each clip's channels, `(B, C, 1, 1, 1)`, at least float32, with a graph."""
    values = at_least_float32(latent)
    axes = (2, 3, 4)
    mean = values.mean(axes, keepdim=True)
    variance = (values - mean).square().mean(axes, keepdim=True)
    return mean, (
        variance + _EPSILON**2
    ).sqrt()  # the gradient is finite for a constant channel, too


def _oriented(video: Tensor, orientation: int) -> Tensor:
    """Return a video or a latent in one of eight orientations: a number of quarter turns, from 4 on of its mirror."""
    if orientation >= 4:
        video = video.flip(-1)
    return torch.rot90(video, k=orientation % 4, dims=(-2, -1))


def resized(video: Tensor, size: list[int]) -> Tensor:
    """Return a video or a latent with frames resized to (height, width), bilinearly and antialiased."""
    frames = at_least_float32(video).transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, size=size, mode="bilinear", antialias=True)
    return frames.unflatten(0, (len(video), -1)).transpose(1, 2)


def _random_side(side: int, min_scale: float, draw: float) -> int:
    """Return a number of positions from `min_scale` of a side up to one less than it, `draw` being in [0, 1)."""
    low = max(int(min_scale * side), 1)
    high = max(side - 1, low)
    return low + int(draw * (high - low + 1))


def _compare(
    decoded: Tensor, target: Tensor, mask: Tensor | None, sample_weight: Tensor | None, loss: str
) -> Scalar:
    """Return the error of a decoded video against the target, resized to its size, over the pixels that count."""
    distance = choose("loss", loss, RECONSTRUCTION_LOSSES)
    size = list(decoded.shape[-2:])
    has_same_size = list(target.shape[-2:]) == size
    with autocast_off(decoded.device):
        fake = at_least_float32(decoded)
        real = target if has_same_size else resized(target, size)
        if mask is None:
            return distance(reconstruction=fake, target=real, weight=sample_weight)
        counts = mask.expand_as(target)
        if not has_same_size:  # a pixel counts if all pixels that it was made of do
            counts = resized(counts.to(fake.dtype), size) > 1 - _EPSILON
        fake = torch.where(counts, fake, real.to(fake.dtype))
        value = distance(reconstruction=fake, target=real, weight=sample_weight)
        return mean_of_counted(value, counts)
