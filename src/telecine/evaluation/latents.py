"""Measurement of the latent space of autoencoders: `telecine latents`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from telecine.autoencoders import VideoAutoencoder
from telecine.autoencoders.latent import ChannelMoments
from telecine.base.checks import argument_error
from telecine.base.devices import pick_device
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.base.terminal import with_progress
from telecine.data import DataError, Span, bytes_from_video, clips_sha256, pixels_sha256
from telecine.evaluation.latent_measures import (
    DEAD_FRACTION,
    HIGH_FREQUENCY,
    autocorrelation,
    code_usage,
    covariance_eigenvalues,
    dead_channels,
    effective_rank,
    high_frequency_share,
    kurtosis,
    radial_spectrum,
    scaled_video,
)
from telecine.evaluation.pixel_metrics import psnr
from telecine.evaluation.source import CLIP_SELECTION, ModelSource, index_data, model_source, read_span, select_clips
from telecine.losses import mse
from telecine.losses.latent import resized
from telecine.settings import ClipConfig, LatentsConfig

# Standard deviation of the noise on the latent, in units of each channel's.
NOISE = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
MAX_LAG = 8
DEFINITIONS = {
    "latent": "the mode of the posterior",
    "channels": f"kurtosis: 3 for a normal distribution; dead: a standard deviation of at most {DEAD_FRACTION:g} times "
    "the largest",
    "effective_rank": "exp of the entropy of the covariance eigenvalues' shares",
    "spectrum": "share of the spatial power by frequency in cycles per position, channels standardised, the mean of "
    f"each frame left out; high_frequencies: the share above {HIGH_FREQUENCY:g}. Of the video: scaled down to the "
    "latent's height and width, one frame for each latent frame",
    "autocorrelation": "of positions 1, 2, ... apart, channels standardised; space: mean of both directions",
    "equivariance": "mean squared error, in [0, 4], and PSNR of the decoded transformed latent against the transformed "
    "video; scale_1/2: bilinear, antialiased; turn_90: counterclockwise",
    "noise": "PSNR against the video of the decoded latent plus normal noise, by its standard deviation in units of "
    "each channel's",
    "codes": "of a discrete bottleneck: share of the codebook that occurs in the clips, entropy of the frequencies in "
    "bits, and 2 to that power; means over the codes of a position",
    "drift": "from the base model's latent of the same clips: correlation of each channel, and |z - z_base| / |z_base|",
}

Transform = Callable[[Tensor], Tensor]


def half_size(x: Tensor) -> Tensor:
    """Scale height and width by 1/2."""
    return resized(x, [max(side // 2, 1) for side in x.shape[-2:]])


TRANSFORMS: dict[str, Transform] = {
    "scale_1/2": half_size,
    "flip_horizontal": partial(torch.flip, dims=(-1,)),
    "flip_vertical": partial(torch.flip, dims=(-2,)),
    "turn_90": partial(torch.rot90, k=1, dims=(-2, -1)),
    "turn_180": partial(torch.rot90, k=2, dims=(-2, -1)),
    "turn_270": partial(torch.rot90, k=3, dims=(-2, -1)),
}


@dataclass(frozen=True)
class Channels:
    """One number for each channel."""

    mean: list[float]
    std: list[float]
    kurtosis: list[float]
    dead: list[int]
    """The numbers of dead channels."""


@dataclass(frozen=True)
class Spectrum:
    """Share of the spatial power at each frequency, of the latent and of the scaled-down video."""

    frequency: list[float]
    latent: list[float]
    video: list[float]
    high_frequencies: dict[str, float]
    """By "latent" and "video"."""


@dataclass(frozen=True)
class LatentSpace:
    """The measures of one model; `DEFINITIONS` says how each is defined."""

    title: str
    shape: list[int]
    """Of the latent of a clip: channels, frames, height, width."""
    channels: Channels
    eigenvalues: list[float]
    effective_rank: float
    spectrum: Spectrum
    autocorrelation: dict[str, list[float]]
    """By "space" and "time" of the latent, "video_space" and "video_time" of the scaled-down video."""
    equivariance: dict[str, dict[str, float]]
    """`mse` and `psnr` by transformation; "none" is the reconstruction."""
    noise_psnr: dict[str, float]
    codes: dict[str, float] = field(default_factory=dict)
    """See `code_usage`; empty for a continuous latent."""
    drift: dict[str, list[float] | float] = field(default_factory=dict)
    """`correlation` of each channel and `relative_error`, if there is a base model."""


@dataclass(frozen=True)
class LatentReport:
    """The measures of all models on the same clips, and the protocol."""

    models: list[LatentSpace]
    protocol: dict[str, object]

    def as_dict(self) -> dict[str, object]:
        """Return the content of `latents.json`."""
        return asdict(self)


def measure_latent_spaces(models: Sequence[str | Path], config: LatentsConfig) -> LatentReport:
    """Measure the latents of models on clips of `config.data`.

    Args:
        models: Folders of runs, of checkpoints or of saved autoencoders, at least one. Clips have the size of the
            first one's run.
        config: The settings.

    Raises:
        ValueError: A model, the data or the size of the clips does not fit; or a model does not offer its latent.
    """
    if config.data is None:
        raise argument_error("data", "a folder of videos, or one video", "nothing", "Add `--data my_videos/`.")
    device = pick_device(config.device)
    first = model_source(Path(models[0]), config, device)
    clips = first.clips
    same = replace(
        config, num_frames=clips.num_frames, height=clips.height, width=clips.width, stride=clips.stride
    )  # all models encode the same clips
    sources = [first, *(model_source(Path(model), same, device) for model in models[1:])]
    base = None if config.base is None else model_source(Path(config.base), same, device)
    videos, digest = find_clips(config, clips)
    reference = None if base is None else encode_all(base, videos)
    spaces = [measure_space(source, videos, reference) for source in sources]
    protocol: dict[str, object] = {
        "data": config.data,
        "base": None if base is None else base.title,
        "num_clips": len(videos),
        "num_frames": clips.num_frames,
        "height": clips.height,
        "width": clips.width,
        "frame_stride": clips.stride,
        "places": CLIP_SELECTION,
        "clips_sha256": digest,
        "noise_seed": 0,
        "definitions": DEFINITIONS,
    }
    return LatentReport(spaces, protocol)


class Videos(Protocol):
    """Clips `(1, 3, T, H, W)`, in order, as often as they are iterated over."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Video]: ...


@dataclass(frozen=True)
class ClipsOnDisk:
    """Clips on the CPU. Each is read when it is needed: all of them may be larger than the memory."""

    spans: Sequence[Span]
    config: ClipConfig

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[Video]:
        for span in self.spans:
            clip = read_span(span, self.config)
            if clip is None:
                contract, got = "readable until the end", f"{span.info.path}, which was before"
                raise argument_error("data", contract, got, "See the log.", DataError)
            yield clip["video"][None]


def find_clips(config: LatentsConfig, clips: ClipConfig) -> tuple[ClipsOnDisk, str]:
    """Return the clips that can be decoded, and their `clips_sha256`.

    Raises:
        ValueError: None can be decoded.
    """
    assert config.data is not None
    spans = select_clips(index_data(config.data), clips, config.clip_limit)
    decodable: list[Span] = []
    hashes: list[str] = []
    for span in with_progress(spans, "reading"):
        clip = read_span(span, clips)
        if clip is not None:
            decodable.append(span)
            hashes.append(pixels_sha256(bytes_from_video(clip["video"])))
    if not decodable:
        raise argument_error("data", "videos with a decodable clip", f"{len(spans)} broken ones", "See the log.")
    return ClipsOnDisk(decodable, clips), clips_sha256(hashes)


@torch.no_grad()
def encode_all(source: ModelSource, videos: Videos) -> Tensor:
    """Return the latents of clips, `(B, C, t, h, w)` on the CPU.

    Raises:
        ValueError: The model does not offer its latent.
    """
    device = next(source.model.parameters()).device
    latents = []
    for video in with_progress(videos, "encoding", total=len(videos)):
        latent = source.model(video.to(device), sample_posterior=False).latent
        if latent is None:
            remedy = "A custom module returns (reconstruction, losses, latent)."
            raise argument_error(source.title, "a model that offers its latent", "one without", remedy)
        latents.append(latent.float().cpu())
    return torch.cat(latents)


def measure_space(source: ModelSource, videos: Videos, reference: Tensor | None) -> LatentSpace:
    """Return the measures of one model.

    Args:
        source: The model.
        videos: The clips.
        reference: The base model's latents of the clips.

    Raises:
        ValueError: The base model's latents have another shape.
    """
    latents = encode_all(source, videos)
    moments = ChannelMoments()
    moments.add(latents)
    statistics = moments.statistics()
    eigenvalues = covariance_eigenvalues(latents)
    small = torch.cat([scaled_video(video, latent[None]) for video, latent in zip(videos, latents, strict=True)])
    frequency, latent_power = radial_spectrum(latents)
    equivariance, noise_psnr = decode_changed(source.model, videos, latents, statistics.std)
    return LatentSpace(
        title=source.title,
        shape=list(latents.shape[1:]),
        channels=Channels(statistics.mean, statistics.std, kurtosis(latents), dead_channels(statistics.std)),
        eigenvalues=eigenvalues,
        effective_rank=effective_rank(eigenvalues),
        spectrum=Spectrum(
            frequency,
            latent_power,
            radial_spectrum(small)[1],
            {"latent": high_frequency_share(latents), "video": high_frequency_share(small)},
        ),
        autocorrelation={
            f"{prefix}{name}": autocorrelation(values, axes, MAX_LAG)
            for prefix, values in (("", latents), ("video_", small))
            for name, axes in (("space", (3, 4)), ("time", (2,)))
        },
        equivariance=equivariance,
        noise_psnr=noise_psnr,
        codes=code_usage(source.model.codebook, latents.to(next(source.model.parameters()).device)),
        drift={} if reference is None else drift(latents, reference),
    )


@torch.no_grad()
def decode_changed(
    model: VideoAutoencoder, videos: Videos, latents: Tensor, std: Sequence[float]
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return the equivariance error by transformation, and the PSNR by the size of the noise; means over clips."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor(std).view(1, -1, 1, 1, 1)
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in ("none", *TRANSFORMS)}
    noisy: dict[str, list[float]] = {f"{size:g}": [] for size in NOISE}
    for video, latent in with_progress(zip(videos, latents.split(1), strict=True), "decoding", total=len(videos)):
        for name, found in errors.items():
            transform = TRANSFORMS.get(name, torch.clone)
            decoded = decode(model, transform(latent.to(device)))
            target = transform(video)
            if target.shape != decoded.shape:
                target = resized(video, list(decoded.shape[-2:]))
            pair = {"reconstruction": decoded, "target": target}
            found.append((mse(**pair).item(), psnr(**pair).item()))
        noise = torch.randn(latent.shape, generator=generator) * scale
        for size, values in noisy.items():
            decoded = decode(model, (latent + float(size) * noise).to(device))
            values.append(psnr(reconstruction=decoded, target=video).item())
    columns = {
        name: [sum(values) / len(found) for values in zip(*found, strict=True)] for name, found in errors.items()
    }
    equivariance = {name: {"mse": error, "psnr": decibel} for name, (error, decibel) in columns.items()}
    return equivariance, {size: sum(values) / len(values) for size, values in noisy.items()}


def decode(model: VideoAutoencoder, latent: Tensor) -> Video:
    """Return the video of a latent, clamped, on the CPU."""
    return model.decode(latent).float().clamp(*VALUE_RANGE).cpu()


def drift(latents: Tensor, reference: Tensor) -> dict[str, list[float] | float]:
    """Return how far latents are from those of a base model, see `DEFINITIONS`.

    Raises:
        ValueError: Their shapes differ.
    """
    if latents.shape != reference.shape:
        contract = f"a model with latents of shape {tuple(latents.shape[1:])}"
        got = f"one with {tuple(reference.shape[1:])}"
        raise argument_error("base", contract, got, "Leave it out.")
    z, z_base = (x.transpose(0, 1).flatten(1).double() for x in (latents, reference))
    centred, centred_base = (x - x.mean(1, keepdim=True) for x in (z, z_base))
    norms = centred.norm(dim=1) * centred_base.norm(dim=1)
    correlation = (centred * centred_base).sum(1) / norms.clamp(min=1e-12)
    return {"correlation": correlation.tolist(), "relative_error": ((z - z_base).norm() / z_base.norm()).item()}


def describe(space: LatentSpace) -> dict[str, float]:
    """Return the numbers of a model that fit a line of a table."""
    changed = [values["mse"] for name, values in space.equivariance.items() if name != "none"]
    found = {
        "channels": float(len(space.channels.std)),
        "dead channels": float(len(space.channels.dead)),
        "mean std": sum(space.channels.std) / len(space.channels.std),
        "effective rank": space.effective_rank,
        "high frequencies": space.spectrum.high_frequencies["latent"],
        "high frequencies of the video": space.spectrum.high_frequencies["video"],
        "PSNR, dB": space.equivariance["none"]["psnr"],
        "PSNR with noise 0.2, dB": space.noise_psnr["0.2"],
        "equivariance error, MSE": sum(changed) / len(changed),
    }
    if space.codes:
        found["codes used"] = space.codes["codes_used"]
        found["entropy of the codes, bits"] = space.codes["code_entropy"]
        found["perplexity of the codes"] = space.codes["code_perplexity"]
    if space.drift:
        assert isinstance(space.drift["relative_error"], float)
        found["drift from the base"] = space.drift["relative_error"]
    return found
