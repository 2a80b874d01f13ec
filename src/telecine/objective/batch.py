"""The arguments of a call, checked: videos, masks, sample weights, auxiliary losses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TypedDict, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from telecine.base.checks import argument_error, describe
from telecine.base.precision import at_least_float32
from telecine.base.randomness import Generators, rand, randint
from telecine.base.shapes import RGBA, Scalar, Video, check_video_pair, check_weights
from telecine.discriminators import augment
from telecine.losses import (
    AuxLoss,
    AuxLosses,
    Decode,
    Encode,
    Gaussian,
    Reduction,
    posterior_kl,
)
from telecine.losses.perceptual import pick_frames
from telecine.objective.gradient_probes import GradientProbe, choose_probe
from telecine.settings import GANConfig, ObjectiveConfig


class BatchOptions(TypedDict, total=False):
    """The optional arguments of a call."""

    regularization_log: AuxLosses | None
    """Replaces `aux_losses` in sgm-style engines: its entries named "...loss" or "loss/..."."""
    mask: Tensor | None
    """Bool, broadcasts to the videos. Where it is False the reconstruction counts as perfect in every term of both
    steps, and reconstruction errors are means over the rest."""
    sample_weight: Tensor | None
    """`(B,)`, finite and not negative, multiplies each clip's reconstruction and perceptual errors. Like the range of
    `inputs`, values are checked on the CPU only."""
    generator: Generators
    """Source of the random frames and of a penalty's noise, on the videos' device: one, or one for each clip."""
    grad_hook: Callable[[Tensor], None] | None
    """Called once in the caller's backward, with the part of the gradient at the reconstructions that the
    discriminators cause."""
    latent: Tensor | None
    """The latent `(B, ...)` that `reconstructions` were decoded from, for terms that look at it. Unlike the gradients
    of other terms, theirs are computed by the caller's `backward()`."""
    decode: Decode | None
    """The decoder, a function of a latent, for terms that decode a changed one."""
    encode: Encode | None
    """The encoder, from a video to the mode of its posterior, for terms that encode a decoded one."""
    model: nn.Module | None
    """The trained autoencoder, for terms that look at its layers."""
    first_frame_apart: bool
    """Whether the first frame of `latent` encodes the first frame alone, which is the default."""
    range_is_known: bool
    """Whether the range of `inputs` is known to be [-1, 1], as of clips that telecine has decoded. Bright clips without
    a value below 0 are then no warning."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The checked arguments of one call, and what is computed from them for all terms.

    Terms of pixels compare `reconstruction` with `target`, those of the GAN `fake` with `real`.
    """

    target: Video
    """The inputs in at least float32."""
    reconstruction: Video
    """The reconstructions in at least float32. Masked-out pixels are copied from `target`: no term trains them."""
    reconstruction_for_gan: Video
    """A view of `reconstruction`, whose gradient is the part that the discriminators cause."""
    real: Video
    """What the discriminators see of `target`: all of it, or `gan.window` frames, with the changes of `gan.augment`."""
    fake: Video
    """What they see of `reconstruction_for_gan`: the same frames, with the same changes."""
    background: Tensor | float
    """The colour `(B, 3)` behind RGBA for networks that know RGB: with gradients random, else mid-grey."""
    mask: Tensor | None
    """See `BatchOptions`."""
    sample_weight: Tensor | None
    """See `BatchOptions`."""
    clip_weight: Tensor | None
    """Weight of each clip's error `(B,)`, or `None` for 1: `sample_weight` over the fraction of pixels that count."""
    num_elements: Tensor | float
    """Factor of the negative log-likelihood: for a sum, the number of values of a clip that count; for a mean, 1."""
    aux: dict[str, Scalar]
    """The auxiliary losses by name. A loss that was passed without a name has the name ""."""
    posterior: Gaussian | None
    """The posterior among the auxiliary losses."""
    grad_at: GradientProbe | None
    """Where the adaptive weight compares gradients: the last layer, or the reconstructions as they were passed."""
    rng: Generators
    """The source of random numbers."""
    split: str
    """The prefix of the log's keys."""
    options: BatchOptions
    """The optional arguments as they were passed."""


def make_batch(
    config: ObjectiveConfig,
    inputs: Tensor,
    reconstructions: Tensor,
    aux_losses: AuxLosses | AuxLoss | None,
    last_layer: Tensor | GradientProbe | None,
    split: str = "train",
    **options: Unpack[BatchOptions],
) -> Batch:
    """Return the checked inputs of the terms.

    Args:
        config: The settings of the objective.
        inputs, reconstructions, aux_losses, last_layer, split: The arguments of `VideoAutoencoderLoss`.
        options: See `BatchOptions`.

    Raises:
        TypeError: An option does not exist.
        ValueError: An argument breaks the contract of `VideoAutoencoderLoss`.
    """
    unknown = options.keys() - BatchOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"VideoAutoencoderLoss has no argument {sorted(unknown)[0]!r}")
    check_video_pair(inputs, reconstructions, range_is_known=options.get("range_is_known", False))
    mask = options.get("mask")
    if mask is not None:
        _check_mask(mask, inputs)
        mask = _without_inference_mode(mask)
    sample_weight = options.get("sample_weight")
    if sample_weight is not None:
        contract = f"of shape ({len(inputs)},)"
        remedy = "Pass one weight per clip."
        if isinstance(sample_weight, Tensor) and not sample_weight.is_floating_point():
            remedy = "Convert it with `sample_weight.float()`."
        _check_per_clip("sample_weight", sample_weight, inputs, contract, remedy, num_axes=1)
        check_weights("sample_weight", sample_weight)
        sample_weight = _without_inference_mode(sample_weight)
    latent = options.get("latent")
    if latent is not None:
        contract = f"of {len(inputs)} clips"
        _check_per_clip(
            "latent", latent, inputs, contract, "Pass the autoencoder's `output.latent`."
        )

    # In float32, where the gradients of all terms are added: half precision would round small ones to zero.
    target = at_least_float32(_without_inference_mode(inputs.detach()))
    reconstructions = at_least_float32(_without_inference_mode(reconstructions))
    reconstruction = reconstructions
    fraction: Tensor | float = 1.0  # of the values that count
    if mask is not None:
        # A masked-out target that is not finite would reach every term.
        target = torch.where(mask | torch.isfinite(target), target, torch.zeros_like(target))
        reconstruction = torch.where(mask, reconstructions, target.to(reconstructions.dtype))
        fraction = mask.expand_as(target).float().mean()
    if target.shape[1] == RGBA:
        # The colour of a transparent pixel is arbitrary: there, the reconstruction's counts as perfect.
        is_counted = (target[:, 3:] > -1).expand_as(target).clone()
        is_counted[:, 3] = True
        reconstruction = torch.where(is_counted, reconstruction, target.to(reconstruction.dtype))
    num_elements: Tensor | float = 1
    reduction = config.reconstruction.nll_reduction
    if reduction == "sum":
        num_elements = reconstruction[0].numel() * fraction

    rng = options.get("generator")
    reconstruction_for_gan = reconstruction.view_as(reconstruction)
    real, fake = _windowed_and_augmented(target, reconstruction_for_gan, config.gan, rng)
    background: Tensor | float = 0.0
    if target.shape[1] == RGBA and torch.is_grad_enabled():
        background = 2 * rand((len(target), 3), generator=rng, device=target.device) - 1
    aux = _named_aux_losses(aux_losses, options.get("regularization_log"), target.device, reduction)
    return Batch(
        target=target,
        reconstruction=reconstruction,
        reconstruction_for_gan=reconstruction_for_gan,
        real=real,
        fake=fake,
        background=background,
        mask=mask,
        sample_weight=sample_weight,
        clip_weight=_clip_weights(mask, sample_weight, fraction, target),
        num_elements=num_elements,
        aux=aux,
        posterior=_posterior_of(aux_losses),
        grad_at=choose_probe(config.adaptive_weight.at, last_layer, reconstructions),
        rng=rng,
        split=split,
        options=options,
    )


def _windowed_and_augmented(
    real: Video, fake: Video, config: GANConfig, rng: Generators
) -> tuple[Video, Video]:
    """Return `window` consecutive frames of each longer clip with random changes, the same ones of both videos."""
    num_frames = real.shape[2]
    if config.window is not None and config.window < num_frames:
        num_starts = num_frames - config.window + 1
        first = randint(num_starts, (len(real), 1), generator=rng, device=real.device)
        indices = first + torch.arange(config.window, device=real.device)
        real = _clips_of(real, indices)
        fake = _clips_of(fake, indices)
    if config.augment:
        real, fake = augment((real, fake), config.augment, rng)
    return real, fake


def _clips_of(video: Video, indices: Tensor) -> Video:
    """Return the frames `indices` `(B, k)` of each clip as a video."""
    return pick_frames(video, indices).unflatten(0, (len(video), -1)).transpose(1, 2)


def _clip_weights(
    mask: Tensor | None, sample_weight: Tensor | None, fraction: Tensor | float, videos: Video
) -> Tensor | None:
    """Return the weight of each clip's error, `(B,)` in float32; None for 1.

    An error is averaged over a whole video, of which only a fraction can differ from 0. Divided by that fraction it is
    the mean over what counts. If nothing counts, the weights are 0.
    """
    if mask is None and sample_weight is None:
        return None
    if sample_weight is None:
        weight = torch.ones(len(videos), device=videos.device)
    else:
        weight = sample_weight.float()
    if isinstance(fraction, float):
        return weight
    return weight * torch.where(fraction > 0, 1 / fraction, torch.zeros_like(fraction))


def _posterior_of(aux_losses: AuxLosses | AuxLoss | None) -> Gaussian | None:
    """Return the first posterior among auxiliary losses; None without one."""
    values = aux_losses.values() if isinstance(aux_losses, Mapping) else [aux_losses]
    for value in values:
        if hasattr(value, "logvar"):
            return cast(Gaussian, value)
    return None


def _named_aux_losses(
    aux_losses: AuxLosses | AuxLoss | None,
    regularization_log: AuxLosses | None,
    device: torch.device,
    kl_reduction: Reduction,
) -> dict[str, Scalar]:
    if aux_losses is None:
        aux_losses = {}
        for name, value in (regularization_log or {}).items():
            if name.endswith("loss") or name.startswith("loss/"):
                aux_losses[name] = value
    if not isinstance(aux_losses, Mapping):
        name = "kl_loss" if hasattr(aux_losses, "logvar") else ""
        aux_losses = {name: aux_losses}
    return {
        str(name): _aux_loss(name, value, device, kl_reduction)
        for name, value in aux_losses.items()
    }


def _aux_loss(name: str, value: object, device: torch.device, kl_reduction: Reduction) -> Scalar:
    argument = f"aux_losses[{name!r}]" if name else "aux_losses"
    contract = (
        "a number, a floating-point tensor of one element, or a posterior with `mean` and `logvar`"
    )
    if isinstance(value, Real) and not isinstance(value, bool):
        # `torch.tensor` would synchronise with the device.
        return torch.full((), float(value), device=device)
    if hasattr(value, "logvar"):
        return posterior_kl(value, reduction=kl_reduction)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise argument_error(
            argument, contract, describe(value), "Pass a dict to name several losses."
        )
    if value.numel() != 1:
        raise argument_error(
            argument, contract, value, "Reduce it first, for instance with `.mean()`."
        )
    return value.reshape(()).to(device, torch.promote_types(value.dtype, torch.float32))


def _without_inference_mode(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd can record: a copy of one that was made in inference mode."""
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return tensor.clone()
    return tensor


def _check_mask(mask: object, videos: Video) -> None:
    contract = f"a bool tensor that broadcasts to {tuple(videos.shape)} on {videos.device}, True for what counts"
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.device != videos.device:
        remedy = "Make one with, for instance, `weights > 0`."
        if isinstance(mask, Tensor) and mask.dtype != torch.bool:
            remedy = "Convert a mask of 0 and 1 with `mask.bool()`."
        raise argument_error("mask", contract, describe(mask), remedy)
    if mask.ndim != videos.ndim or any(
        n not in (1, full) for n, full in zip(mask.shape, videos.shape, strict=True)
    ):
        remedy = "Keep all five axes: (B, 1, T, 1, 1) masks frames, (B, 1, T, H, W) masks pixels."
        raise argument_error("mask", contract, mask, remedy)


def _check_per_clip(
    name: str,
    value: object,
    videos: Video,
    contract: str,
    remedy: str,
    *,
    num_axes: int | None = None,
) -> None:
    if (
        not isinstance(value, Tensor)
        or not value.is_floating_point()
        or value.device != videos.device
        or value.shape[:1] != videos.shape[:1]
        or num_axes not in (None, value.ndim)
    ):
        raise argument_error(
            name, f"a floating-point tensor {contract} on {videos.device}", describe(value), remedy
        )
