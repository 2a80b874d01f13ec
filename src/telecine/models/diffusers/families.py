"""How each diffusers class is encoded and decoded with gradients. Most classes need only their own methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, TypeGuard

import torch
from einops import rearrange
from torch import Tensor, nn

from telecine.base.checks import argument_error, describe
from telecine.base.shapes import Video
from telecine.losses.perceptual.feature_maps import IMAGENET
from telecine.models.latent import DeterministicPosterior, DiagonalGaussian
from telecine.ops.rms_norm import rms_norm

DiffusersModel: TypeAlias = Any
"""An `nn.Module` whose `encode` and `decode` are called as those of diffusers' autoencoders; diffusers is untyped."""

_LatentPosterior: TypeAlias = DiagonalGaussian | DeterministicPosterior
_Decoded: TypeAlias = tuple[Video, dict[str, Tensor]]
"""The output of a decoder, and the losses of a quantizer inside it by name, 0-d."""

_Colours: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel in [0, 1], by which a model's colours are normalised."""
_BLACK_TO_WHITE: _Colours = ((0.0,), (1.0,))
# Frames of a latent frame of Wan, QwenImage and Magvit.
TIME_COMPRESSION = 4
_UNSUPPORTED_REMEDY = (
    "Wrap the model in a module whose `forward` maps (B, 3, T, H, W) to the same shape."
)
# Classes are known by name, because the installed version of diffusers may lack some of them.
_AUDIO = "which is of audio"
_DIFFUSION = "whose decoder is a diffusion model: it learns to denoise, not to reconstruct"
_PROTEINS = "which is of proteins"
REFUSED = {
    "AutoencoderKLKVAEAudio": _AUDIO,
    "AutoencoderKLLTX2Audio": _AUDIO,
    "AutoencoderKLMiniMaxH3Audio": _AUDIO,
    "AutoencoderOobleck": _AUDIO,
    "AutoencoderSAME": _AUDIO,
    "ConsistencyDecoderVAE": _DIFFUSION,
    "Cosmos3AVAEAudioTokenizer": _AUDIO,
    "LongCatAudioDiTVae": _AUDIO,
    "MMAudioVAE": _AUDIO,
    "MMAudioVocoder": _AUDIO,
    "MiniMaxMusic3Vocoder": _AUDIO,
    "RFD4ProteinaAutoencoder": _PROTEINS,
}
"""Autoencoders that are not trained, with the reason."""
# Norms of channels with `scale`, `gamma` and `bias`, for which `rms_norm` stands in while a model trains.
RMS_NORMS = {
    "HunyuanImageRefinerRMS_norm",
    "HunyuanVideo15RMS_norm",
    "QwenImage21RMS_norm",
    "QwenImageRMS_norm",
    "WanRMS_norm",
}


def class_names(cls: type) -> list[str]:
    """Return the names of a class and of its base classes, the nearest first."""
    return [parent.__name__ for parent in cls.__mro__]


def _declared_channels(module: DiffusersModel) -> int:
    """Return the channels of a model's video, as its configuration says; 3 if it does not say."""
    config = getattr(module, "config", {})
    # Mochi's input has Fourier features as well, and some classes have one number for input and output.
    for name in ("out_channels", "in_channels", "input_channels"):
        if name in config:
            return config[name]
    return 3


def _unpatched_channels(module: DiffusersModel) -> int:
    """Return the channels of a model whose configuration counts those of patches."""
    patch_size = getattr(module.config, "patch_size", None) or 1
    return _declared_channels(module) // patch_size**2


def _colours_without_alpha(module: DiffusersModel) -> int:
    """Return 3: alpha is added and removed by the family."""
    return 3


@dataclass(frozen=True)
class Family:
    """How the models of a class are called."""

    encoder: Callable[..., _LatentPosterior]
    """From the model and a video `(B, C, T, H, W)` in [-1, 1] to the posterior."""
    decoder: Callable[..., _Decoded]
    """From the model and a latent `(B, C, t, h, w)`, and perhaps the level of its noise `(B,)`, to the video."""
    in_channels: Callable[[DiffusersModel], int] = _declared_channels
    """From the model to the channels of its video."""
    widens: Literal["no", "pixels", "patches"] = "pixels"
    """Whether the first and last layer can be widened to other channels: "no"; "pixels", if they see pixels; "patches",
    if they see patches whose values are ordered by channel."""
    colours: _Colours | None = None
    """How colours are normalised, if the model does not see [-1, 1]."""
    only_side: str | None = None
    """The model's attribute with the height and width of the only frames that it reconstructs; None for any size."""
    first_frame_apart: bool | str = True
    """Whether a latent frame belongs to the first frame alone, or the model's attribute that says so."""

    def encode(self, module: DiffusersModel, video: Video) -> _LatentPosterior:
        """Return the posterior of `(B, C, T, H, W)` in [-1, 1]; the model's caches are empty afterwards."""
        video = video.to(next(module.parameters()).dtype)
        if self.colours is not None:
            mean, std = video.new_tensor(self.colours).view(2, 1, -1, 1, 1, 1)
            video = ((video + 1) / 2 - mean) / std
        try:
            return self.encoder(module, video)
        finally:
            clear_caches(module)

    def decode(
        self, module: DiffusersModel, latent: Tensor, level: Tensor | None = None
    ) -> _Decoded:
        """Return the video of a latent, not clamped, and losses; the model's caches are empty afterwards.

        Args:
            module: The model.
            latent: `(B, C, t, h, w)`.
            level: The level of noise of each latent, `(B,)`, for models that `takes_level`; by default 0.
        """
        latent = latent.to(next(module.parameters()).dtype)
        try:
            if level is None:
                video, losses = self.decoder(module, latent)
            else:
                video, losses = self.decoder(module, latent, level)
        finally:
            clear_caches(module)
        if self.colours is not None:
            mean, std = video.new_tensor(self.colours).view(2, 1, -1, 1, 1, 1)
            video = (video * std + mean) * 2 - 1
        return video, losses

    def encode_mode(self, module: DiffusersModel, video: Video) -> Tensor:
        """Return the mode of the posterior, `(B, C, t, h, w)`."""
        return self.encode(module, video).mode()

    def reconstruct(self, module: DiffusersModel, video: Video) -> Video:
        """Return the reconstruction from the mode of the posterior."""
        return self.decode(module, self.encode_mode(module, video))[0]


def clear_caches(module: DiffusersModel) -> None:
    """Clear the frames that a model caches between chunks: they keep the graph alive, and are wrong after an error."""
    if hasattr(module, "clear_cache"):
        module.clear_cache()
    if hasattr(module, "_clear_conv_cache"):
        module._clear_conv_cache()
    if hasattr(module, "_empty_causal_cached"):  # of VidTok
        module._empty_causal_cached(module)


def check_class(name: str, cls: type) -> None:
    """Check that neither a class nor a base class is one of `REFUSED`.

    Raises:
        ValueError: One is; the message names the argument `name`.
    """
    for class_name in class_names(cls):
        if class_name in REFUSED:
            contract = "an autoencoder of images or video that reconstructs"
            raise argument_error(
                name, contract, f"{cls.__name__}, {REFUSED[class_name]}", "Use another model."
            )


def family_of(module: nn.Module) -> Family:
    """Return how a model is called: by its class or a base class in `FAMILIES`, or of frames if no weight is 3D.

    Raises:
        TypeError: The model has no `encode` or `decode`.
        ValueError: Its class is one of `REFUSED`.
    """
    check_class("module", type(module))
    for name in ("encode", "decode"):
        if not callable(getattr(module, name, None)):
            got = f"{type(module).__name__} without `{name}`"
            raise argument_error(
                "module", "a model with `encode` and `decode`", got, _UNSUPPORTED_REMEDY, TypeError
            )
    for name in class_names(type(module)):
        if name in FAMILIES:
            return FAMILIES[name]
    if all(parameter.ndim < 5 for parameter in module.parameters()):
        return _OF_FRAMES
    return Family(_encode_clips, _decode_clips)


def _read_posterior(output: object) -> _LatentPosterior:
    """Return the posterior in the output of `encode`; 0-d tensors that follow it are a quantizer's losses."""
    first: Any = output
    others: Sequence[object] = ()
    if isinstance(output, tuple):
        first = output[0]
        others = output[1:]
    for name in ("latent_dist", "latents", "latent"):
        first = getattr(first, name, first)
    if isinstance(getattr(first, "logvar", None), Tensor):
        # Only the moments are used: diffusers' own class sums the KL divergence of videos over the wrong axes.
        return DiagonalGaussian(mean=first.mean, logvar=first.logvar)
    if not isinstance(first, Tensor) and hasattr(first, "mode"):
        first = first.mode()
    if not isinstance(first, Tensor):
        contract = "a posterior (`latent_dist`), a latent, or a tuple that starts with one"
        raise argument_error(
            "the output of `encode`", contract, describe(output), _UNSUPPORTED_REMEDY
        )
    losses = [extra for extra in others if _is_loss(extra)]
    if not losses:
        return DeterministicPosterior(first)
    return DeterministicPosterior(first, {"quantizer_loss": torch.stack(losses).sum()})


def _is_loss(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()


def _read_decoded(output: object) -> _Decoded:
    """Return the video in the output of `decode`: an object with `sample`, a tensor, or a tuple of one and more."""
    first = output[0] if isinstance(output, tuple) else output
    video = getattr(first, "sample", first)
    if not isinstance(video, Tensor):
        contract = "a video (`sample`) or a tensor"
        raise argument_error(
            "the output of `decode`", contract, describe(output), _UNSUPPORTED_REMEDY
        )
    loss = getattr(first, "commit_loss", None)
    if loss is None:
        return video, {}
    return video, {"commit_loss": loss.mean()}


def _encode_clips(module: DiffusersModel, video: Video) -> _LatentPosterior:
    return _read_posterior(module.encode(video))


def takes_level(module: DiffusersModel) -> bool:
    """Return whether a decoder is told the level of noise of its latent, as LTX-Video's is from 0.9.1 on."""
    config = getattr(module, "config", None)
    return bool(getattr(config, "timestep_conditioning", False))


def _decode_clips(module: DiffusersModel, latent: Tensor, level: Tensor | None = None) -> _Decoded:
    if not takes_level(module):
        return _read_decoded(module.decode(latent))
    if level is None:
        level = latent.new_zeros(len(latent))
    return _read_decoded(module.decode(latent, temb=level.to(latent.dtype)))


def _frames_from_clips(video: Video, as_clips: bool = False) -> Tensor:
    """Return the frames `(B*T, C, H, W)` of `(B, C, T, H, W)`; `as_clips` of one frame, `(B*T, C, 1, H, W)`."""
    frames = video.transpose(1, 2).flatten(0, 1)
    return frames[:, :, None] if as_clips else frames


def _clips_from_frames(frames: Tensor, batch: int) -> Video:
    """Return the clips `(B, C, T, H, W)` of frames `(B*T, C, H, W)` or `(B*T, C, 1, H, W)`."""
    return frames.flatten(1, -3).unflatten(0, (batch, -1)).transpose(1, 2)


def _encode_frames(
    module: DiffusersModel, video: Video, *, as_clips: bool = False
) -> _LatentPosterior:
    posterior = _read_posterior(module.encode(_frames_from_clips(video, as_clips)))
    if isinstance(posterior, DeterministicPosterior):
        return DeterministicPosterior(
            _clips_from_frames(posterior.latent, len(video)), posterior.losses
        )
    mean = _clips_from_frames(posterior.mean, len(video))
    logvar = _clips_from_frames(posterior.logvar, len(video))
    return DiagonalGaussian(mean=mean, logvar=logvar)


def _decode_frames(module: DiffusersModel, latent: Tensor) -> _Decoded:
    frames, losses = _read_decoded(module.decode(_frames_from_clips(latent)))
    return _clips_from_frames(frames, len(latent)), losses


def _decode_frames_together(module: DiffusersModel, latent: Tensor) -> _Decoded:
    """Decode the frames of clips, of which the decoder mixes `num_frames`."""
    frames, losses = _read_decoded(
        module.decode(_frames_from_clips(latent), num_frames=latent.shape[2])
    )
    return _clips_from_frames(frames, len(latent)), losses


def _decode_rae(module: DiffusersModel, latent: Tensor) -> _Decoded:
    return _decode_frames(
        module, latent.contiguous()
    )  # the class views height and width as one axis


def _encode_allegro(module: DiffusersModel, video: Video) -> _LatentPosterior:
    """Encode whole clips; Allegro's own `encode` only works with tiles."""
    moments = module.quant_conv(_frames_from_clips(module.encoder(video)))
    mean, logvar = _clips_from_frames(moments, len(video)).chunk(2, dim=1)
    return DiagonalGaussian(mean=mean, logvar=logvar)


def _decode_allegro(module: DiffusersModel, latent: Tensor) -> _Decoded:
    features = _clips_from_frames(module.post_quant_conv(_frames_from_clips(latent)), len(latent))
    return module.decoder(features), {}


def _encode_mean(module: DiffusersModel, video: Video) -> _LatentPosterior:
    """Return only the mean: the class returns a constant variance of 1, which it was not trained with."""
    return DeterministicPosterior(module.encode(video).latent_dist.mode())


def _encode_qwen21(module: DiffusersModel, video: Video) -> _LatentPosterior:
    """Encode each frame, with an opaque alpha channel added if the model has one."""
    if module.config.in_channels == 4:
        video = torch.cat([video, torch.ones_like(video[:, :1])], dim=1)
    return _encode_frames(module, video, as_clips=True)


def _decode_qwen21(module: DiffusersModel, latent: Tensor) -> _Decoded:
    frames, losses = _decode_wan(
        module, _frames_from_clips(latent, as_clips=True), names_first_chunk=True
    )
    return _clips_from_frames(frames, len(latent))[:, :3], losses


def _encode_vidtok(module: DiffusersModel, video: Video) -> _LatentPosterior:
    """Encode clips with copies of their first frame prepended, as the class's own `forward` does."""
    if module.is_causal:
        copies = video[:, :, :1].expand(-1, -1, module.temporal_compression_ratio - 1, -1, -1)
        video = torch.cat([copies, video], dim=2)
    return _encode_clips(module, video)


# Wan and QwenImage call their networks once for each latent frame, and keep frames for the next call. Training knows
# the whole clip: one call without kept frames, with the causal padding of the convolutions, has the same values. Only
# the temporal resampling, which leaves the first frame apart, works with kept frames alone. The classes' own `decode`
# clamps to [-1, 1], and has no gradient outside of this range.
def _encode_wan(
    module: DiffusersModel, video: Video, *, num_frames: int | None = None
) -> _LatentPosterior:
    """Encode whole clips; or the first frame, then chunks of `num_frames` frames."""
    if (
        num_frames is None and not torch.is_grad_enabled()
    ):  # without a graph, the class's own chunks need less memory
        return _encode_clips(module, video)
    num_complete = (video.shape[2] - 1) // TIME_COMPRESSION * TIME_COMPRESSION + 1
    video = video[:, :, :num_complete]  # as the class does
    patch = getattr(module.config, "patch_size", None)
    if patch:
        video = rearrange(video, "b c t (h q) (w r) -> b (c r q) t h w", q=patch, r=patch)
    if num_frames is None:
        moments = module.encoder(video)
    else:
        kept = [None] * module._cached_conv_counts["encoder"]
        chunks = _first_and_chunks(video, num_frames)
        parts = [module.encoder(chunk, feat_cache=kept, feat_idx=[0]) for chunk in chunks]
        moments = torch.cat(parts, dim=2)
    mean, logvar = module.quant_conv(moments).chunk(2, dim=1)
    return DiagonalGaussian(mean=mean, logvar=logvar)


def _decode_wan(
    module: DiffusersModel,
    latent: Tensor,
    *,
    num_frames: int | None = None,
    names_first_chunk: bool = False,
) -> _Decoded:
    """Decode whole latents; or the first latent frame, then chunks of `num_frames` video frames.

    With `names_first_chunk`, the decoder takes an argument that says whether it is called for the first chunk.
    """
    if num_frames is None and not torch.is_grad_enabled():
        num_frames = TIME_COMPRESSION
    first_options = {"first_chunk": True} if names_first_chunk else {}
    latent = module.post_quant_conv(latent)
    if num_frames is None:
        video = module.decoder(latent, **first_options)
    else:
        first, *chunks = _first_and_chunks(latent, num_frames // TIME_COMPRESSION)
        kept = [None] * module._cached_conv_counts["decoder"]
        parts = [module.decoder(first, feat_cache=kept, feat_idx=[0], **first_options)]
        parts += [module.decoder(chunk, feat_cache=kept, feat_idx=[0]) for chunk in chunks]
        video = torch.cat(parts, dim=2)
    patch = getattr(module.config, "patch_size", None)
    if patch:
        video = rearrange(video, "b (c r q) t h w -> b c t (h q) (w r)", q=patch, r=patch)
    return video, {}


def _first_and_chunks(video: Tensor, num_frames: int) -> list[Tensor]:
    """Return the first frame, and the others in chunks of `num_frames` frames."""
    chunks = [video[:, :, :1]]
    if video.shape[2] > 1:
        chunks.extend(video[:, :, 1:].split(num_frames, dim=2))
    return chunks


def _downsample_time(
    resample: DiffusersModel, args: Any, kwargs: Any, output: Video
) -> Video | None:
    """Halve the frames after the first, if none are kept from a call before."""
    if _keeps_frames(args, kwargs) or output.shape[2] == 1:
        return None
    return torch.cat([output[:, :, :1], resample.time_conv(output)], dim=2)


def _upsample_time(
    resample: DiffusersModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Double the frames after the first, if none are kept from a call before."""
    if _keeps_frames(args, kwargs) or args[0].shape[2] == 1:
        return None
    video, *others = args
    doubled = rearrange(resample.time_conv(video[:, :, 1:]), "b (n c) t h w -> b c (t n) h w", n=2)
    return (torch.cat([video[:, :, :1], doubled], dim=2), *others), kwargs


def _keeps_frames(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return len(args) > 1 or kwargs.get("feat_cache") is not None


def _normalise(norm: DiffusersModel, x: Tensor) -> Tensor:
    """Return what a norm's own `forward` does, which runs where nothing is trained, or code is compiled."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad):
        return type(norm).forward(norm, x)
    normed = rms_norm(x, norm.scale * norm.gamma)
    if isinstance(norm.bias, Tensor):
        normed = normed + norm.bias
    return normed


_OF_FRAMES = Family(_encode_frames, _decode_frames)
FAMILIES = {
    "AutoencoderKLAllegro": Family(_encode_allegro, _decode_allegro, first_frame_apart=False),
    "AutoencoderKLKVAEVideo": Family(_encode_mean, _decode_clips),
    "AutoencoderKLLTXVideo": Family(_encode_clips, _decode_clips, widens="patches"),
    "AutoencoderKLLTX2Video": Family(_encode_clips, _decode_clips, widens="patches"),
    "AutoencoderKLMiniMaxH3": Family(_encode_clips, _decode_clips, widens="no", colours=IMAGENET),
    "AutoencoderKLQwenImage": Family(_encode_wan, _decode_wan),
    "AutoencoderKLQwenImage21": Family(
        _encode_qwen21,
        _decode_qwen21,
        in_channels=_colours_without_alpha,
        widens="no",
    ),
    "AutoencoderKLTemporalDecoder": Family(_encode_frames, _decode_frames_together),
    "AutoencoderKLWan": Family(
        _encode_wan,
        partial(_decode_wan, names_first_chunk=True),
        in_channels=_unpatched_channels,
        widens="patches",
    ),
    "AutoencoderRAE": Family(
        _encode_frames,
        _decode_rae,
        widens="no",
        colours=_BLACK_TO_WHITE,
        only_side="decoder_image_size",
    ),
    "AutoencoderVidTok": Family(_encode_vidtok, _decode_clips, first_frame_apart="is_causal"),
}
"""Classes that need more than their own `encode` and `decode`."""


def prepare_for_training(module: DiffusersModel) -> None:
    """Disable tiles, which change outputs and gradients, and slices of the batch; enable whole clips and `rms_norm`."""
    for layer in module.modules():
        if type(layer).__name__ in RMS_NORMS and layer.channel_first:
            layer.forward = partial(_normalise, layer)
        if hasattr(layer, "time_conv"):
            _let_resample_whole_clips(layer)
    for flag in ("use_tiling", "use_slicing", "use_framewise_encoding", "use_framewise_decoding"):
        if hasattr(module, flag):
            setattr(module, flag, False)
    if "AutoencoderKLHunyuanVideo15" in class_names(type(module)):
        module.enable_slicing()  # its attention only supports one clip at a time


def _let_resample_whole_clips(resample: DiffusersModel) -> None:
    """Add the hooks of a temporal resampling of Wan and QwenImage, if the model was not wrapped before."""
    mode = getattr(resample, "mode", None)
    if mode == "downsample3d" and _downsample_time not in resample._forward_hooks.values():
        resample.register_forward_hook(_downsample_time, with_kwargs=True)
    if mode == "upsample3d" and _upsample_time not in resample._forward_pre_hooks.values():
        resample.register_forward_pre_hook(_upsample_time, with_kwargs=True)
