"""Measurement of the latent spaces of autoencoders on clips: `telecine latents`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error, check_type
from telecine.base.devices import pick_device
from telecine.base.precision import tf32
from telecine.base.shapes import Video
from telecine.base.terminal import with_progress
from telecine.data import VideoInfo
from telecine.evaluation.latent_statistics import (
    EPSILON,
    autocorrelation,
    channel_rows,
    code_usage,
    covariance_eigenvalues,
    dead_channels,
    effective_rank,
    high_frequency_share,
    kurtosis,
    radial_spectrum,
)
from telecine.evaluation.load_model import (
    MeasuredModel,
    load_with_clips,
    load_with_data,
)
from telecine.evaluation.metrics.frechet import features_of, load_frechet_network
from telecine.evaluation.protocols.configured import CLIP_SELECTION, ConfiguredClips
from telecine.losses.latent import resized
from telecine.losses.perceptual import pick_frames
from telecine.settings import LatentsConfig
from telecine.settings.data import MEASURED
from telecine.tools.latents.clips import ClipsOnDisk, encode_clips
from telecine.tools.latents.decoding import decode_changes
from telecine.tools.latents.denoising import LEVELS, LatentProbe
from telecine.tools.latents.generator_quality import (
    check_enough_clips,
    measure_frechet,
    velocity_irreducible_variance,
)
from telecine.tools.latents.space import DEFINITIONS, Channels, LatentReport, LatentSpace, Spectrum

MAX_LAG = 8  # positions, of autocorrelations
_IN_SPACE = (3, 4)  # axes of a latent `(B, C, t, h, w)`
_IN_TIME = (2,)


@tf32(False)
def measure_latent_spaces(
    models: Sequence[str | Path | nn.Module],
    config: LatentsConfig,
    probe: Callable[[MeasuredModel], LatentProbe] | None = None,
) -> LatentReport:
    """Measure the latents of models on clips of `config.data`.

    Args:
        models: Folders of runs, of checkpoints or of saved autoencoders, or modules, at least one. Clips have the size
            of the first one's run.
        config: The settings.
        probe: Trains a generator on the latents of a model, see `telecine.tools.latents.probe`. None: no generator.

    Raises:
        ValueError: A model, the data or the size of the clips does not fit; or a model does not offer its latent.
    """
    check_type("config", config, LatentsConfig, 'Use `LatentsConfig(data="my_videos")`.')
    device = pick_device(config.device)
    loaded = _load(models, config, device)
    # The longest part first: it refuses unseen videos that are missing, and resumes if something fails later.
    probes = [None if probe is None else probe(one) for one in loaded.models]
    clips_config = loaded.models[0].clips
    clips = ClipsOnDisk.find(loaded.infos, ConfiguredClips(clips_config, config.clip_limit))
    network = load_frechet_network(config.features, clips_config, device)
    reference = None
    if network is not None:
        progress = with_progress(clips, "features", total=len(clips))
        reference = features_of((video.to(device) for video in progress), network)
        check_enough_clips(reference, name="features", value=config.features, clips="videos")
    base_latents = None if loaded.base is None else encode_clips(loaded.base, clips)
    protocol = _describe(loaded, clips, config)
    if network is not None:
        protocol["features"] = network.origin
    if probe is not None:
        protocol["probe"] = {**asdict(config.probe), "levels": LEVELS}
    spaces = []
    for one, latent_probe in zip(loaded.models, probes, strict=True):
        latents = encode_clips(one, clips)
        frechet = {}
        if network is not None and reference is not None:
            frechet = measure_frechet(one.model, latents, network, reference)
        spaces.append(_measure_space(one, clips, latents, base_latents, frechet, latent_probe))
    return LatentReport(spaces, protocol)


@dataclass(frozen=True)
class _LoadedModels:
    """Models whose latents are measured on the same clips, of the size of the first one's run."""

    models: list[MeasuredModel]
    base: MeasuredModel | None
    """The model from whose latents the drift is measured."""
    infos: list[VideoInfo]
    """The videos of `data`."""


def _load(
    models: Sequence[str | Path | nn.Module], config: LatentsConfig, device: torch.device
) -> _LoadedModels:
    """Load the models and the base model.

    Raises:
        ValueError: One does not fit the clips, or the latents of the base model have another shape.
    """
    first, infos = load_with_data(models[0], config, device)
    config_of_first = replace(config, **first.clips.values_marked(MEASURED))
    measured = [first]
    measured += [load_with_clips(model, config_of_first, device) for model in models[1:]]
    base = None
    if config.base is not None:
        base = load_with_clips(config.base, config_of_first, device)
        blank = torch.zeros(1, first.model.in_channels, *first.clips.val_bucket.shape)
        _check_base(base, measured, blank)
    return _LoadedModels(measured, base, infos)


def _describe(
    loaded: _LoadedModels, clips: ClipsOnDisk, config: LatentsConfig
) -> dict[str, object]:
    """Return what the measures depend on besides the models."""
    num_frames, height, width = clips.config.val_bucket.shape
    return {
        "data": config.data,
        "base": None if loaded.base is None else loaded.base.title,
        "num_clips": len(clips),
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "frame_stride": clips.config.stride,
        "fps": clips.config.fps,
        "places": CLIP_SELECTION,
        "clips_sha256": clips.sha256,
        "noise_seed": 0,
        "samplers": [one.model.describe_decoding() for one in loaded.models],
        "definitions": DEFINITIONS,
    }


def _check_base(base: MeasuredModel, others: Sequence[MeasuredModel], blank: Video) -> None:
    """Raise a `ValueError` if the latents of a clip have another shape than those of the base model."""
    base_shape = tuple(encode_clips(base, [blank]).shape[1:])
    for other in others:
        shape = tuple(encode_clips(other, [blank]).shape[1:])
        if base_shape != shape:
            contract = f"a model with latents of shape {shape}"
            raise argument_error("base", contract, f"one with {base_shape}", "Leave it out.")


def _measure_space(
    measured: MeasuredModel,
    clips: ClipsOnDisk,
    latents: Tensor,
    base_latents: Tensor | None,
    frechet: dict[str, float],
    probe: LatentProbe | None,
) -> LatentSpace:
    """Return the measures of one model on clips, with the drift from the latents of the base model."""
    std_tensor, mean_tensor = torch.std_mean(channel_rows(latents), 1, correction=0)
    std = std_tensor.tolist()
    eigenvalues = covariance_eigenvalues(latents)
    grid = measured.model.latent_grid(*clips.config.val_bucket.shape)
    first_apart = grid is None or grid.first_frame_apart
    small = torch.cat(
        [
            scaled_video(video, latent, first_apart)
            for video, latent in zip(clips, latents.split(1), strict=True)
        ]
    )
    frequency, latent_power = radial_spectrum(latents)
    _, video_power = radial_spectrum(small)
    changes = decode_changes(measured.model, clips, latents, std)
    device = next(measured.model.parameters()).device
    return LatentSpace(
        title=measured.title,
        shape=list(latents.shape[1:]),
        channels=Channels(mean_tensor.tolist(), std, kurtosis(latents), dead_channels(std)),
        eigenvalues=eigenvalues,
        effective_rank=effective_rank(eigenvalues),
        viv=velocity_irreducible_variance(latents),
        spectrum=Spectrum(
            frequency=frequency,
            latent=latent_power,
            video=video_power,
            high_frequencies={
                "latent": high_frequency_share(latents),
                "video": high_frequency_share(small),
            },
        ),
        autocorrelation={
            "space": autocorrelation(latents, _IN_SPACE, MAX_LAG),
            "time": autocorrelation(latents, _IN_TIME, MAX_LAG),
            "video_space": autocorrelation(small, _IN_SPACE, MAX_LAG),
            "video_time": autocorrelation(small, _IN_TIME, MAX_LAG),
        },
        equivariance=changes.equivariance,
        noise_psnr=changes.noise_psnr,
        nested_psnr=changes.nested_psnr,
        codes=code_usage(measured.model.codebook, latents.to(device)),
        drift={} if base_latents is None else _drift(latents, base_latents),
        frechet=frechet,
        probe=probe,
    )


def scaled_video(video: Video, latent: Tensor, first_apart: bool) -> Video:
    """Return the video scaled down to its latent, with the last frame that each latent frame depends on.

    Args:
        video: `(B, C, T, H, W)`.
        latent: `(B, C', t, h, w)`. The result is `(B, C, t, h, w)`.
        first_apart: Whether the first latent frame depends on the first frame alone.
    """
    num_latent = latent.shape[2]
    num_frames = video.shape[2]
    step = (num_frames - first_apart) / max(num_latent - first_apart, 1)
    last = num_frames - 1 - torch.arange(num_latent - 1, -1, -1, device=video.device) * step
    frames = pick_frames(video, last.round().long().expand(len(video), -1))
    picked = frames.unflatten(0, (len(video), -1)).transpose(1, 2)
    return resized(picked, list(latent.shape[-2:]))


def _drift(latents: Tensor, base_latents: Tensor) -> dict[str, list[float] | float]:
    z = channel_rows(latents)
    z_base = channel_rows(base_latents)
    centred = z - z.mean(1, keepdim=True)
    centred_base = z_base - z_base.mean(1, keepdim=True)
    norms = centred.norm(dim=1) * centred_base.norm(dim=1)
    correlation = (centred * centred_base).sum(1) / norms.clamp(min=EPSILON)
    return {
        "correlation": correlation.tolist(),
        "relative_error": ((z - z_base).norm() / z_base.norm()).item(),
    }
